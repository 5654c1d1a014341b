/** The page, wired together: what comes in by itself, what people do, and the single keys. */

import { showAccuracy, showExperts } from "./accuracy.js";
import { act, get } from "./api.js";
import { onForget, showClasses } from "./classes.js";
import { ask } from "./dialogs.js";
import { byId, el } from "./dom.js";
import * as hero from "./hero.js";
import { forgetClass } from "./forgetting.js";
import { follow } from "./live.js";
import { onNamed, setKnown } from "./naming.js";
import { accept } from "./pictures.js";
import { onChosen, refreshQueue, refreshSuggestions } from "./queue.js";
import { refreshVersions, setPinned } from "./versions.js";

const REST_MS = 1500;

let learning = null; // the last body of GET /learning
let line = null; // the experts' shares in the first line of the last answer

/**
 * Return a function that runs `run`, and once more where it is called meanwhile: never twice at
 * once, and resting ten times as long as it took, so that large lists are asked for less often.
 */
function unhurried(run) {
  let running = false;
  let wanted = false;
  return async function turn() {
    wanted = true;
    if (running) return;
    running = true;
    while (wanted) {
      wanted = false;
      const start = performance.now();
      await run().catch(() => {}); // what is wrong is said beside the title, by what is live
      const rest = Math.max(REST_MS, 10 * (performance.now() - start));
      await new Promise((done) => setTimeout(done, rest));
    }
    running = false;
  };
}

const refreshLists = unhurried(async () => {
  const known = await get("classes");
  setKnown(known.classes);
  await refreshVersions();
  showClasses(known, await refreshSuggestions());
});

const refreshQueued = unhurried(async () => hero.setQueue(await refreshQueue()));

function showLearning(body) {
  showVersion(body.version);
  const before = learning;
  learning = body;
  if (before?.learner.version !== body.learner.version || before?.pinned !== body.pinned) refreshLists();
  showAccuracy(body);
  showExperts(body.learner.expert_recall, line);
  setPinned(body.pinned);
  hero.setLearning(body);
  showNotices(body);
  byId("hold").hidden = body.held === undefined;
  byId("hold").textContent = body.held ? "Resume" : "Pause";
  byId("hold").setAttribute("aria-label", `${byId("hold").textContent} learning`);
}

function showVersion(version) {
  if (byId("version").textContent === String(version)) return;
  byId("version").textContent = version;
  refreshLists();
  refreshQueued();
  if (learning && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
    byId("version").animate({ transform: ["scale(1.5)", "scale(1)"] }, 400);
  }
}

function showNotices({ held, paused, pinned, refused_versions: refused }) {
  const notices = [
    paused && `Labels are not taken now: ${paused}.`,
    held && `Learning is paused: ${held}. Labels are taken and wait.`,
    pinned && `Version ${pinned} is pinned: new labels are learnt, and do not show in answers.`,
    ...refused.map(({ version, reason }) =>
      `${version === null ? "The head" : `Version ${version}`} could not be used here: ${reason}.`),
  ].filter(Boolean);
  const list = byId("notices");
  const same = notices.join("\n") === [...list.children].map((item) => item.textContent).join("\n");
  if (!same) list.replaceChildren(...notices.map((notice) => el("li", {}, notice)));
}

function showConnection(words, away = false) {
  const place = byId("connection");
  if (place.textContent !== words) place.textContent = words;
  place.classList.toggle("away", away);
}

async function turnLearning() {
  if (learning.held) {
    await act("POST", "learning/resume");
    return;
  }
  const reason = await ask({
    title: "Pause learning?",
    text: "The learner takes nothing up until learning is resumed, over restarts too. Answers go on, and labels "
      + "are taken until the queue is full.",
    action: "Pause",
    field: "Why (others read it)",
    optional: true,
  });
  if (reason !== null) await act("POST", "learning/pause", { json: reason ? { reason } : {} });
}

const KEYS = {
  n: () => byId("name").focus(),
  x: hero.rejectFirst,
  u: hero.takeBack,
  j: hero.next,
  o: () => byId("choose").click(),
};

function pressed(event) {
  const typing = event.target.matches("input:not([type=checkbox], [type=file]), textarea");
  const chord = event.ctrlKey || event.metaKey || event.altKey;
  if (event.key === "Escape" && event.target === byId("name")) byId("answer").focus();
  if (typing || chord || event.repeat || byId("dialog").open || !byId("keys").checked) return;
  const deed = /^[1-9]$/.test(event.key) ? () => hero.pick(Number(event.key)) : KEYS[event.key];
  if (!deed) return;
  event.preventDefault(); // or the n would stand in the field
  deed();
}

accept(hero.open);
onNamed(hero.teach);
onChosen(hero.choosePrediction);
onForget(forgetClass);
hero.onAnswer((answer) => {
  line = answer?.explanation?.experts?.[0] ?? null;
  if (learning) showExperts(learning.learner.expert_recall, line);
  if (answer) showVersion(answer.version);
  refreshQueued();
});
byId("next").addEventListener("click", hero.next);
byId("take-back").addEventListener("click", hero.takeBack);
byId("ask-again").addEventListener("click", hero.again);
byId("hold").addEventListener("click", () => turnLearning().catch((problem) => hero.say(problem.message)));
document.addEventListener("keydown", pressed);
follow({ learning: showLearning, connection: showConnection });
