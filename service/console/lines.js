/** The answer as bars: a line is a button that says "this is right", its bar the experts' shares. */

import { byId, counted, el, percent, quoted } from "./dom.js";

export const EXPERTS = { zero_shot: "zero-shot", evidence: "evidence", adapter: "adapter" };
export const LINES = 9; // one for each key

const rows = new Map(); // by label, and kept, so that bars move and the focus stays

/**
 * Show an answer's lines.
 *
 * `before` has the score of each label in the answer before, if there was one; `onRight` and
 * `onWrong` are called with a label.
 */
export function showLines(answer, before, { onRight, onWrong }) {
  const shares = new Map((answer.explanation?.experts ?? []).map((line) => [line.label, line]));
  const shown = answer.predictions.slice(0, LINES).map((line, place) => {
    const row = rows.get(line.label) ?? made(line.label, onRight, onWrong);
    fill(row, line, place + 1, before?.get(line.label), shares.get(line.label));
    return row;
  });
  rows.clear();
  for (const row of shown) rows.set(row.label, row);
  const list = byId("lines");
  const focused = document.activeElement;
  list.replaceChildren(...shown.map((row) => row.item));
  if (list.contains(focused)) focused.focus();
  byId("legend").hidden = shares.size === 0;
  byId("legend-before").hidden = before === null;
}

export function clearLines() {
  rows.clear();
  byId("lines").replaceChildren();
  byId("legend").hidden = true;
}

/** Return the label of a line, counted from 1. */
export const labelOf = (place) => [...rows.keys()][place - 1];

function made(label, onRight, onWrong) {
  const key = el("kbd", { "aria-hidden": "true" });
  const score = el("span", { class: "score" });
  const count = el("span", { class: "quiet count" });
  const parts = Object.keys(EXPERTS).map((expert) => el("span", { class: `part ${expert}` }));
  const ghost = el("span", { class: "ghost" });
  const bar = el("span", { class: "bar", "aria-hidden": "true" }, ...parts, ghost);
  const right = el("button", { type: "button", class: "line", onclick: () => onRight(label) },
    key, el("span", { class: "name" }, label), count, score, bar);
  const wrong = el("button", {
    type: "button", class: "wrong", title: `Not ${quoted(label)}`,
    "aria-label": `Not ${quoted(label)}`, onclick: () => onWrong(label),
  }, "✕");
  return { label, item: el("li", {}, right, wrong), key, score, count, parts, ghost, right };
}

function fill(row, line, place, before, shares) {
  row.key.textContent = place;
  row.score.textContent = percent(line.score);
  row.count.textContent = line.samples ? counted(line.samples, "label") : "no label yet";
  const widths = shares ?? { evidence: line.score };
  Object.keys(EXPERTS).forEach((expert, index) => {
    row.parts[index].style.setProperty("--share", widths[expert] ?? 0);
  });
  row.ghost.hidden = before === undefined;
  if (before !== undefined) row.ghost.style.setProperty("--share", before);
  const was = before === undefined ? "" : `, was ${percent(before)}`;
  row.right.setAttribute("aria-label",
    `${line.label}: ${row.score.textContent}${was}, ${row.count.textContent}. This is right`);
}
