// The dashboard: reads the service's documents and shows them. No library; every text reaches the page as text, never as HTML.

const KEY = "detkds-key"; // session storage: the API key, when the service asks for one
const BUSY = ["QUEUED", "RUNNING", "CONFIRMING"];
const FAST = 2000, SLOW = 10000; // milliseconds between two looks, while something runs and while nothing does
const main = document.getElementById("main");
let timer = 0;
let shown = ""; // what the page shows, to leave it alone (selection, focus, scroll) while nothing changes

class Problem extends Error {}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { ...options, headers });
  const document = await response.json();
  if (!response.ok) {
    const problem = new Problem(document.detail || document.title);
    problem.status = response.status;
    throw problem;
  }
  return document;
}

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "path", "circle", "text", "title"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const UNITS = { searching: "student iterations", confirming: "students", training: "iterations" }; // of the steps of a progress
const count = (value) => value.toLocaleString();
const percent = (value) => (value === null || value === undefined ? "–" : value.toFixed(1));
const time = (text) => new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.round(seconds);
  if (whole < 90) return `${whole} s left`;
  if (whole < 5400) return `${Math.round(whole / 60)} min left`;
  return `${(whole / 3600).toFixed(1)} h left`;
}

const waits = (one) => (one.waiting ? make("div", { class: "quiet" }, `waiting: ${one.waiting}`) : null);
const badge = (state) => make("span", { class: `state ${state}` }, state.toLowerCase());

function bar(progress) {
  return [
    make("progress", { max: 1, value: progress.fraction, "aria-label": progress.step }),
    make("div", { class: "row quiet" },
      make("span", {}, `${progress.step}: ${count(progress.done)} of ${count(progress.total)} ${UNITS[progress.step] || ""}`),
      progress.message ? make("span", {}, progress.message) : null,
      make("span", { class: "end" }, duration(progress.seconds_left))),
  ];
}

function searchCard(search) {
  return make("a", { class: "card", href: `#/searches/${search.id}` },
    make("div", { class: "row" },
      make("span", { class: "name" }, search.name), badge(search.state),
      make("span", { class: "quiet" }, `${search.teacher} → ${search.student} on ${search.dataset}`),
      make("span", { class: "end" }, search.best ? make("b", {}, `AP ${percent(search.best.ap)}`) : "")),
    BUSY.includes(search.state) ? bar(search.progress) : make("div", { class: "row quiet" },
      make("span", {}, search.reason || `${Math.round(100 * search.progress.fraction)} %`),
      make("span", { class: "end" }, time(search.created_at))),
    waits(search),
    search.best ? make("div", { class: "formula" }, search.best.formula) : null);
}

function distillationCard(one) {
  return make("div", { class: "card" },
    make("div", { class: "row" },
      make("span", { class: "name" }, one.name), badge(one.state),
      make("span", { class: "quiet" }, `${one.teacher} → ${one.student} on ${one.dataset}`),
      make("span", { class: "end quiet" }, time(one.created_at))),
    BUSY.includes(one.state) ? bar(one.progress) : null,
    waits(one),
    one.reason ? make("div", { class: "quiet" }, one.reason) : null,
    make("div", { class: "formula" }, one.formula));
}

function table(columns, rows) {
  const cell = (tag, column, content) => make(tag, { class: column.kind }, content);
  return make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, columns.map((column) => cell("th", { kind: column.kind === "number" ? "number" : null }, column.title)))),
    make("tbody", {}, rows.map((row) => make("tr", {}, columns.map((column) => cell("td", column, column.of(row))))))));
}

const workerColumns = [
  { title: "worker", of: (one) => one.name },
  { title: "state", of: (one) => badge(one.state) },
  { title: "device", of: (one) => (one.gpus ? `${one.device}, ${one.memory_gib} GiB` : one.device) },
  { title: "holds", of: (one) => held(one.job) },
];

function held(job) {
  if (!job) return "–";
  if (!job.id) return "somebody else's job";
  return job.search_id ? make("a", { href: `#/searches/${job.search_id}` }, job.name) : job.name;
}

const resultColumns = [
  { title: "result", of: (one) => make("a", { href: `#/results/${one.id}` }, one.name) },
  { title: "kind", of: (one) => one.kind },
  { title: "dataset", of: (one) => one.dataset },
  { title: "AP", kind: "number", of: (one) => percent(one.ap) },
  { title: "policy", kind: "formula", of: (one) => one.formula || "–" },
  { title: "when", kind: "when", of: (one) => time(one.created_at) },
];

async function overview() {
  const [searches, distillations, results, workers] = await Promise.all(
    ["/searches?limit=20", "/distill?limit=10", "/results?limit=20", "/workers"].map((path) => ask(path)));
  if (!searches.items.length && !distillations.items.length && !results.items.length) return { view: start("Nothing has been searched yet"), busy: false };
  const view = [
    make("h2", {}, "Searches"),
    searches.items.length ? searches.items.map(searchCard) : make("p", { class: "quiet" }, "None yet."),
    distillations.items.length ? [make("h2", {}, "Distillations"), distillations.items.map(distillationCard)] : [],
    make("h2", {}, "Workers"),
    workers.items.length ? table(workerColumns, workers.items) : make("p", { class: "quiet" }, "None is there."),
    make("h2", {}, "Results"),
    results.items.length ? table(resultColumns, results.items)
      : make("p", { class: "quiet" }, "None yet. Searches and distillations leave theirs here when they end."),
  ];
  return { view, busy: [...searches.items, ...distillations.items].some((one) => BUSY.includes(one.state)) };
}

function start(heading) {
  return [
    make("h1", {}, heading),
    make("p", {}, "Start with the pair that ships with its teacher. It takes some minutes on a small machine."),
    make("pre", {}, "detkds search --pair digits_gfl --candidates 24\n\n# the same over HTTP\n"
      + `curl -X POST ${location.origin}/searches -H 'Content-Type: application/json' \\\n     -d '{"pair": "digits_gfl", "candidates": 24}'`),
    make("p", {}, "Then train the student with what was found, and take its checkpoint:"),
    make("pre", {}, "detkds distill --pair digits_gfl --policy search:ID\ndetkds results"),
  ];
}

function tile(label, value, note) {
  return make("div", { class: "card" }, make("div", { class: "quiet" }, label), make("div", { class: "big" }, value),
    note ? make("div", { class: "quiet" }, note) : null);
}

async function allCandidates(id) {
  const found = [];
  let cursor = "";
  do {
    const page = await ask(`/searches/${id}/candidates?limit=200${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
    found.push(...page.items);
    cursor = page.next_cursor || "";
  } while (cursor);
  return found;
}

async function search(id) {
  const [one, candidates] = await Promise.all([ask(`/searches/${id}`), allCandidates(id)]);
  const measured = candidates.filter((candidate) => candidate.ap !== null);
  const alone = measured.find((candidate) => candidate.stage === "reference" && !candidate.policy.terms.length);
  const best = [...measured].sort((a, b) => b.rung - a.rung || b.ap - a.ap || a.index - b.index);
  const busy = BUSY.includes(one.state);
  const failed = candidates.filter((candidate) => candidate.failure).length;
  const refused = candidates.filter((candidate) => candidate.rejected || candidate.same_as !== null).length;
  const view = [
    make("h1", {}, one.name),
    make("div", { class: "row" }, badge(one.state),
      make("span", { class: "quiet" }, `${one.teacher} → ${one.student} on ${one.dataset}, ${time(one.created_at)}`),
      busy ? make("button", { class: "end", onclick: () => change(one, "pause") }, "Pause") : null,
      one.state === "PAUSED" ? make("button", { class: "end", onclick: () => change(one, "resume") }, "Resume") : null,
      busy || one.state === "PAUSED" ? make("button", { class: "danger", onclick: () => cancel(one) }, "Cancel this search") : null,
      one.result_id ? make("a", { class: "end", href: `#/results/${one.result_id}` }, "Its result") : null),
    one.reason ? make("p", { class: "quiet" }, one.reason) : null,
    busy ? make("div", {}, bar(one.progress)) : null,
    waits(one),
    make("div", { class: "tiles" },
      tile("best AP", percent(one.best && one.best.ap), one.best && alone && one.best.index !== alone.index && best[0].rung === alone.rung
        ? `${(one.best.ap - alone.ap >= 0 ? "+" : "−")}${Math.abs(one.best.ap - alone.ap).toFixed(1)} over no distillation` : null),
      tile("no distillation", percent(alone && alone.ap), "the same student alone"),
      tile("candidates", `${candidates.length}`, `${measured.length} measured${refused ? `, ${refused} refused` : ""}${failed ? `, ${failed} not possible` : ""}`)),
    one.best ? make("p", { class: "formula" }, one.best.formula) : null,
    measured.length ? [make("h2", {}, "Fitness over candidates"), make("div", { class: "card" }, chart(measured, alone), legend())] : [],
    make("h2", {}, "Best candidates"),
    best.length ? table(candidateColumns, best.slice(0, 15)) : make("p", { class: "quiet" }, "None is measured yet."),
    make("h2", {}, "What it was asked to do"),
    make("pre", {}, JSON.stringify(one.spec, (key, value) => (key === "space" ? undefined : value), 1)),
  ];
  return { view, busy };
}

async function cancel(one) {
  if (confirm(`Cancel ${one.name}? What is measured stays.`)) await change(one, "cancel");
}

async function change(one, verb) {
  try {
    await ask(`/searches/${one.id}/${verb}`, { method: "POST" });
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    alert(error.message); // it ended meanwhile, or the key may only read
  }
  look();
}

const candidateColumns = [
  { title: "#", kind: "number", of: (one) => `${one.index}` },
  { title: "rung", kind: "number", of: (one) => `${one.rung}` },
  { title: "AP", kind: "number", of: (one) => percent(one.ap) },
  { title: "AP50", kind: "number", of: (one) => percent(one.ap50) },
  { title: "AP75", kind: "number", of: (one) => percent(one.ap75) },
  { title: "from", kind: "when", of: (one) => (one.stage === "reference" ? "reference" : `${one.island || "combination"}, ${one.operator}`) },
  { title: "policy", kind: "formula", of: (one) => one.resolved || one.formula },
];

function legend() {
  return make("p", { class: "legend" }, make("span", { class: "reference" }, "reference"), make("span", { class: "stage1" }, "single term"),
    make("span", { class: "stage2" }, "combination"), make("span", { class: "running" }, "best so far of the full proxy"),
    "a larger point was trained longer");
}

function chart(measured, alone) {
  const width = Math.max(400, Math.min(900, main.clientWidth - 40)), height = 280, left = 44, right = 12, top = 12, bottom = 30;
  const last = Math.max(1, ...measured.map((one) => one.index));
  const values = measured.map((one) => one.ap);
  const step = niceStep((Math.max(...values) - Math.min(...values)) || 1);
  const low = Math.max(0, Math.floor(Math.min(...values) / step) * step), high = Math.ceil((Math.max(...values) + 1e-6) / step) * step;
  const x = (index) => left + (index / last) * (width - left - right);
  const y = (ap) => height - bottom - ((ap - low) / (high - low)) * (height - top - bottom);
  const picture = make("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "AP of every candidate" });
  for (let value = low; value <= high + 1e-9; value += step) {
    picture.append(make("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      make("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(Math.max(0, -Math.floor(Math.log10(step))))));
  }
  picture.append(make("text", { x: left, y: height - 8 }, "candidate 0"), make("text", { x: width - right, y: height - 8, "text-anchor": "end" }, `${last}`));
  if (alone) picture.append(make("line", { class: "level", x1: left, x2: width - right, y1: y(alone.ap), y2: y(alone.ap) }));
  const rungs = [...new Set(measured.map((one) => one.rung))].sort((a, b) => a - b);
  let best = -Infinity, path = "";
  for (const one of [...measured].sort((a, b) => a.index - b.index)) {
    if (one.rung === rungs[rungs.length - 1] && one.ap > best) {
      path += path ? `H${x(one.index)}V${y(one.ap)}` : `M${x(one.index)} ${y(one.ap)}`;
      best = one.ap;
    }
  }
  if (path) picture.append(make("path", { class: "running", d: `${path}H${x(last)}` }));
  for (const one of measured) {
    picture.append(make("circle", { class: `point ${one.stage}`, cx: x(one.index), cy: y(one.ap),
      r: rungs.length > 1 ? 2.5 + 3 * rungs.indexOf(one.rung) / (rungs.length - 1) : 4.5 },
      make("title", {}, `#${one.index}  AP ${percent(one.ap)} after ${one.rung} iterations\n${one.resolved || one.formula}`)));
  }
  if (alone) picture.append(make("text", { class: "over", x: width - right, y: y(alone.ap) + 16, "text-anchor": "end" }, "no distillation"));
  return picture;
}

function niceStep(range) {
  const raw = range / 5, power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
}

async function result(id) {
  const one = await ask(`/results/${id}`);
  const view = [
    make("h1", {}, one.name),
    make("p", { class: "quiet" }, `${one.kind} on ${one.dataset}, ${time(one.created_at)}`),
    one.metrics.verdict ? make("p", {}, one.metrics.verdict) : null,
    make("div", { class: "tiles" }, tile("AP", percent(one.ap))),
    one.formula ? make("p", { class: "formula" }, one.formula) : null,
    one.checkpoint ? make("p", {}, "Checkpoint: ",
      make("button", { onclick: () => download(id, "safetensors") }, "safetensors"), " ",
      make("button", { onclick: () => download(id, "pth") }, "pth for MMDetection"), " ",
      make("button", { onclick: () => download(id, "config", "py") }, "its configuration")) : null,
    one.search_id ? make("p", {}, make("a", { href: `#/searches/${one.search_id}` }, "The search it comes from")) : null,
    warnings(one.metrics),
    comparison(one.metrics),
    lossCurves(one.evidence.curve),
    lesson(one.evidence.insight),
    make("h2", {}, "Evidence"),
    make("pre", {}, JSON.stringify({ metrics: one.metrics, evidence: { ...one.evidence, curve: undefined, insight: undefined }, environment: one.environment }, null, 1)),
  ];
  return { view, busy: false };
}

// Who was measured beside whom: the entrants of a search over its seeds, or the student of a distillation and its teacher.
function comparison(metrics) {
  if (metrics.rows && metrics.rows.length) {
    const best = [...metrics.rows].sort((a, b) => (b.mean_ap ?? -1) - (a.mean_ap ?? -1));
    return [make("h2", {}, "Measured again"), table(entrantColumns(metrics.winner), best),
      ...(metrics.comparisons && metrics.comparisons.length ? [make("h2", {}, "Compared, seed by seed"), table(pairColumns, metrics.comparisons)] : [])];
  }
  const rows = ["teacher", "student"].filter((who) => metrics[who]).map((who) => ({ who, ...metrics[who] }));
  return rows.length ? [make("h2", {}, "Measured"), table(detectorColumns, rows)] : [];
}

// What a search teaches beside its winner; the whole of it is in the evidence of the result.
function lesson(insight) {
  if (!insight || !insight.effects.length) {
    return [];
  }
  return [make("h2", {}, "What the search teaches"), table(effectColumns, insight.effects)];
}

const effectColumns = [
  { title: "", of: (one) => one.gene },
  { title: "candidates", kind: "number", of: (one) => `${one.candidates}` },
  { title: "effect on AP", kind: "number", of: (one) => one.effect.toFixed(2) },
  { title: "95 % interval", kind: "number", of: (one) => between(one.interval) },
];

const warnings = (metrics) => (metrics.warnings || []).map((text) => make("p", { class: "problem" }, text));

// The task's loss, each term's, and the ratio of all terms to the task, over the iterations of a training.
function lossCurves(curve) {
  const points = (curve || []).filter((point) => Number.isFinite(point.task));
  if (points.length < 2) return [];
  const terms = Object.keys(points[points.length - 1]).filter((name) => name.startsWith("distill/"));
  const ratio = (point) => terms.reduce((sum, name) => sum + (point[name] || 0), 0) / point.task;
  const shown = [["task", "the detector's own loss", (point) => point.task],
    ...terms.map((name) => [name, "distillation, weighted", (point) => point[name]]),
    ...(terms.length ? [["distillation / task", "ratio of the two losses", ratio]] : [])];
  return [make("h2", {}, "Losses"),
    make("div", { class: "tiles" }, shown.map(([name, note, of]) => make("div", { class: "card" },
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

const entrantColumns = (winner) => [
  { title: "policy", of: (one) => (winner && one.entrant === winner.entrant ? make("b", {}, `${one.name} (winner)`) : one.name) },
  { title: "AP", kind: "number", of: (one) => percent(one.mean_ap) },
  { title: "95 % interval", kind: "number", of: (one) => between(one.interval) },
  { title: "AP50", kind: "number", of: (one) => percent(one.mean_ap50) },
  { title: "AP75", kind: "number", of: (one) => percent(one.mean_ap75) },
  { title: "AP of every seed", kind: "number", of: (one) => (one.ap || []).map(percent).join("  ") },
  { title: "images", kind: "number", of: (one) => `${one.images}` },
  { title: "formula", kind: "formula", of: (one) => one.formula },
];

const between = (interval) => (interval && interval[0] !== null ? `${percent(interval[0])} to ${percent(interval[1])}` : "–");

const pairColumns = [
  { title: "", of: (one) => `${one.first} − ${one.second}` },
  { title: "AP", kind: "number", of: (one) => percent(one.mean) },
  { title: "95 % interval", kind: "number", of: (one) => between(one.interval) },
  { title: "p (Holm)", kind: "number", of: (one) => (one.p === null ? "–" : one.p < 0.001 ? "< 0.001" : one.p.toFixed(3)) },
  { title: "seeds", kind: "number", of: (one) => `${one.seeds.length}` },
  { title: "images", kind: "number", of: (one) => (one.images ? `${one.images}` : "not drawn") },
  { title: "", of: (one) => one.outcome },
];

const detectorColumns = [
  { title: "detector", of: (one) => one.who },
  { title: "AP", kind: "number", of: (one) => percent(one.ap) },
  { title: "AP50", kind: "number", of: (one) => percent(one.ap50) },
  { title: "AP75", kind: "number", of: (one) => percent(one.ap75) },
  { title: "parameters", kind: "number", of: (one) => (one.parameters ? one.parameters.toLocaleString() : "–") },
  { title: "images", kind: "number", of: (one) => `${one.images ?? "–"}` },
];

// A link could not carry the API key.
async function download(id, format, suffix = format) {
  const key = sessionStorage.getItem(KEY);
  const response = await fetch(`/results/${id}/checkpoint?format=${format}`, { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (!response.ok) {
    alert((await response.json()).detail);
    return;
  }
  const link = make("a", { href: URL.createObjectURL(await response.blob()), download: `student-${id}.${suffix}` });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function askForKey() {
  const input = make("input", { type: "password", "aria-label": "API key", autocomplete: "off" });
  const save = () => { sessionStorage.setItem(KEY, input.value.trim()); look(); };
  input.addEventListener("keydown", (event) => { if (event.key === "Enter") save(); });
  return [make("h1", {}, "This service asks for a key"), make("p", {}, "It is the DETKDS_API_KEY of whoever started it; it stays in this tab."),
    make("p", { class: "row" }, input, make("button", { onclick: save }, "Show"))];
}

async function page() {
  const [, domain, id] = (location.hash || "#/").slice(1).split("/");
  if (domain === "searches" && id) return search(encodeURIComponent(id));
  if (domain === "results" && id) return result(encodeURIComponent(id));
  if (domain === "start") return { view: start("How to start"), busy: false };
  return overview();
}

async function look() {
  clearTimeout(timer);
  const service = document.getElementById("service");
  let busy = true;
  try {
    const { view, busy: working } = await page();
    busy = working;
    show(view);
    service.className = "service up";
    service.textContent = "the service answers";
  } catch (error) {
    if (error.status === 401) show(await askForKey());
    else if (error instanceof Problem) show([make("p", { class: "problem" }, error.message), make("p", {}, make("a", { href: "#/" }, "Back"))]);
    const down = !(error instanceof Problem);
    service.className = `service ${down ? "down" : "up"}`;
    service.textContent = down ? "the service does not answer; trying again" : "the service answers";
    if (error.status === 401) return;
  }
  timer = setTimeout(look, document.hidden ? SLOW : busy ? FAST : SLOW);
}

function show(view) {
  const next = make("main", {}, ...[view].flat(9));
  if (next.innerHTML === shown) return;
  shown = next.innerHTML;
  main.replaceChildren(...next.childNodes);
}

window.addEventListener("hashchange", () => { scrollTo(0, 0); look(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
ask("/health").then((health) => { document.getElementById("version").textContent = `version ${health.version}`; }, () => {});
look();
