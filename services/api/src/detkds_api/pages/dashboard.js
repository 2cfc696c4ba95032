// The dashboard: reads the service's documents and shows them, again and again while something runs. No library.

import { KEY, Problem, ask, link, make } from "./dom.js";
import { compared, distillations, overview, results, searches, start } from "./lists.js";
import { result } from "./result.js";
import { distillation, editing, search, stopEditing } from "./runs.js";

const FAST = 2000, SLOW = 10000; // milliseconds between two looks, while something runs and while nothing does
const main = document.getElementById("main");
let timer = 0;
let shown = ""; // what the page shows, to leave it alone (selection, focus, scroll) while nothing changes
let looks = 0; // begun; an answer that a later look has overtaken is not shown

const LISTS = { searches, distillations, results, compare: compared };
const PAGES = { searches: search, distillations: distillation, results: result };

function askForKey() {
  const input = make("input", { id: "key", type: "password", "aria-label": "API key", autocomplete: "off" });
  const save = (event) => { event.preventDefault(); sessionStorage.setItem(KEY, input.value.trim()); look(true); };
  return [make("h1", {}, "This service asks for a key"), make("p", {}, "It is the DETKDS_API_KEY of whoever started it; it stays in this tab."),
    make("form", { class: "row", onsubmit: save }, input, make("button", {}, "Show"))];
}

async function page() {
  const [path, query] = (location.hash || "#/").slice(1).split(/\?(.*)/s);
  const [, domain, id, more] = path.split("/");
  const asked = Object.fromEntries(new URLSearchParams(query || ""));
  if (!domain) return overview();
  if (domain === "start" && !id) return start();
  if (id && !more && Object.hasOwn(PAGES, domain)) return PAGES[domain](encodeURIComponent(id));
  if (!id && Object.hasOwn(LISTS, domain)) return LISTS[domain](asked);
  throw new Problem(`There is no page ${location.hash}`);
}

// fresh: another page than before is wanted, so that nothing on this one is worth keeping.
async function look(fresh = false) {
  clearTimeout(timer);
  const mine = ++looks;
  const service = document.getElementById("service");
  const status = (kind, text) => { service.className = `service ${kind}`; service.textContent = text; };
  let busy = true;
  try {
    const { title, view, busy: working } = await page();
    if (mine !== looks) return;
    busy = working;
    show(view, fresh, title);
    status("up", "the service answers");
  } catch (error) {
    if (mine !== looks) return;
    if (error.status === 401) {
      show(askForKey(), fresh, "Key");
      status("up", "the service asks for a key");
      return;
    }
    const passing = !(error instanceof Problem) || error.status === 429 || error.status >= 500;
    if (!passing || fresh) {
      const text = error instanceof Problem ? error.message : "The service does not answer. This page tries again by itself.";
      show([make("p", { class: "problem", role: "alert" }, text), make("p", {}, link("#/", "To the overview"))], fresh, "Problem");
    }
    if (error instanceof Problem) status("up", error.status === 429 ? "the service asks for patience; trying again" : "the service answers");
    else status("down", "the service does not answer; trying again");
    if (!(error instanceof Problem)) console.error(error);
  }
  if (!editing()) timer = setTimeout(look, document.hidden ? SLOW : busy ? FAST : SLOW);
}

// Whoever writes into a field is not disturbed; who stands on a link or a button stands there afterwards.
function show(view, fresh, title) {
  const next = make("main", {}, view);
  if (next.innerHTML === shown) return;
  const focused = main.contains(document.activeElement) && document.activeElement !== main ? document.activeElement : null;
  if (!fresh && focused && focused.matches("input:not([type=checkbox]), select, textarea") && !focused.closest(".labels")) return;
  const place = focused && (focused.id ? `#${focused.id}` : focused.getAttribute("href") && `[href="${CSS.escape(focused.getAttribute("href"))}"]`);
  shown = next.innerHTML;
  main.replaceChildren(...next.childNodes);
  document.title = title ? `${title} · DetKDS` : "DetKDS";
  for (const one of document.querySelectorAll("nav a")) {
    if (location.hash.startsWith(one.getAttribute("href"))) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  const first = main.querySelector(".labels input, #key");
  if (first) first.focus();
  else if (place && !fresh) main.querySelector(place)?.focus({ preventScroll: true });
  else if (fresh === "moved") main.focus({ preventScroll: true });
}

window.addEventListener("hashchange", () => { stopEditing(); scrollTo(0, 0); look("moved"); });
window.addEventListener("again", () => look());
document.addEventListener("visibilitychange", () => { if (!document.hidden && !editing()) look(); });
ask("/health").then((health) => { document.getElementById("version").textContent = `version ${health.version}`; }, () => {});
look(true);
