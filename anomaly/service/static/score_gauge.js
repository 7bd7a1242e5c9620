// A score against its threshold, as a bar: 0 at the left, the threshold in the middle, twice the threshold and more at the right.

import { element, figure } from "./dom.js";

/** Draw the gauge of an item; `whatIf` is another threshold that is tried, or null. */
export function gauge({ score, threshold }, whatIf = null) {
  const share = (value) => `${100 * Math.min(1, Math.max(0, value / (2 * threshold)))}%`;
  const words = `score ${figure(score)}, threshold ${figure(threshold)}`;
  const made = element("span", { class: `gauge ${score > threshold ? "is-above" : ""}`, role: "img", "aria-label": words },
    element("i", { class: "gauge-fill" }),
    element("i", { class: "gauge-threshold" }),
    whatIf === null ? "" : element("i", { class: "gauge-tried" }),
    score > 2 * threshold ? element("i", { class: "gauge-beyond" }, "»") : "");
  made.style.setProperty("--score", share(score));
  if (whatIf !== null) made.style.setProperty("--at", share(whatIf));
  return made;
}
