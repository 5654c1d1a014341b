/** The service's routes. A key is asked for once, stays in this tab, and travels as a header. */

import { byId } from "./dom.js";
import { ask } from "./dialogs.js";

const KEPT_AS = "everlens key";
const PATIENCE_MS = 60_000;

/** An answer that is an error: `kind` is the last part of the problem's type. */
export class Problem extends Error {
  constructor(status, about, retryAfterS) {
    super(about.detail ?? `the service answered ${status}`);
    this.status = status;
    this.kind = String(about.type ?? "").replace("/problems/", "");
    this.retryAfterS = retryAfterS;
  }
}

let question = null; // one at a time, however many requests wait for the key
let declined = false;

byId("enter-key").addEventListener("click", () => {
  declined = false;
  askForKey("").catch(() => {});
});

function askForKey(detail) {
  question ??= ask({
    title: "This service wants an API key",
    text: `${detail ? `${detail}. ` : ""}It is kept until this tab is closed.`,
    action: "Use it",
    field: "API key",
    secret: true,
  }).then((token) => {
    question = null;
    declined = !token;
    byId("enter-key").hidden = !declined;
    if (token) sessionStorage.setItem(KEPT_AS, token.trim());
    return Boolean(token);
  });
  return question;
}

/** Ask a route; return the response. Throws a Problem, or a TypeError where nobody answers. */
export async function send(method, path, content = {}) {
  const { json, headers = {}, signal } = content;
  const body = json === undefined ? content.body : JSON.stringify(json);
  const key = sessionStorage.getItem(KEPT_AS);
  const shown = key ? { Authorization: `Bearer ${key}` } : {};
  if (json !== undefined) shown["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method, body, signal, headers: { ...shown, ...headers }, cache: "no-store", credentials: "omit",
  });
  if (response.ok) return response;
  const about = await response.json().catch(() => ({}));
  const problem = new Problem(response.status, about, Number(response.headers.get("Retry-After")));
  if (response.status !== 401 || declined) throw problem;
  const newer = sessionStorage.getItem(KEPT_AS) !== key; // another request has asked meanwhile
  if (newer || (await askForKey(key ? problem.message : ""))) {
    return send(method, path, content);
  }
  throw problem;
}

export const get = async (path) => (await send("GET", path)).json();

/** Post something, or delete it, and again as long as the service says when; tell `waiting` why. */
export async function act(method, path, content = {}, waiting = () => {}) {
  for (const start = performance.now(); ; ) {
    try {
      return await (await send(method, path, content)).json();
    } catch (problem) {
      if (!(problem.retryAfterS > 0) || performance.now() - start > PATIENCE_MS) throw problem;
      waiting(`${problem.message}; trying again in ${problem.retryAfterS} s`);
      await new Promise((done) => setTimeout(done, problem.retryAfterS * 1000));
    }
  }
}

/** Return a part of a path that holds any text. */
export const segment = (text) => encodeURIComponent(text);
