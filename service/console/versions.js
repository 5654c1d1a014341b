/** The line of versions: what the gate said of each, and the two ways back to one. */

import { act, get } from "./api.js";
import { settled } from "./asking.js";
import { ask } from "./dialogs.js";
import { ago, byId, counted, el, percent, steadily } from "./dom.js";

const SHOWN = 8; // the service keeps so many ready to answer

let lineage = { current: 0, versions: [] };
let pinned = null;
const draw = steadily(byId("versions"), render);

/** Fetch the newest versions, and the pinned one however old it is, and show them. */
export async function refreshVersions() {
  const found = await get(`versions?limit=${SHOWN}`);
  if (pinned !== null && !found.versions.some(({ version }) => version === pinned)) {
    found.versions.push(await get(`versions/${pinned}`));
  }
  lineage = found;
  draw();
}

/** Know which version answers in place of the newest, or null. */
export function setPinned(version) {
  if (version === pinned) return;
  pinned = version;
  draw();
}

function render() {
  const items = lineage.versions.map(item);
  byId("versions").replaceChildren(...(items.length ? items : [
    el("li", { class: "quiet" }, "Version 0 answers: the frozen model. Each batch of labels makes a new one."),
  ]));
}

function item(record) {
  const { version, published_at, samples, classes, gate, restored_from } = record;
  const answers = version === lineage.current;
  return el("li", { class: answers ? "current" : null, "aria-current": answers ? "true" : null },
    el("p", {}, el("strong", {}, `version ${version}`),
      answers ? el("span", { class: "tag" }, "answers") : null,
      version === pinned ? el("span", { class: "tag" }, "pinned") : null,
      el("span", { class: "quiet" }, ago(published_at))),
    el("p", {}, el("span", { class: "quiet" },
      `${counted(samples, "label")}, ${counted(classes, "class", "classes")}`),
      version === lineage.versions[0].version ? null : deed("Go back", version, activate),
      deed(version === pinned ? "Unpin" : "Pin", version, turnPin)),
    restored_from == null ? null : el("p", { class: "gate" }, `Goes on from version ${restored_from}`),
    gate ? el("p", { class: "gate" }, verdict(gate)) : null);
}

function verdict({ published, held_out, before, after, error }) {
  const measured = before == null
    ? ` (too few held out: ${held_out})`
    : `: ${percent(before)} → ${percent(after)} ± ${(100 * (error ?? 0)).toFixed(1)} on ${held_out} held out`;
  return `${published ? "New adapter passed the gate" : "Adapter held back by the gate"}${measured}`;
}

function deed(name, version, run) {
  return el("button", {
    type: "button", class: "link", "data-keep": `${run.name} ${version}`, "aria-label": `${name}: version ${version}`,
    onclick: () => run(version).catch((problem) => say(problem.message)),
  }, name);
}

async function turnPin(version) {
  const off = version === pinned;
  const sure = await ask(off
    ? {
      title: "Take the pin off?",
      text: "Every service answers with the newest version again, within about a second.",
      action: "Take it off",
    }
    : {
      title: `Answer with version ${version}?`,
      text: `Every service answers with version ${version} until the pin is taken off. Learning goes `
        + "on, but no new label shows in an answer meanwhile. Nothing is lost.",
      action: `Pin version ${version}`,
    });
  if (!sure) return;
  await act(off ? "DELETE" : "POST", `versions/${version}/pin`);
  say(off ? "The newest version answers again." : `Version ${version} is pinned.`);
}

async function activate(version) {
  const after = lineage.versions[0].samples - lineage.versions.find((v) => v.version === version).samples;
  const sure = await ask({
    title: `Go back to version ${version}?`,
    text: `Learning goes on from version ${version}: its adapter is taken up, and what was learnt after it `
      + `(${counted(Math.max(0, after), "label")}) is forgotten and not learnt again by itself. This is an entry of `
      + "the log like a label; it makes a new version. There is no way to undo it but to send those labels again.",
    action: `Go back to version ${version}`,
    danger: true,
  });
  if (!sure) return;
  const { id } = await act("POST", `versions/${version}/activate`);
  say(`Going back to version ${version}…`);
  const { version: made } = await settled(id);
  say(`Gone back to version ${version}: version ${made} goes on from it.`);
}

function say(text) {
  byId("versions-status").textContent = text;
}
