/** The learnt classes as a table: sorted by a column, searched by name, two hundred rows at most. */

import { byId, counted, el, percent, quoted, steadily } from "./dom.js";

const ROWS_MAX = 200;
const COLUMNS = [
  { key: "label", name: "class", say: (value) => value, up: true },
  { key: "samples", name: "labels", say: (value) => value.toLocaleString("en") },
  { key: "recall", name: "recall", say: percent, bar: true, up: true },
  { key: "forgetting", name: "forgotten", say: (value) => percent(value) },
  { key: "weight", name: "weight", say: (value) => value?.toFixed(2) ?? "–" },
  { key: "gain", name: "next label", say: (value) => (value == null ? "–" : `+${value.toFixed(1)}`) },
];

let classes = [];
let forget = () => {};
let sorting = { key: "samples", up: false };

const draw = steadily(byId("class-rows"), render, byId("class-table"));
byId("find").addEventListener("input", render);

/** Call `listener` with the class that somebody wants to be forgotten. */
export const onForget = (listener) => (forget = listener);

/** Take the body of GET /classes; `gains` maps a label to what the next one is expected to bring. */
export function showClasses(body, gains = new Map()) {
  classes = body.classes.map((known) => ({ ...known, gain: gains.get(known.label) ?? null }));
  byId("classes-empty").hidden = classes.length > 0;
  byId("classes").hidden = classes.length === 0;
  draw();
}

function render() {
  const columns = COLUMNS.filter(({ key }) => key !== "gain" || classes.some(({ gain }) => gain !== null));
  byId("class-heads").replaceChildren(...columns.map(head), el("td"));
  const wanted = byId("find").value.trim().toLowerCase();
  const found = classes.filter(({ label }) => label.toLowerCase().includes(wanted)).sort(order);
  byId("class-rows").replaceChildren(...found.slice(0, ROWS_MAX).map((known) => row(known, columns)));
  byId("classes-shown").textContent = found.length > ROWS_MAX
    ? `the first ${ROWS_MAX} of ${counted(found.length, "class", "classes")}`
    : counted(found.length, "class", "classes");
}

function head({ key, name, up = false }) {
  const sorted = sorting.key === key;
  const turn = () => {
    sorting = { key, up: sorted ? !sorting.up : up };
    render();
    byId("class-heads").querySelector(`[data-keep="by ${key}"]`).focus();
  };
  return el("th", {
    scope: "col", class: key === "label" ? null : "number",
    "aria-sort": sorted ? (sorting.up ? "ascending" : "descending") : null,
  }, el("button", { type: "button", "data-keep": `by ${key}`, onclick: turn }, name));
}

function row(known, columns) {
  return el("tr", {}, ...columns.map(({ key, say, bar }) => {
    if (key === "label") return el("th", { scope: "row" }, known.label);
    const cell = el("td", { class: "number" }, say(known[key]));
    if (bar && known[key] !== null) {
      const share = el("span", { class: "small-bar", "aria-hidden": "true" });
      share.style.setProperty("--share", known[key]);
      cell.prepend(share);
    }
    return cell;
  }), el("td", { class: "number" }, el("button", {
    type: "button", class: "link", "data-keep": `forget ${known.label}`, "aria-label": `Forget ${quoted(known.label)}`,
    onclick: () => forget(known),
  }, "forget")));
}

/** Compare by the sorted column; what is not known yet comes last either way. */
function order(one, other) {
  const [a, b] = [one[sorting.key], other[sorting.key]];
  if (a === null || b === null) return (a === null) - (b === null);
  const rising = typeof a === "string" ? a.localeCompare(b) : a - b;
  return sorting.up ? rising : -rising;
}
