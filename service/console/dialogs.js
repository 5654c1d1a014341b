/** One question at a time in a modal dialog: a confirming step, a reason, a key. */

import { byId } from "./dom.js";

byId("dialog-cancel").addEventListener("click", () => byId("dialog").close(""));

/**
 * Ask, and return what was typed (true where there is no field), or null when it was cancelled.
 * `danger` colours the step that takes something away.
 */
export function ask({ title, text, action, field = "", secret = false, danger = false, optional = false }) {
  const dialog = byId("dialog");
  const input = byId("dialog-input");
  byId("dialog-title").textContent = title;
  byId("dialog-text").textContent = text;
  byId("dialog-field").hidden = !field;
  byId("dialog-label").textContent = field;
  byId("dialog-go").textContent = action;
  byId("dialog-go").classList.toggle("danger", danger);
  input.type = secret ? "password" : "text";
  input.value = "";
  input.required = Boolean(field) && !optional;
  dialog.returnValue = "";
  dialog.showModal();
  (field ? input : byId("dialog-go")).focus();
  return new Promise((answer) => {
    dialog.addEventListener("close", () => {
      const typed = input.value;
      input.value = "";
      answer(dialog.returnValue === "go" ? (field ? typed : true) : null);
    }, { once: true });
  });
}
