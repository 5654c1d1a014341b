/** Forgetting a class: what it means beforehand, and what it did. */

import { act, segment } from "./api.js";
import { settled } from "./asking.js";
import { ask } from "./dialogs.js";
import { byId, counted, percent, quoted } from "./dom.js";

/** Forget a class of the table, once somebody has seen what that means. */
export async function forgetClass({ label, samples }) {
  const sure = await ask({
    title: `Forget the class ${quoted(label)}?`,
    text: `${counted(samples, "label")} of it will be taken out of what is learnt, out of the replay buffer and of `
      + "later tuning. What the adapter has taken from them stays in it until another one is published. There is "
      + "no way back but to send them again.",
    action: "Forget it",
    danger: true,
  });
  if (!sure) return;
  say(`Forgetting ${quoted(label)}…`);
  try {
    const { id } = await act("DELETE", `classes/${segment(label)}`, {}, say);
    const { version, report } = await settled(id);
    say(`${quoted(label)} is forgotten by version ${version}. ${told(report)}`);
  } catch (problem) {
    say(problem.message);
  }
}

/** Return what is known of the other classes: the same samples, asked with and without it. */
function told(report) {
  if (report?.before == null || report.after == null) return "";
  const { held_out: count, before, after } = report;
  return `The other classes, on ${counted(count, "held-out sample")}: ${percent(before)} → ${percent(after)}.`;
}

function say(text) {
  byId("classes-status").textContent = text;
}
