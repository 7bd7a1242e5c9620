// A score against its limit, as a bar: 0 at the left, the limit in the middle, twice the limit and more at the right.

import { element, figure } from "./dom.js";

/** Draw the gauge of an item; `whatIf` is another limit that is tried, or null. */
export function gauge({ score, limit }, whatIf = null) {
  const share = (value) => `${100 * Math.min(1, Math.max(0, value / (2 * limit)))}%`;
  const words = `score ${figure(score)}, limit ${figure(limit)}`;
  const made = element("span", { class: `gauge ${score > limit ? "is-above" : ""}`, role: "img", "aria-label": words },
    element("i", { class: "gauge-fill" }),
    element("i", { class: "gauge-limit" }),
    whatIf === null ? "" : element("i", { class: "gauge-tried" }),
    score > 2 * limit ? element("i", { class: "gauge-beyond" }, "»") : "");
  made.style.setProperty("--score", share(score));
  if (whatIf !== null) made.style.setProperty("--at", share(whatIf));
  return made;
}
