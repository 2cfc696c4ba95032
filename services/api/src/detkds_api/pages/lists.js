// What there is: the overview, the lists with their filters, and results side by side.

import { BUSY, Problem, again, ask, badge, bar, between, count, formula, link, make, percent, plural, query, quiet, span, table, tags, time, waits } from "./dom.js";

const SEARCH_STATES = ["QUEUED", "RUNNING", "CONFIRMING", "SUCCEEDED", "FAILED", "CANCELLED", "PAUSED"];
const DISTILLATION_STATES = ["QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "DEAD", "PAUSED"];
const RUNS_SORT = [["", "newest first"], ["created_at", "oldest first"], ["-updated_at", "last changed first"]];
const RESULTS_SORT = [["", "newest first"], ["created_at", "oldest first"], ["-ap", "highest AP first"], ["ap", "lowest AP first"]];
const PAGE = 50; // items
const MOST = 20; // results that can be compared
const SHORT = 12; // characters of a digest that tell it apart
const CHOSEN = "detkds-chosen"; // session storage: ids of the results to compare

function searchCard(one) {
  return runCard(one, "searches", one.best ? make("b", { title: "of a candidate, on the selection images" }, `best AP ${percent(one.best.ap)} %${one.best.rung ? ` at ${count(one.best.rung)} iterations` : ""}`) : null,
    one.best ? formula(one.best.formula, "div") : null);
}

const distillationCard = (one) => runCard(one, "distillations", null, formula(one.formula, "div"));

function runCard(one, path, worth, below) {
  const busy = BUSY.includes(one.state), ended = one.reason || (busy || one.state === "SUCCEEDED" ? null : `${Math.floor(100 * one.progress.fraction)} % done`);
  return make("div", { class: "card" },
    make("div", { class: "row" },
      make("a", { class: "name", href: `#/${path}/${one.id}` }, one.name), badge(one.state), tags(path, one.tags),
      make("span", { class: "quiet" }, `${one.teacher} → ${one.student} on ${one.dataset}`),
      make("span", { class: "row end" }, worth, make("span", { class: "quiet" }, time(one.created_at)))),
    busy ? bar(one.progress) : null,
    ended ? make("div", { class: "quiet reason" }, ended) : null,
    waits(one),
    one.notes ? make("div", { class: "quiet note" }, one.notes.split("\n", 1)[0]) : null,
    below);
}

const workerColumns = [
  { title: "worker", kind: "text", of: (one) => one.name },
  { title: "state", of: (one) => badge(one.state) },
  { title: "device", of: (one) => (one.gpus ? `${one.device}, ${one.memory_gib} GiB` : one.device) },
  { title: "holds", kind: "text", of: (one) => held(one.job) },
];

function held(job) {
  if (!job) return "–";
  if (!job.id) return "somebody else's job";
  return job.search_id ? link(`#/searches/${job.search_id}`, job.name) : job.name;
}

const resultColumns = [
  { title: "", label: "compare", kind: "choice", of: chooser },
  { title: "result", kind: "text", of: (one) => link(`#/results/${one.id}`, one.name) },
  { title: "kind", of: (one) => one.kind },
  { title: "dataset", of: (one) => one.dataset },
  { title: "AP (%)", kind: "number", of: (one) => percent(one.ap) },
  { title: "policy", kind: "formula", of: (one) => formula(one.formula) },
  { title: "when", kind: "when", of: (one) => time(one.created_at) },
];

const chosen = () => (sessionStorage.getItem(CHOSEN) || "").split(",").filter(Boolean);

function choose(ids) {
  sessionStorage.setItem(CHOSEN, ids.join(","));
  again();
}

function chooser(one) {
  const ids = chosen(), here = ids.includes(one.id);
  const change = (event) => choose(event.target.checked ? [...ids, one.id] : ids.filter((id) => id !== one.id));
  return make("input", { type: "checkbox", id: `choose-${one.id}`, checked: here, disabled: !here && ids.length >= MOST, onchange: change,
    "aria-label": `compare ${one.name}` });
}

function resultTable(items) {
  const ids = chosen();
  const action = ids.length > 1 ? make("a", { class: "button", id: "compare", href: `#/compare${query({ ids: ids.join(",") })}` }, `Compare the ${ids.length} chosen`) : null;
  return [
    make("p", { class: "row quiet" }, action,
      make("span", {}, ids.length > 1 ? null : ids.length ? "1 is chosen; choose another to compare it with." : "Choose two or more to compare them."),
      ids.length ? make("button", { id: "choose-none", onclick: () => choose([]) }, "Choose none") : null,
      ids.length >= MOST ? make("span", {}, `No more than ${MOST} can be compared.`) : null),
    table(resultColumns, items)];
}

export async function overview() {
  const [searches, distillations, results, workers] = await Promise.all(
    ["/searches?limit=10", "/distill?limit=10", "/results?limit=20", "/workers"].map((path) => ask(path)));
  if (!searches.items.length && !distillations.items.length && !results.items.length) return start("Nothing has been searched yet");
  const section = (title, path, page, shown, nothing) => [
    make("h2", {}, title), page.items.length ? shown(page.items) : quiet(nothing),
    page.next_cursor ? make("p", {}, link(`#/${path}`, `All ${title.toLowerCase()}`)) : null];
  const view = [
    section("Searches", "searches", searches, (items) => items.map(searchCard), "None yet."),
    section("Distillations", "distillations", distillations, (items) => items.map(distillationCard), "None yet."),
    make("h2", {}, "Workers"),
    workers.items.length ? table(workerColumns, workers.items) : quiet("None is there, so nothing can run. detkds serve starts one."),
    section("Results", "results", results, resultTable, "None yet. Searches and distillations leave theirs here when they end."),
  ];
  return { title: "", view, busy: [...searches.items, ...distillations.items].some((one) => BUSY.includes(one.state)) };
}

export function start(heading = "How to start") {
  const view = [
    make("h1", {}, heading),
    make("p", {}, "Start with the pair that ships with its teacher. It takes some minutes on a small machine."),
    make("pre", {}, "detkds search --pair digits_gfl --candidates 24\n\n# the same over HTTP\n"
      + `curl -X POST ${location.origin}/searches -H 'Content-Type: application/json' \\\n     -d '{"pair": "digits_gfl", "candidates": 24}'`),
    make("p", {}, "Then train the student with what was found, and take its checkpoint:"),
    make("pre", {}, "detkds distill --pair digits_gfl --policy search:ID\ndetkds results"),
  ];
  return { title: heading, view, busy: false };
}

// Inputs for what a list can be asked for; what they say stands in the address, so that it can be kept and sent on.
function filters(path, asked, fields) {
  const form = make("form", { class: "filters", role: "search", onsubmit: (event) => { event.preventDefault(); go(); } },
    fields.map(([name, label, choices]) => make("label", {}, make("span", {}, label), choices
      ? make("select", { id: `by-${name}`, name, onchange: () => go() },
        choices.map(([value, text]) => make("option", { value, selected: value === (asked[name] || "") }, text)))
      : make("input", { id: `by-${name}`, name, value: asked[name] || "", autocomplete: "off" }))),
    make("button", { id: "filter" }, "Filter"),
    fields.some(([name]) => asked[name]) ? link(`#/${path}`, "Clear") : null);
  const go = () => { location.hash = `#/${path}${query(Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim()])))}`; };
  return form;
}

const inWords = (states) => [["", "any"], ...states.map((state) => [state, state.toLowerCase()])];
const runFields = (states) => [["name", "Name contains"], ["tag", "Tag"], ["state", "State", inWords(states)], ["sort", "Order", RUNS_SORT]];
const resultFields = [["name", "Name contains"], ["tag", "Tag"], ["kind", "Kind", [["", "any"], ["search", "search"], ["distill", "distillation"]]],
  ["term", "Policy has"], ["sort", "Order", RESULTS_SORT]];

// asked: filters, order and cursor, from the address.
async function list(title, path, api, asked, fields, shown) {
  const wanted = Object.fromEntries([...fields.map(([name]) => name), "cursor"].map((name) => [name, asked[name]]));
  const page = await ask(`${api}${query({ limit: PAGE, ...wanted })}`);
  const next = { ...wanted, cursor: page.next_cursor };
  const nothing = fields.some(([name]) => wanted[name]) ? "Nothing is as the filters ask." : "None yet.";
  const view = [
    make("h1", {}, title), filters(path, wanted, fields),
    page.items.length ? shown(page.items) : quiet(nothing),
    make("p", { class: "row" }, wanted.cursor ? link(`#/${path}${query({ ...wanted, cursor: "" })}`, "First page") : null,
      page.next_cursor ? link(`#/${path}${query(next)}`, "Next page") : null)];
  return { title, view, busy: page.items.some((one) => BUSY.includes(one.state)) };
}

export const searches = (asked) => list("Searches", "searches", "/searches", asked, runFields(SEARCH_STATES), (items) => items.map(searchCard));
export const distillations = (asked) => list("Distillations", "distillations", "/distill", asked, runFields(DISTILLATION_STATES), (items) => items.map(distillationCard));
export const results = (asked) => list("Results", "results", "/results", asked, resultFields, resultTable);

const comparedColumns = [
  { title: "result", kind: "text", of: (one) => link(`#/results/${one.id}`, one.name) },
  { title: "AP (%)", kind: "number", of: (one) => percent(one.ap) },
  { title: "95 % interval", kind: "number", of: (one) => between(one.interval) },
  { title: "seeds", kind: "number", of: (one) => one.seeds.join(", ") || "–" },
  { title: "policy", kind: "formula", of: (one) => formula(one.formula) },
  { title: "pair", kind: "text pair", of: (one) => `${one.teacher} → ${one.student}` },
  { title: "iterations", kind: "number", of: (one) => (one.cost.iterations === null ? "–" : count(one.cost.iterations) + (one.cost.trunk_iterations ? ` (trunks ${count(one.cost.trunk_iterations)})` : "")) },
  { title: "took", kind: "number", of: (one) => span(one.cost.seconds) },
  { title: "made with", kind: "text", of: (one) => ["detkds_core", "torch", "device"].filter((name) => one.versions[name]).map((name) => `${name} ${one.versions[name]}`).join(", ") || "–" },
];

// Results in groups of the same images, the best of each first; the service says why others stand apart.
export async function compared(asked) {
  if (!asked.ids) throw new Problem(`Choose 2 to ${MOST} results to compare.`);
  const found = await ask(`/results/compare${query({ ids: asked.ids })}`);
  const view = [make("h1", {}, "Results side by side"),
    found.groups.map((group) => [
      make("h2", {}, group.dataset, group.dataset_digest ? make("span", { class: "quiet" }, ` (digest ${group.dataset_digest.slice(0, SHORT)})`) : null,
        `, ${group.images === null ? "an unknown number of report images" : plural(group.images, "report image")}`),
      group.why ? make("p", { class: "apart" }, `Apart: ${group.why}`) : null,
      table(comparedColumns, [...group.results].sort((a, b) => (b.ap ?? -1) - (a.ap ?? -1)))]),
    quiet("AP is the mean over the seeds. The interval is over seeds and images; one seed allows none."),
    make("p", {}, link("#/results", "Choose others"))];
  return { title: "Comparison", view, busy: false };
}
