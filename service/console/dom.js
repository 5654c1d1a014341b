/** Elements out of plain values. Texts go in as texts: nothing of the page ever reads markup. */

export const byId = (id) => document.getElementById(id);

/** Return an element; `on…` attributes are listeners, false and null ones are left out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** Return an element of a drawing. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Return a share as people read it; unknown is a dash. */
export function percent(share) {
  if (share == null) return "–";
  const points = share * 100;
  if (points > 0 && points < 1) return "<\u00a01\u00a0%";
  if (points > 99 && points < 100) return ">\u00a099\u00a0%";
  return `${Math.round(points)}\u00a0%`;
}

/** Return a number with its noun: 1 label, 2 labels. */
export function counted(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export const quoted = (name) => `“${name}”`;

/** Return how long ago a time in seconds since 1970 was. */
export function ago(seconds) {
  const passed = Math.max(0, Date.now() / 1000 - seconds);
  if (passed < 60) return "just now";
  for (const [length, unit] of [[86400, "day"], [3600, "hour"], [60, "minute"]]) {
    if (passed >= length) return `${counted(Math.floor(passed / length), unit)} ago`;
  }
}

/**
 * Return a function that shows a list anew, but not under somebody's pointer: then, once it has left.
 * A focus within `focusable` goes on to what has the same `data-keep`.
 */
export function steadily(list, render, focusable = list) {
  let stale = false;
  const draw = () => {
    stale = list.matches(":hover");
    if (stale) return;
    const focused = document.activeElement;
    const kept = focusable.contains(focused) ? focused.dataset.keep : null;
    render();
    if (kept) focusable.querySelector(`[data-keep="${CSS.escape(kept)}"]`)?.focus();
  };
  list.addEventListener("pointerleave", () => setTimeout(() => stale && draw()));
  return draw;
}
