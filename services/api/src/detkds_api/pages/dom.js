// What every page is made of: requests, elements and numbers. Every text reaches the page as text, never as HTML.

export const KEY = "detkds-key"; // session storage: the API key, when the service asks for one
export const BUSY = ["QUEUED", "RUNNING", "CONFIRMING"];
const SVG = ["svg", "g", "line", "path", "circle", "text", "title"];

export class Problem extends Error {}

export const authorization = () => {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
};

// body: sent as JSON. Throws Problem with the status of an answer that is none of success.
export async function ask(path, { method = "GET", body } = {}) {
  const headers = { ...authorization(), ...(body ? { "Content-Type": "application/json" } : {}) };
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const document = await response.json();
  if (!response.ok) {
    const problem = new Problem(document.detail || document.title);
    problem.status = response.status;
    throw problem;
  }
  return document;
}

// Parameters of a query; those that say nothing are left out.
export function query(asked) {
  const text = new URLSearchParams(Object.entries(asked).filter(([, value]) => value !== "" && value !== null && value !== undefined)).toString();
  return text && `?${text}`;
}

// Whoever has changed something asks for the page to be made again.
export const again = () => window.dispatchEvent(new Event("again"));

export function make(tag, attributes = {}, ...children) {
  const element = SVG.includes(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined));
  return element;
}

export const quiet = (...children) => make("p", { class: "quiet" }, ...children);
export const link = (href, ...children) => make("a", { href }, ...children);
export const count = (value) => value.toLocaleString();
export const percent = (value) => (value === null || value === undefined ? "–" : value.toFixed(1));
export const signed = (value, digits = 1) => (value === null || value === undefined ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`);
export const between = (interval, show = percent) => (interval && interval[0] !== null ? `${show(interval[0])} to ${show(interval[1])}` : "–");
export const time = (text) => new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
export const plural = (number, one, several = `${one}s`) => `${count(number)} ${number === 1 ? one : several}`;

export function left(seconds) {
  if (seconds === null || seconds === undefined) return "";
  return `${span(seconds)} left`;
}

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.round(seconds);
  if (whole < 90) return `${whole} s`;
  if (whole < 5400) return `${Math.round(whole / 60)} min`;
  return `${(whole / 3600).toFixed(1)} h`;
}

// A formula with at most four significant digits of a number, whole ones whole, as the command line shows it.
export const readable = (text) => text.replace(/(?<![\w.])\d+(?:\.\d*)?(?:e[+-]?\d+)?/gi, brief);

function brief(number) {
  const value = Number(number), most = Math.max(4, String(Math.trunc(value)).length);
  if (number.replace(/e.*/i, "").replace(/\D/g, "").replace(/^0+/, "").length <= most) return number;
  const short = Number(value.toPrecision(Math.min(100, most)));
  return (short < 1e-4 ? short.toExponential() : String(short)).replace(/e([+-])(\d)$/, "e$10$2");
}

// The exact one is its title.
export function formula(text, tag = "span") {
  const short = readable(text);
  return make(tag, { class: "formula", title: short === text ? null : text }, short);
}

export const badge = (state) => make("span", { class: `state ${state}` }, state.toLowerCase());
export const waits = (one) => (one.waiting ? make("div", { class: "quiet" }, `waiting: ${one.waiting}`) : null);

export function tile(label, value, note) {
  return make("div", { class: "card" }, make("div", { class: "quiet" }, label), make("div", { class: "big" }, value),
    note ? make("div", { class: "quiet" }, note) : null);
}

// columns: title, of (the content of a row's cell), kind (number, formula, when, text). On a narrow screen a row becomes a list.
export function table(columns, rows) {
  return make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, columns.map((column) => make("th", { class: column.kind === "number" ? "number" : null, scope: "col" }, column.title)))),
    make("tbody", {}, rows.map((row) => make("tr", {}, columns.map((column) =>
      make("td", { class: column.kind, "data-label": column.label ?? column.title }, column.of(row))))))));
}

const UNITS = { searching: "student iterations", confirming: "students", training: "iterations" }; // of the steps of a progress

export function bar(progress) {
  return [
    make("progress", { max: 1, value: progress.fraction, "aria-label": progress.step }),
    make("div", { class: "row quiet" },
      make("span", {}, `${progress.step}: ${count(progress.done)} of ${count(progress.total)} ${UNITS[progress.step] || ""}`),
      progress.message ? make("span", {}, progress.message) : null,
      make("span", { class: "end" }, left(progress.seconds_left))),
  ];
}

// Tags as links to what else has them. path: of the list.
export const tags = (path, names) => names.map((name) => make("a", { class: "tag", href: `#/${path}${query({ tag: name })}` }, name));
