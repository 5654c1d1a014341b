/** The field for a name that no line has, with completion over the learnt classes. */

import { byId, el, quoted } from "./dom.js";

const SHOWN_MAX = 20; // a hundred thousand options would stall the browser

let known = [];

/** Take the names to complete from, the most used first. */
export function setKnown(classes) {
  known = [...classes].sort((a, b) => b.samples - a.samples).map(({ label }) => label);
  suggest();
}

/** Call `teach` with each name that is entered. */
export function onNamed(teach) {
  byId("name").addEventListener("input", suggest);
  byId("naming").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = byId("name").value.trim();
    if (!name) return;
    byId("name").value = "";
    suggest();
    byId("answer").focus({ preventScroll: true }); // so that the single keys work again
    teach(name);
  });
}

function suggest() {
  const typed = byId("name").value.trim();
  const lower = typed.toLowerCase();
  const starting = known.filter((name) => name.toLowerCase().startsWith(lower));
  const holding = known.filter((name) => name.toLowerCase().indexOf(lower) > 0);
  byId("known-names").replaceChildren(
    ...[...starting, ...holding].slice(0, SHOWN_MAX).map((name) => el("option", { value: name })),
  );
  byId("name-hint").textContent = hint(typed);
}

/** Return what a name would mean: names are taken as written, and a slip makes another class. */
function hint(typed) {
  if (!typed || known.includes(typed)) return "";
  const alike = known.find((name) => name.toLowerCase() === typed.toLowerCase());
  if (alike) return `${quoted(alike)} is known; ${quoted(typed)} would be another class.`;
  return `${quoted(typed)} is a new class.`;
}
