// A search and a distillation: where it stands, what people call it, and what its candidates are worth.

import { BUSY, Problem, again, ask, badge, bar, count, formula, link, make, percent, plural, quiet, readable, signed, table, tags, tile, time, waits } from "./dom.js";

const BEST = 15; // candidates in the table
const FATES = { MEASURED: ["measured"], REJECTED: ["refused"], DUPLICATE: ["double", "doubles"], INFEASIBLE: ["infeasible"], PROPOSED: ["not measured yet"] };

let edited = ""; // the path of what is being renamed: its page stands still meanwhile

export const editing = () => edited !== "";
export const stopEditing = () => { edited = ""; };

// Name, tags and notes, and their form once somebody asks for it. path: of the list; api: of the document.
function labels(one, path, api) {
  const here = `${api}/${one.id}`;
  if (edited === here) return form(one, here);
  return [
    one.tags.length ? make("p", { class: "row" }, tags(path, one.tags)) : null,
    one.notes ? make("p", { class: "note" }, one.notes) : null,
    make("p", {}, make("button", { id: "edit", onclick: () => { edited = here; again(); } }, "Edit name, tags and notes"))];
}

function form(one, here) {
  const name = make("input", { id: "edit-name", value: one.name, maxlength: 100, autocomplete: "off" });
  const words = make("input", { id: "edit-tags", value: one.tags.join(", "), autocomplete: "off" });
  const notes = make("textarea", { id: "edit-notes", rows: 5, maxlength: 4000 }, one.notes);
  const wrong = make("p", { class: "problem", role: "alert", hidden: true });
  const close = () => { edited = ""; again(); };
  const save = async (event) => {
    event.preventDefault();
    const wanted = { name: name.value.trim(), notes: notes.value, tags: words.value.split(",").map((tag) => tag.trim()).filter(Boolean) };
    try {
      await ask(here, { method: "PATCH", body: wanted });
      close();
    } catch (error) {
      wrong.textContent = error instanceof Problem ? error.message : "The service does not answer; nothing was changed.";
      wrong.hidden = false;
    }
  };
  return make("form", { class: "card labels", onsubmit: save, onkeydown: (event) => { if (event.key === "Escape") close(); } },
    make("label", {}, "Name", name), make("label", {}, "Tags, with commas between", words), make("label", {}, "Notes", notes), wrong,
    make("p", { class: "row" }, make("button", { id: "save" }, "Save"), make("button", { id: "leave", type: "button", onclick: close }, "Leave as it is")));
}

function actions(one, api, kind) {
  const live = BUSY.includes(one.state), paused = one.state === "PAUSED";
  const button = (verb, text) => make("button", { id: verb, onclick: () => change(one, api, verb) }, text);
  return [
    live ? button("pause", "Pause") : null,
    paused ? button("resume", "Resume") : null,
    live || paused ? make("button", { id: "cancel", class: "danger", onclick: () => cancel(one, api) }, `Cancel this ${kind}`) : null];
}

async function cancel(one, api) {
  if (confirm(`Cancel ${one.name}? What is measured stays.`)) await change(one, api, "cancel");
}

async function change(one, api, verb) {
  try {
    await ask(`${api}/${one.id}/${verb}`, { method: "POST" });
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    alert(error.message); // it ended meanwhile, or the key may only read
  }
  again();
}

function head(one, kind, path, api) {
  const busy = BUSY.includes(one.state);
  return [
    make("h1", {}, one.name),
    make("div", { class: "row" }, badge(one.state),
      make("span", { class: "quiet" }, `${kind}, ${one.teacher} → ${one.student} on ${one.dataset}, ${time(one.created_at)}`),
      make("span", { class: "row end" }, actions(one, api, kind), one.result_id ? link(`#/results/${one.result_id}`, "Its result") : null)),
    one.reason ? make("p", { class: one.state === "FAILED" || one.state === "DEAD" ? "problem" : "quiet" }, one.reason) : null,
    one.cloned_from ? make("p", { class: "quiet" }, `The same as `, link(`#/${path}/${one.cloned_from}`, `another ${kind}`), ", with changes.") : null,
    busy || one.state === "PAUSED" ? make("div", {}, bar(one.progress)) : null,
    waits(one),
    plan(one),
    labels(one, path, api)];
}

// Where the recipe is from, and what has to be said of it, which a result says too.
function plan({ spec, result_id: ended }) {
  const { base, given } = spec.recipe_from || {};
  const whole = base && Object.keys(spec.recipe).every((name) => given.includes(name));
  return [
    base ? make("p", { class: "quiet recipe" }, whole ? "Recipe: given whole." : `Recipe: from ${base}${given.length ? `, but for your ${given.join(", ")}` : ""}.`) : null,
    ended ? null : (spec.warnings || []).map((text) => make("p", { class: "problem" }, text))];
}

const asked = (spec) => [make("h2", {}, "What it was asked to do"), make("pre", {}, JSON.stringify(spec, (key, value) => (key === "space" ? undefined : value), 1))];

export async function distillation(id) {
  const one = await ask(`/distill/${id}`);
  const view = [head(one, "distillation", "distillations", "/distill"), make("h2", {}, "Policy"), formula(one.formula, "p"), asked(one.spec)];
  return { title: one.name, view, busy: BUSY.includes(one.state) };
}

let known = { of: "", candidates: [] }; // those of the search that is shown, and where it stood when they were read

async function candidatesOf(one) {
  const of = JSON.stringify([one.id, one.state, one.progress.done, one.progress.fraction, one.updated_at]);
  if (known.of !== of) {
    const candidates = [];
    let cursor = "";
    do {
      const page = await ask(`/searches/${one.id}/candidates?limit=200${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
      candidates.push(...page.items);
      cursor = page.next_cursor || "";
    } while (cursor);
    known = { of, candidates };
  }
  return known.candidates;
}

// `28 measured, 1 refused, 2 doubles`: how many are in each state of the ledger.
function tally(candidates) {
  const parts = Object.entries(FATES).map(([state, words]) => [candidates.filter((one) => one.state === state).length, words]);
  return parts.filter(([number]) => number).map(([number, [one, several]]) => plural(number, one, several || one)).join(", ");
}

export async function search(id) {
  const one = await ask(`/searches/${id}`);
  const candidates = await candidatesOf(one);
  const measured = candidates.filter((candidate) => candidate.ap !== null);
  const alone = measured.find((candidate) => candidate.stage === "reference" && !candidate.policy.terms.length && !(candidate.policy.distillers || []).length);
  const best = [...measured].sort((a, b) => b.rung - a.rung || b.ap - a.ap || a.index - b.index);
  const lost = candidates.filter((candidate) => ["REJECTED", "DUPLICATE", "INFEASIBLE"].includes(candidate.state));
  const images = one.spec.recipe && one.spec.recipe.eval_images;
  const on = `on ${images ? count(images) : "all"} selection images, seed ${one.spec.seed}`;
  const rung = one.best && (candidates.find((candidate) => candidate.index === one.best.index) || {}).rung;
  const comparable = one.best && alone && one.best.index !== alone.index && rung === alone.rung;
  const view = [
    head(one, "search", "searches", "/searches"),
    make("div", { class: "tiles" },
      tile("best AP (%)", percent(one.best && one.best.ap), rung ? `after ${count(rung)} iterations, ${on}` : null),
      tile("no distillation, AP (%)", percent(alone && alone.ap), alone ? `after ${count(alone.rung)} iterations, ${on}` : "the same student alone"),
      comparable ? tile("difference in AP", signed(one.best.ap - alone.ap), "with one seed, which says nothing of noise; the result does") : null,
      tile("candidates", `${candidates.length}`, tally(candidates))),
    one.best ? formula(one.best.formula, "p") : null,
    measured.length ? [make("h2", {}, "AP over candidates"),
      make("div", { class: "card" }, quiet(`AP (%) ${on}; those after different numbers of iterations do not compare.`), chart(measured, alone), legend())] : null,
    make("h2", {}, "Best candidates"),
    best.length ? [quiet(`The ${Math.min(BEST, best.length)} best of ${measured.length} that are measured, ${on}; those that were trained longest first.`),
      table(candidateColumns, best.slice(0, BEST))] : quiet("None is measured yet."),
    lost.length ? [make("h2", {}, "Refused, doubles and infeasible"), table(lostColumns, lost)] : null,
    asked(one.spec),
  ];
  return { title: one.name, view, busy: BUSY.includes(one.state) };
}

const policyColumn = { title: "policy", kind: "formula", of: (one) => formula(one.resolved || one.formula) };
const madeBy = (one) => (one.stage === "reference" ? "reference" : `${one.island || "combination"}, ${one.operator}`);

const candidateColumns = [
  { title: "candidate", of: (one) => `${one.index}` },
  { title: "after iterations", kind: "number", of: (one) => count(one.rung) },
  { title: "AP (%)", kind: "number", of: (one) => percent(one.ap) },
  { title: "AP50", kind: "number", of: (one) => percent(one.ap50) },
  { title: "AP75", kind: "number", of: (one) => percent(one.ap75) },
  { title: "made by", kind: "when", of: madeBy },
  policyColumn,
];

const lostColumns = [
  { title: "candidate", of: (one) => `${one.index}` },
  { title: "what became of it", kind: "text", of: became },
  { title: "made by", kind: "when", of: madeBy },
  policyColumn,
];

function became(one) {
  if (one.state === "INFEASIBLE") return `infeasible: ${one.failure ? one.failure.detail : "it could not be trained"}`;
  if (one.state === "DUPLICATE") return `a double of ${one.same_as}`;
  return `refused by ${one.rejected.gate}: ${one.rejected.detail}${one.audit ? "; trained all the same, to judge the gate" : ""}`;
}

function legend() {
  return make("p", { class: "legend" }, make("span", { class: "reference" }, "reference"), make("span", { class: "stage1" }, "single term"),
    make("span", { class: "stage2" }, "combination"), make("span", { class: "running" }, "best so far of those trained longest"),
    "a larger point was trained longer");
}

function chart(measured, alone) {
  const width = Math.max(300, Math.min(900, document.getElementById("main").clientWidth - 40)), height = 280, left = 44, right = 12, top = 12, bottom = 30;
  const last = Math.max(1, ...measured.map((one) => one.index));
  const values = measured.map((one) => one.ap);
  const step = niceStep((Math.max(...values) - Math.min(...values)) || 1);
  const low = Math.max(0, Math.floor(Math.min(...values) / step) * step), high = Math.ceil((Math.max(...values) + 1e-6) / step) * step;
  const x = (index) => left + (index / last) * (width - left - right);
  const y = (ap) => height - bottom - ((ap - low) / (high - low)) * (height - top - bottom);
  const picture = make("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "AP of every candidate, in the order in which they were proposed" });
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
      make("title", {}, `candidate ${one.index}: AP ${percent(one.ap)} after ${one.rung} iterations\n${readable(one.resolved || one.formula)}`)));
  }
  if (alone) picture.append(make("text", { class: "over", x: width - right, y: y(alone.ap) + 16, "text-anchor": "end" }, `no distillation, after ${alone.rung}`));
  return picture;
}

function niceStep(range) {
  const raw = range / 5, power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
}
