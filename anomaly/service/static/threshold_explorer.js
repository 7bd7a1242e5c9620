// A slider for another threshold: it shows the verdicts of this page that would change, computed from their scores.

import { element, formatNumber } from "./dom.js";
import { wouldChange } from "./verdict.js";

const NUM_STEPS = 200;

/**
 * Fill an element with the slider.
 *
 * onTry(threshold or null): the user tries another threshold; null resets it. Returns {update(items, threshold)}: call it when
 * the images of the page or the active threshold change.
 */
export function createThresholdExplorer(root, { onTry }) {
  let items = [];
  let threshold = 1;
  let tried = null;
  let maximum = 3;

  const slider = element("input", { type: "range", id: "tried-threshold", min: 0, max: maximum, step: maximum / NUM_STEPS, value: 1, input: change });
  const number = element("output", { for: "tried-threshold", class: "number" });
  const ticks = element("div", { class: "ticks", "aria-hidden": "true" });
  const result = element("p", { class: "explorer-result", role: "status" });
  const resetButton = element("button", { type: "button", click: reset, disabled: true }, "Reset to the active threshold");
  root.replaceChildren(
    element("div", { class: "explorer-head" }, element("label", { for: "tried-threshold" }, "Try another threshold: "), number, resetButton),
    element("div", { class: "explorer-track" }, ticks, slider),
    result,
    element("p", { class: "note" }, "This changes only the preview on this page. The service keeps its own threshold, and the guarantee belongs to the model's threshold."));

  function change() {
    const value = Number(slider.value);
    tried = Math.abs(value - threshold) < maximum / NUM_STEPS / 2 ? null : value;
    onTry(tried);
    draw();
  }

  function reset() {
    slider.value = String(threshold);
    change();
    slider.focus();
  }

  function draw() {
    const value = tried ?? threshold;
    number.textContent = formatNumber(value);
    slider.setAttribute("aria-valuetext", tried === null ? `${formatNumber(value)}, the active threshold` : formatNumber(value));
    resetButton.disabled = tried === null;
    const scored = items.filter((item) => item.status === "ok");
    const rejected = scored.filter((item) => item.verdict === "defect").length;
    const active = `Active threshold ${formatNumber(threshold)}: ${scored.length - rejected} accepted, ${rejected} rejected.`;
    if (tried === null) {
      result.textContent = active;
      return;
    }
    const rejectedThen = scored.filter((item) => item.score > tried).length;
    const changes = scored.filter((item) => wouldChange(item, tried)).length;
    const verdicts = changes === 1 ? "1 verdict changes" : `${changes} verdicts change`;
    result.textContent = `${active} Threshold ${formatNumber(tried)}: ${scored.length - rejectedThen} accepted, ${rejectedThen} rejected; ${verdicts}.`;
  }

  function update(newItems, newThreshold) {
    items = newItems;
    threshold = newThreshold;
    maximum = 3 * Math.max(1, threshold);
    slider.max = String(maximum);
    slider.step = String(maximum / NUM_STEPS);
    if (tried === null) slider.value = String(threshold);
    const scored = items.filter((item) => item.status === "ok");
    ticks.replaceChildren(tick("tick-threshold", threshold / maximum), ...scored.map((item) => tick(`tick-${item.verdict}`, item.score / maximum)));
    draw();
  }

  update([], 1);
  return { update };
}

function tick(name, share) {
  const node = element("i", { class: name });
  node.style.setProperty("--at", String(Math.min(1, Math.max(0, share))));
  return node;
}
