/** What to label next: the least certain predictions with their pictures, and classes that lack labels. */

import { get } from "./api.js";
import { pictureOf } from "./asking.js";
import { byId, el, percent, steadily } from "./dom.js";

const SHOWN = 8;

let predictions = [];
let pictures = new Map(); // object URLs by prediction id
const draw = steadily(byId("uncertain"), render);
let open = () => {};

/** Call `listener` with the prediction that somebody chooses. */
export const onChosen = (listener) => (open = listener);

/** Fetch, show and return the least certain predictions. */
export async function refreshQueue() {
  ({ predictions } = await get(`predictions?order=uncertain&limit=${SHOWN}`));
  await fetchPictures();
  draw();
  return predictions;
}

/** Show which classes the next labels help most, and return what each class's next is worth. */
export async function refreshSuggestions() {
  const body = await get("labelling");
  byId("suggestions").replaceChildren(...body.suggestions.map(({ label, why }) =>
    el("li", {}, el("strong", {}, label), " ", el("span", { class: "quiet" }, why))));
  return new Map(body.classes.map(({ label, expected_gain }) => [label, expected_gain]));
}

async function fetchPictures() {
  const kept = new Map();
  for (const { prediction_id: id } of predictions) {
    try {
      kept.set(id, pictures.get(id) ?? URL.createObjectURL(await pictureOf(id)));
    } catch {
      // It was thrown out meanwhile; the list says so the next time.
    }
  }
  for (const [id, url] of pictures) if (!kept.has(id)) URL.revokeObjectURL(url);
  pictures = kept;
  predictions = predictions.filter(({ prediction_id: id }) => kept.has(id));
}

function render() {
  byId("queue-empty").textContent = predictions.length ? "" : "No answer waits for a name.";
  byId("uncertain").replaceChildren(...predictions.map((prediction) => {
    const [first, second] = prediction.predictions;
    const doubt = second
      ? `${first.label} ${percent(first.score)} or ${second.label} ${percent(second.score)}`
      : `${first.label} ${percent(first.score)}`;
    return el("li", {}, el("button", {
      type: "button", "data-keep": prediction.prediction_id, onclick: () => open(prediction),
    },
    el("img", { src: pictures.get(prediction.prediction_id), alt: "" }),
    el("span", {}, doubt)));
  }));
}
