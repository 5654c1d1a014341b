/** What the hero asks of the service: classify, label, refuse, forget. */

import { act, get, segment, send } from "./api.js";
import { LINES } from "./lines.js";

const WAIT_S = 30;
const LOOK_MS = 300;

/**
 * Return the answer about a picture: among `labels`, or all learnt classes where it is empty. With
 * `waitFor`, the answer of a version that has learnt that entry of the log.
 */
export function classify(blob, { labels = [], waitFor, waiting } = {}) {
  const form = new FormData();
  form.append("image", blob, "picture");
  form.append("top", LINES);
  form.append("explain", "true");
  for (const label of labels) form.append("labels", label);
  if (waitFor) {
    form.append("wait_for", waitFor);
    form.append("wait_s", WAIT_S);
  }
  return act("POST", "classify", { body: form }, waiting);
}

/** Say what the picture of a prediction is (`label`) or is not (`not_label`); return the receipt. */
export async function feedback(predictionId, blob, said, waiting) {
  try {
    return await act("POST", "feedback", { json: { prediction_id: predictionId, ...said } }, waiting);
  } catch (problem) {
    // Another replica answered, or it was long ago; but the picture is here.
    if (problem.kind !== "unknown-prediction" || said.label === undefined) throw problem;
    return sample(blob, said.label, waiting);
  }
}

/** Teach a picture that has no prediction; return the receipt. */
export function sample(blob, label, waiting) {
  const form = new FormData();
  form.append("image", blob, "picture");
  form.append("label", label);
  form.append("id", `console-${crypto.getRandomValues(new BigUint64Array(2)).join("-")}`);
  return act("POST", "samples", { body: form }, waiting);
}

/** Forget a sample; return the receipt. */
export const forget = (id, waiting) => act("DELETE", `samples/${segment(id)}`, {}, waiting);

/** Return what became of an entry of the log, once it is no longer only accepted. */
export async function settled(id) {
  for (;;) {
    const outcome = await get(`samples/${segment(id)}`);
    if (outcome.status === "dead") throw new Error(`It could not be done: ${outcome.reason}`);
    if (outcome.status !== "accepted") return outcome;
    await new Promise((done) => setTimeout(done, LOOK_MS));
  }
}

/** Return the picture of a prediction. */
export const pictureOf = async (predictionId) =>
  (await send("GET", `predictions/${segment(predictionId)}/image`)).blob();
