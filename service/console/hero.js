/** The hero: a picture, its answer, the right name, and the answer that knows it. */

import { classify, feedback, forget, pictureOf, sample } from "./asking.js";
import { ask } from "./dialogs.js";
import { byId, percent, quoted } from "./dom.js";
import { showExemplars } from "./exemplars.js";
import { clearLines, labelOf, showLines } from "./lines.js";
import { prepared } from "./pictures.js";

let shown = null; // { blob, url, answer, before, busy, taught }
const files = []; // that were chosen together
let queue = []; // predictions of anybody, the least certain first
let held = null; // why the learner takes nothing up now
let anyClass = false; // is learnt, as far as is known
let changed = () => {};

/** Call `listener` with each answer, or null where there is none. */
export const onAnswer = (listener) => (changed = listener);

/** Know from the body of GET /learning whether there is anything to ask among, and what holds it up. */
export function setLearning(body) {
  held = body.held ?? body.paused;
  anyClass ||= body.learner.classes > 0;
}

/** Take the predictions that want a name, for the key that shows the next. */
export function setQueue(predictions) {
  queue = predictions.filter(({ prediction_id: id }) => id !== shown?.answer?.prediction_id);
  showNext();
}

/** Show the first of some files; the others are next. */
export function open(chosen) {
  files.push(...chosen);
  next();
}

/** Go on to the next file, or else to the least certain prediction. */
export function next() {
  return attempt(async () => {
    if (files.length) await begin(await prepared(files.shift()));
    else if (queue.length) await openPrediction(queue.shift());
  });
}

/** Show the picture of a prediction; a name for it is feedback on that prediction. */
export function choosePrediction(prediction) {
  byId("hero").scrollIntoView({ block: "nearest" });
  return attempt(() => openPrediction(prediction));
}

async function openPrediction({ prediction_id: id }) {
  await begin(await pictureOf(id), id);
}

/** Do something with a picture, which may be none, or kept no longer. */
async function attempt(deed) {
  try {
    await deed();
  } catch (problem) {
    say(problem.message);
  }
  showNext();
}

/** Ask about the same picture again, among other names. */
export const again = () => shown && look(shown);

/** The line with this number is right. */
export const pick = (place) => labelOf(place) !== undefined && teach(labelOf(place));

/** The first line is wrong. */
export const rejectFirst = () => labelOf(1) !== undefined && reject(labelOf(1));

/** The picture is of this class. */
export function teach(label) {
  return learn(`Learning ${quoted(label)}…`, label, ({ blob, answer }) =>
    answer ? feedback(answer.prediction_id, blob, { label }, say) : sample(blob, label, say));
}

/** The picture is not of this class. */
export function reject(label) {
  return learn(`Learning that this is not ${quoted(label)}…`, label, ({ blob, answer }) =>
    feedback(answer.prediction_id, blob, { not_label: label }, say));
}

/** Forget the label that was given last. */
export function takeBack() {
  if (shown?.taught) learn("Taking it back…", null, ({ taught }) => forget(taught, say));
}

/** Forget the label of an exemplar, once somebody has seen what that means. */
async function forgetExemplar({ sample_id: id, label }) {
  const sure = await ask({
    title: `Forget this label ${quoted(label)}?`,
    text: "The sample is taken out of what is learnt, exactly, and out of the replay buffer. What "
      + "the adapter has taken from it stays until another one is published.",
    action: "Forget it",
    danger: true,
  });
  if (sure) await learn(`Forgetting a label ${quoted(label)}…`, null, () => forget(id, say));
}

async function begin(blob, predictionId) {
  if (shown) URL.revokeObjectURL(shown.url);
  shown = { blob, url: URL.createObjectURL(blob), answer: null, before: null };
  byId("picture").src = shown.url;
  byId("hero").classList.add("begun");
  byId("answer").classList.remove("busy");
  clearLines();
  showAfter();
  await look(shown, predictionId);
}

/** Ask what a picture is, and show it; an answer that comes too late for it is dropped. */
async function look(asked, predictionId) {
  if (!anyClass && !candidates().length) {
    fail(asked, { kind: "nothing-learnt" });
    return;
  }
  say("Looking…");
  try {
    const answer = await classify(asked.blob, { labels: candidates(), waiting: say });
    asked.answer = predictionId ? { ...answer, prediction_id: predictionId } : answer;
    asked.before = null;
    if (asked === shown) show(asked, whatItIs(answer));
  } catch (problem) {
    if (asked === shown) fail(asked, problem);
  }
  changed(asked.answer);
}

/** Send something to be learnt, wait until it is, and show what became of the answer. */
async function learn(doing, label, deliver) {
  const asked = shown;
  if (!asked || asked.busy) return;
  asked.busy = true;
  byId("answer").classList.add("busy");
  byId("answer").scrollIntoView({ block: "nearest" });
  say(doing);
  const start = performance.now();
  try {
    const { id } = await deliver(asked);
    asked.taught = id.startsWith("forget-") ? null : id;
    if (held && asked === shown) say(`Accepted. Learning is paused (${held}), so it waits.`);
    const before = new Map((asked.answer?.predictions ?? []).map((line) => [line.label, line.score]));
    asked.answer = await answerKnowing(asked, id, label);
    asked.before = before;
    if (asked === shown) show(asked, whatChanged(asked, label, performance.now() - start));
  } catch (problem) {
    if (asked === shown) fail(asked, problem);
  }
  asked.busy = false;
  if (asked === shown) {
    byId("answer").classList.remove("busy");
    showAfter();
  }
  changed(asked.answer);
}

/** Return the answer of a version that has learnt an entry of the log, however long that takes. */
async function answerKnowing(asked, id, label) {
  for (;;) {
    try {
      return await classify(asked.blob, { labels: candidates(label), waitFor: id, waiting: say });
    } catch (problem) {
      if (problem.kind !== "not-learnt-in-time" || asked !== shown) throw problem;
      say(held ? `Learning is paused (${held}); the label waits.` : "Accepted, and not learnt yet; still waiting…");
    }
  }
}

/** Return the names that somebody wrote down to ask among; the label that was taught joins them. */
function candidates(label) {
  const names = byId("labels").value.split("\n").map((name) => name.trim()).filter(Boolean);
  return [...new Set(names.length && label ? [...names, label] : names)];
}

function show(asked, words) {
  anyClass = true;
  showLines(asked.answer, asked.before, { onRight: teach, onWrong: reject });
  showExemplars(asked.answer.explanation, forgetExemplar);
  say(words);
}

function fail(asked, problem) {
  if (problem.kind === "nothing-learnt") {
    asked.answer = null;
    clearLines();
    showExemplars(null);
    say("No class is learnt yet: name what the picture shows.");
    byId("name").focus();
  } else say(problem.message);
}

/** Return an answer in words; `known` is the probability that it is of any learnt class. */
function whatItIs({ predictions, known, version }) {
  const [first] = predictions;
  const doubt = known !== null && known < 0.5 && !candidates().length
    ? ` Perhaps none of the learnt classes (known: ${percent(known)}).`
    : "";
  return `${quoted(first.label)} with ${percent(first.score)}, says version ${version}.${doubt}`;
}

/** Return in words what a label did to the answer; null where one was forgotten. */
function whatChanged({ answer, before }, label, tookMs) {
  const by = `by version ${answer.version} in ${(tookMs / 1000).toFixed(1)}\u00a0s`;
  if (label === null) return `Forgotten ${by}.`;
  const learnt = `Learnt ${by}`;
  const now = answer.predictions.find((line) => line.label === label);
  if (!now) return `${learnt}.`;
  const was = before.get(label);
  const change = was === undefined ? `is ${percent(now.score)} now` : `${percent(was)} → ${percent(now.score)}`;
  return `${learnt}: ${quoted(label)} ${change}.`;
}

/** Offer what can be done next. */
function showAfter() {
  byId("take-back").hidden = !shown?.taught || shown.busy;
  showNext();
}

function showNext() {
  byId("next").hidden = !files.length && !queue.length;
  byId("next-count").textContent = files.length ? `Next, ${files.length} more` : "Next uncertain";
}

/** Say something about the picture, or what was asked last. */
export function say(text) {
  byId("status").textContent = text;
}
