/** What changes on the other side, as it happens: told by /events, or asked for each second. */

import { get, send } from "./api.js";

const ASK_MS = 1000;
const SILENCE_MS = 60_000; // longer than the service's keep-alive: the line is dead
const TRY_STREAM_AGAIN_MS = 30_000;

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/**
 * Follow the service until the page is closed.
 *
 * `on.learning` gets each body of GET /learning, `on.connection` a word on how that is known, or
 * the reason why it is not.
 */
export async function follow(on) {
  for (;;) {
    await listen(on).catch(() => {}); // no place free, or the line broke: ask meanwhile
    const askUntil = Date.now() + TRY_STREAM_AGAIN_MS;
    do {
      try {
        const body = await get("learning");
        on.connection("live");
        shown(on, body);
      } catch (problem) {
        on.connection(problem.status ? problem.message : "no answer from the service", true);
      }
      await pause(document.hidden ? 10 * ASK_MS : ASK_MS);
    } while (Date.now() < askUntil);
  }
}

/** Hand on server-sent events until the stream ends. EventSource could not show a key. */
async function listen(on) {
  const abort = new AbortController();
  let watch = setTimeout(() => abort.abort(), SILENCE_MS);
  try {
    const headers = { Accept: "text/event-stream" };
    const { body } = await send("GET", "events", { headers, signal: abort.signal });
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(watch);
      watch = setTimeout(() => abort.abort(), SILENCE_MS);
      on.connection("live");
      const events = (rest + value).split(/\r?\n\r?\n/);
      rest = events.pop();
      for (const event of events) hand(event, on);
    }
  } finally {
    clearTimeout(watch);
    abort.abort();
  }
}

function hand(event, on) {
  const fields = event.split(/\r?\n/).map((line) => /^([a-z]+): ?(.*)$/.exec(line)).filter(Boolean);
  const all = (name) => fields.filter((field) => field[1] === name).map((field) => field[2]);
  const data = all("data").join("\n");
  if (all("event").at(-1) === "learning" && data) shown(on, JSON.parse(data));
}

/** A fault of the page's own is reported as one, and not taken for a service that is away. */
function shown(on, body) {
  try {
    on.learning(body);
  } catch (fault) {
    reportError(fault);
  }
}
