/** How often the answer was right before the label came: a figure, a line, and what it rests on. */

import { byId, counted, el, percent, svg } from "./dom.js";
import { EXPERTS } from "./lines.js";

const POINTS_MAX = 400;
const [WIDTH, HEIGHT, MARGIN, SCALE] = [360, 120, 8, 38]; // SCALE: room for what the lines mean
const KEPT_AS = "everlens accuracy"; // over a reload of this tab

let points = JSON.parse(sessionStorage.getItem(KEPT_AS) ?? "[]"); // { at: labels scored, recent, all }

/** Show the learner's figures of GET /learning. */
export function showAccuracy({ learner, backlog, accepted_through, learned_through }) {
  record(learner);
  byId("experts-section").hidden = byId("figures").hidden = !learner.samples;
  byId("accuracy").replaceChildren(...drawn(learner));
  const lag = accepted_through - learned_through;
  const figures = {
    "labels learnt": learner.samples?.toLocaleString("en"),
    classes: learner.classes?.toLocaleString("en"),
    "right over all": percent(learner.prequential_accuracy),
    forgotten: points_of(learner.forgetting),
    "waiting to be learnt": backlog.entries.toLocaleString("en"),
    "entries behind": Math.max(0, lag).toLocaleString("en"),
    "labels a second": learner.samples_per_s?.toFixed(1),
    exemplars: learner.exemplars?.toLocaleString("en"),
  };
  byId("figures").replaceChildren(
    ...Object.entries(figures).map(([name, value]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, value ?? "–"))),
  );
}

/** Show each expert's recall, and its share in the first line of the last answer. */
export function showExperts(recall, line) {
  byId("experts").replaceChildren(
    el("thead", {}, el("tr", {},
      el("th", { scope: "col" }, "expert"),
      el("th", { scope: "col", class: "number" }, "recall alone"),
      line ? el("th", { scope: "col", class: "number" }, "of this answer") : null)),
    el("tbody", {}, ...Object.entries(EXPERTS).map(([key, name]) =>
      el("tr", {},
        el("th", { scope: "row" }, el("span", { class: `swatch ${key}`, "aria-hidden": "true" }), name),
        el("td", { class: "number" }, percent(recall?.[key])),
        line ? el("td", { class: "number" }, percent(line[key])) : null))),
  );
}

const points_of = (share) => (share == null ? "–" : `${(share * 100).toFixed(1)} points`);

function record({ prequential_samples: at, prequential_accuracy_recent: recent, prequential_accuracy: all }) {
  if (recent == null) return;
  const last = points.at(-1);
  if (last && at < last.at) points = []; // another learner, or one that went back
  if (last?.at === at) return;
  points.push({ at, recent, all });
  if (points.length > POINTS_MAX) points = points.filter((_, index) => index % 2 === 1);
  sessionStorage.setItem(KEPT_AS, JSON.stringify(points));
}

function drawn({ prequential_accuracy_recent: recent, prequential_samples: scored }) {
  if (recent == null) {
    return [el("p", { class: "quiet" },
      "Each picture is answered before its label is learnt, and that counts. The first of a class "
      + "does not: name a second one.")];
  }
  const said = `${percent(recent)} of the last hundred or so were right`;
  return [
    el("p", { class: "headline" }, el("strong", {}, percent(recent)), " right lately"),
    chart(said),
    el("p", { class: "quiet" }, seen(scored)),
  ];
}

/** Return the chart in words. */
function seen(scored) {
  const shares = points.map((point) => point.recent);
  const range = points.length > 1
    ? ` Since this page was opened: ${percent(Math.min(...shares))} to ${percent(Math.max(...shares))}; dashed: over all.`
    : "";
  return `${counted(scored, "label")} scored so far.${range}`;
}

function chart(title) {
  const [first, last] = [points[0].at, points.at(-1).at];
  const x = (at) => MARGIN + ((WIDTH - 2 * MARGIN - SCALE) * (at - first)) / Math.max(1, last - first);
  const y = (share) => MARGIN + (HEIGHT - 2 * MARGIN) * (1 - share);
  const line = (key) => points.map((point) => `${x(point.at).toFixed(1)},${y(point[key]).toFixed(1)}`).join(" ");
  const end = points.at(-1);
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title, class: "chart" },
    ...[0, 0.5, 1].flatMap((share) => [
      svg("line", { class: "grid", x1: MARGIN, x2: WIDTH - MARGIN - SCALE, y1: y(share), y2: y(share) }),
      svg("text", { x: WIDTH, y: y(share) + 4, "text-anchor": "end" }, percent(share)),
    ]),
    svg("polyline", { class: "all", points: line("all") }),
    svg("polyline", { class: "recent", points: line("recent") }),
    svg("circle", { class: "end", cx: x(end.at), cy: y(end.recent), r: 4 }));
}
