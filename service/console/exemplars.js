/** The labelled pictures that lie nearest to the one that is asked about: where a label may be wrong. */

import { byId, el, quoted } from "./dom.js";

const PICTURE = /^data:image\/(jpeg|png|webp);base64,/;

/** Show an explanation's exemplars, or its reason why there are none; `onWrong` is called with one. */
export function showExemplars(explanation, onWrong) {
  const { exemplars, note } = explanation ?? {};
  const box = byId("exemplars");
  box.hidden = !exemplars?.length && !note;
  if (box.hidden) return;
  box.replaceChildren(
    el("h2", {}, "Nearest labelled pictures"),
    exemplars?.length
      ? el("ul", {}, ...exemplars.map((exemplar) => item(exemplar, onWrong)))
      : el("p", { class: "quiet" }, note),
  );
}

function item(exemplar, onWrong) {
  const { label, similarity, image } = exemplar;
  return el("li", {},
    PICTURE.test(image) ? el("img", { src: image, alt: "", width: 72, height: 72 }) : null,
    el("span", { class: "name" }, label),
    el("span", { class: "quiet" }, `similarity ${similarity.toFixed(2)}`),
    el("button", {
      type: "button", class: "link", "aria-label": `Forget this label ${quoted(label)}`,
      onclick: () => onWrong(exemplar),
    }, "wrong?"));
}
