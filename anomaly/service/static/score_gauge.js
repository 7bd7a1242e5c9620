// A bar of a score against its threshold: 0 at the left, the threshold in the middle, twice the threshold or more at the right.

import { element, formatNumber } from "./dom.js";

/** Build the gauge of an item; `tried` is another threshold, or null. */
export function scoreGauge({ score, threshold }, tried = null) {
  const share = (value) => `${100 * Math.min(1, Math.max(0, value / (2 * threshold)))}%`;
  const label = `score ${formatNumber(score)}, threshold ${formatNumber(threshold)}`;
  const gauge = element("span", { class: `gauge ${score > threshold ? "is-above" : ""}`, role: "img", "aria-label": label },
    element("i", { class: "gauge-fill" }),
    element("i", { class: "gauge-threshold" }),
    tried === null ? "" : element("i", { class: "gauge-tried" }),
    score > 2 * threshold ? element("i", { class: "gauge-beyond" }, "»") : "");
  gauge.style.setProperty("--score", share(score));
  if (tried !== null) gauge.style.setProperty("--at", share(tried));
  return gauge;
}
