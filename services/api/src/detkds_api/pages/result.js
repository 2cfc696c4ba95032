// A result: what it is worth, against whom, and what that rests on.

import { Problem, ask, authorization, between, count, formula, link, make, percent, plural, quiet, signed, table, tags, tile, time } from "./dom.js";

export async function result(id) {
  const one = await ask(`/results/${id}`);
  const origin = one.search_id ? ["searches", "/searches", one.search_id] : ["distillations", "/distill", one.distillation_id];
  const [path, api, of] = origin;
  const { tags: words, notes } = await ask(`${api}/${of}`);
  const teacher = one.metrics.teacher && one.metrics.teacher.ap;
  const view = [
    make("h1", {}, one.name),
    make("p", { class: "row quiet" }, `${one.kind === "search" ? "result of a search" : "result of a distillation"}, ${one.teacher} → ${one.student} on ${one.dataset}, ${time(one.created_at)}`,
      make("span", { class: "end" }, link(`#/${path}/${of}`, one.kind === "search" ? "Its search" : "Its distillation"))),
    words.length ? make("p", { class: "row" }, tags(path, words)) : null,
    notes ? make("p", { class: "note" }, notes) : null,
    one.metrics.verdict ? make("p", { class: "verdict" }, one.metrics.verdict) : null,
    make("div", { class: "tiles" },
      tile("AP (%)", percent(one.ap), measuredOn(one)),
      teacher ? tile("teacher, AP (%)", percent(teacher), "on the same images") : null),
    formula(one.formula, "p"),
    make("p", { class: "row" }, make("button", { id: "report", onclick: () => download(`/results/${id}/report`, `report-${id}.html`) }, "Report (HTML)")),
    one.checkpoint ? make("p", { class: "row" }, "Checkpoint:",
      make("button", { id: "safetensors", onclick: () => download(`/results/${id}/checkpoint?format=safetensors`, `student-${id}.safetensors`) }, "safetensors"),
      make("button", { id: "pth", onclick: () => download(`/results/${id}/checkpoint?format=pth`, `student-${id}.pth`) }, "pth for MMDetection"),
      make("button", { id: "config", onclick: () => download(`/results/${id}/checkpoint?format=config`, `student-${id}.py`) }, "its configuration")) : null,
    (one.metrics.warnings || []).map((text) => make("p", { class: "problem" }, text)),
    comparison(one.metrics),
    lossCurves(one.evidence.curve),
    funnel(one.evidence.summary),
    lesson(one.evidence.insight),
    make("h2", {}, "Evidence"),
    make("pre", {}, JSON.stringify({ metrics: one.metrics, evidence: { ...one.evidence, curve: undefined, insight: undefined }, environment: one.environment }, null, 1)),
  ];
  return { title: one.name, view, busy: false };
}

// `mean of seeds 1, 2, 3 on 300 report images; 95 % interval 24.9 to 43.2`
function measuredOn({ metrics, evidence }) {
  const seeds = evidence.seed !== undefined && evidence.seed !== null ? [evidence.seed] : (evidence.seeds && evidence.seeds.confirmation) || [];
  const images = evidence.images && evidence.images.report;
  const rest = metrics.interval && metrics.interval[0] !== null ? `; 95 % interval ${between(metrics.interval)}` : "";
  return `${seeds.length > 1 ? "mean of seeds" : "seed"} ${seeds.join(", ") || "unknown"} on ${images ? plural(images, "report image") : "an unknown number of report images"}${rest}`;
}

// Who was measured on the same images: the entrants of a search over its seeds, or the student of a distillation and its teacher.
function comparison(metrics) {
  if (metrics.rows && metrics.rows.length) {
    const best = [...metrics.rows].sort((a, b) => (b.mean_ap ?? -1) - (a.mean_ap ?? -1));
    return [make("h2", {}, "Confirmed with new seeds"),
      quiet("AP in percent on the report images, which the search never saw. The intervals are over seeds and images."),
      table(entrantColumns(metrics.winner), best),
      ...(metrics.comparisons && metrics.comparisons.length ? [make("h2", {}, "Compared, seed by seed"),
        quiet("Both of a pair share seed, data order, initial weights and images. Better or worse: the interval, of 95 % or as wide as Holm asks for, excludes 0."),
        table(pairColumns, metrics.comparisons)] : [])];
  }
  const rows = ["teacher", "student"].filter((who) => metrics[who]).map((who) => ({ who, ...metrics[who] }));
  return rows.length ? [make("h2", {}, "Measured"), table(detectorColumns, rows)] : [];
}

const entrantColumns = (winner) => [
  { title: "", kind: "text", of: (one) => (winner && one.entrant === winner.entrant ? make("b", {}, `${one.name} (the result)`) : one.name) },
  { title: "AP", kind: "number", of: (one) => percent(one.mean_ap) },
  { title: "95 % interval", kind: "number", of: (one) => between(one.interval) },
  { title: "AP50", kind: "number", of: (one) => percent(one.mean_ap50) },
  { title: "AP75", kind: "number", of: (one) => percent(one.mean_ap75) },
  { title: "AP of each seed", kind: "seeds", of: (one) => (one.ap || []).map((ap, place) => make("span", {}, make("span", { class: "quiet" }, `${one.seeds[place]}: `), percent(ap))) },
  { title: "images", kind: "number", of: (one) => `${one.images ?? "–"}` },
  { title: "formula", kind: "formula", of: (one) => [formula(one.formula), (one.failures || []).map((failure) => make("div", { class: "quiet" }, `seed ${failure.seed} failed: ${failure.detail || failure.kind}`))] },
];

const pairColumns = [
  { title: "", kind: "text", of: (one) => `${one.first} − ${one.second}` },
  { title: "difference in AP", kind: "number", of: (one) => signed(one.mean) },
  { title: "interval", kind: "number", of: (one) => between(one.interval, signed) },
  { title: "p (Holm)", kind: "number", of: (one) => (one.p === null || one.p === undefined ? "–" : one.p < 0.001 ? "< 0.001" : one.p.toFixed(3)) },
  { title: "paired seeds", kind: "number", of: (one) => `${one.seeds.length}` },
  { title: "images", kind: "number", of: (one) => (one.images ? `${one.images}` : "not drawn") },
  { title: "", of: (one) => one.outcome },
];

const detectorColumns = [
  { title: "", of: (one) => one.who },
  { title: "AP (%)", kind: "number", of: (one) => percent(one.ap) },
  { title: "AP50", kind: "number", of: (one) => percent(one.ap50) },
  { title: "AP75", kind: "number", of: (one) => percent(one.ap75) },
  { title: "parameters", kind: "number", of: (one) => (one.parameters ? count(one.parameters) : "–") },
  { title: "report images", kind: "number", of: (one) => `${one.images ?? "–"}` },
];

// What became of the candidates of a search, and how far its gates can be trusted.
function funnel(summary) {
  // Searches of before counted a double as refused by the gate that found it, too.
  const found = summary && summary.funnel;
  if (!found) return [];
  const rows = [
    ["proposed", count(found.proposed)],
    ...Object.entries(found.rejected).filter(([gate]) => gate !== "duplicate").map(([gate, number]) => [`refused by ${gate}`, count(number)]),
    ["doubles", count(found.duplicates)],
    ["infeasible", count(found.infeasible)],
    ...found.trained.map((number, place) => [`trained for ${count(summary.rungs[place].iterations)} iterations`, count(number)]),
    ["false-reject rate of the gates", falseRejects(found)]];
  return [make("h2", {}, "What became of the candidates"),
    table([{ title: "", of: ([what]) => what }, { title: "candidates", label: "", kind: "text", of: ([, number]) => number }], rows),
    ...gates(found)];
}

// Each gate with its count, its audit and its cost, then the look that all share, and all together.
function gates(found) {
  const each = Object.entries(found.gates || {}).map(([gate, figures]) => ({ gate, ...figures }));
  if (!each.length) return []; // searches of before did not tell them apart
  const sum = (name) => each.reduce((total, one) => total + one[name], 0);
  const known = (value) => value !== null && value !== undefined;
  const look = known(found.look_seconds) && each.every((one) => known(one.seconds))
    ? [{ gate: "the look itself", seconds: Math.max(0, found.look_seconds - sum("seconds")) }] : [];
  return [make("h2", {}, "The gates"),
    quiet("In the order in which a candidate meets them. Audited: refused and trained all the same, to judge the gate: wrongly where it is among the best third, a double where what it was taken for is not. Seconds of a trainer; the look itself serves all gates and finds the weights of the terms."),
    table(gateColumns, [...each, ...look, { ...found, gate: "all", refused: sum("refused"), seconds: found.look_seconds }])];
}

const gateColumns = [
  { title: "gate", label: "", of: (one) => one.gate },
  { title: "refused", kind: "number", of: (one) => (one.refused === undefined ? "" : count(one.refused)) },
  { title: "audited", kind: "number", of: (one) => (one.audited === undefined ? "" : count(one.audited)) },
  { title: "falsely refused (95 % interval)", kind: "number", of: falselyRefused },
  { title: "seconds", kind: "number", of: ({ seconds }) => (seconds === null || seconds === undefined ? "–" : seconds > 0 && seconds < 0.01 ? "< 0.01" : seconds < 10 ? seconds.toFixed(2) : count(Math.round(seconds))) },
];

function falselyRefused({ audited, falsely_rejected: wrong, false_reject_rate: rate, false_reject_interval: interval }) {
  if (audited === undefined) return "";
  const share = (value) => `${Math.round(100 * value)}`;
  return rate === null || rate === undefined ? "–" : `${wrong}: ${share(rate)} % (${between(interval, share)} %)`;
}

function falseRejects({ audited, falsely_rejected: wrong, false_reject_rate: rate, false_reject_interval: interval }) {
  if (!audited) return "not known: none was audited";
  const counts = `${wrong} of ${audited} that ${audited > 1 ? "were" : "was"} refused and trained all the same ${wrong > 1 ? "are" : "is"} among the best third`;
  const share = (value) => `${Math.round(100 * value)}`;
  return rate === null || rate === undefined ? counts : `${share(rate)} % (95 % interval ${between(interval, share)} %): ${counts}`;
}

// What a search teaches beside its winner; the whole of it is in the evidence of the result.
function lesson(insight) {
  if (!insight || !insight.effects.length) return [];
  return [make("h2", {}, "What the search teaches"),
    quiet(`What each operation adds to the AP after ${count(insight.rung)} iterations on the selection images, the others held, over ${insight.measured} measured candidates of one search.`),
    table(effectColumns, insight.effects)];
}

const effectColumns = [
  { title: "", of: (one) => one.gene },
  { title: "candidates", kind: "number", of: (one) => `${one.candidates}` },
  { title: "effect on AP", kind: "number", of: (one) => signed(one.effect, 2) },
  { title: "95 % interval", kind: "number", of: (one) => between(one.interval, (value) => signed(value, 2)) },
];

// The task's loss, each term's, and the ratio of all terms to the task, over the iterations of a training.
function lossCurves(curve) {
  const points = (curve || []).filter((point) => Number.isFinite(point.task));
  if (points.length < 2) return [];
  const terms = [...new Set(points.flatMap(Object.keys))].filter((name) => name.startsWith("distill/")); // one that has stopped has no more
  const ratio = (point) => terms.reduce((sum, name) => sum + (point[name] || 0), 0) / point.task;
  const shown = [["task", "the detector's own loss", (point) => point.task],
    ...terms.map((name) => [name, "distillation, weighted", (point) => point[name]]),
    ...(terms.length ? [["distillation / task", "ratio of the two losses", ratio]] : [])];
  return [make("h2", {}, "Losses"),
    make("div", { class: "tiles losses" }, shown.map(([name, note, of]) => make("div", { class: "card" },
      make("div", { class: "quiet" }, name), lossChart(points, of, name), make("div", { class: "quiet" }, note))))];
}

function lossChart(points, of, name) {
  const width = 260, height = 120, left = 52, bottom = 20, top = 6;
  const values = points.map(of).filter(Number.isFinite);
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  const last = points[points.length - 1].iteration;
  const x = (point) => left + (point.iteration / last) * (width - left - 4);
  const y = (value) => height - bottom - ((value - low) / span) * (height - top - bottom);
  const line = points.filter((point) => Number.isFinite(of(point))).map((point) => `${x(point).toFixed(1)} ${y(of(point)).toFixed(1)}`);
  return make("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${name} over iterations` },
    [low, high].map((value) => make("g", {}, make("line", { class: "grid", x1: left, x2: width - 4, y1: y(value), y2: y(value) }),
      make("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toPrecision(3)))),
    make("text", { x: width - 4, y: height - 4, "text-anchor": "end" }, `iteration ${last}`),
    make("path", { class: "running", d: `M${line.join("L")}` }));
}

// A link could not carry the API key.
async function download(path, name) {
  const response = await fetch(path, { headers: authorization() });
  if (!response.ok) {
    alert((await response.json()).detail);
    return;
  }
  const file = make("a", { href: URL.createObjectURL(await response.blob()), download: name });
  file.click();
  URL.revokeObjectURL(file.href);
}
