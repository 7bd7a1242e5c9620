// A threshold that is only tried: what it would do to the images of this session, told from their scores alone.

import { element, figure } from "./dom.js";
import { wouldChange } from "./verdict.js";

const FINEST = 200;

/**
 * Fill an element with the slider.
 *
 * onTry(threshold or null): another threshold is tried, or none. Gives {update(items, threshold)}, to be called with the images of the
 * session and the threshold in force whenever they change.
 */
export function createWhatIf(root, { onTry }) {
  let items = [];
  let threshold = 1;
  let tried = null;
  let most = 3;

  const slider = element("input", { type: "range", id: "what-if", min: 0, max: most, step: most / FINEST, value: 1, input: moved });
  const number = element("output", { for: "what-if", class: "number" });
  const marks = element("div", { class: "strip", "aria-hidden": "true" });
  const told = element("p", { class: "what-if-told", role: "status" });
  const reset = element("button", { type: "button", click: back, disabled: true }, "Reset to the threshold in force");
  root.replaceChildren(
    element("div", { class: "what-if-head" }, element("label", { for: "what-if" }, "What if the threshold were "), number, reset),
    element("div", { class: "what-if-track" }, marks, slider),
    told,
    element("p", { class: "note" }, "Only tried on the images of this page. The service goes on with its own threshold, to which its guarantee belongs."));

  function moved() {
    const value = Number(slider.value);
    tried = Math.abs(value - threshold) < most / FINEST / 2 ? null : value;
    onTry(tried);
    tell();
  }

  function back() {
    slider.value = String(threshold);
    moved();
    slider.focus();
  }

  function tell() {
    const at = tried ?? threshold;
    number.textContent = figure(at);
    slider.setAttribute("aria-valuetext", tried === null ? `${figure(at)}, the threshold in force` : figure(at));
    reset.disabled = tried === null;
    const scored = items.filter((item) => item.status === "ok");
    const rejected = scored.filter((item) => item.verdict === "defect").length;
    const now = `In force at ${figure(threshold)}: ${scored.length - rejected} accepted, ${rejected} rejected.`;
    if (tried === null) {
      told.textContent = now;
      return;
    }
    const would = scored.filter((item) => item.score > tried).length;
    const changes = scored.filter((item) => wouldChange(item, tried)).length;
    told.textContent = `${now} At ${figure(tried)} it would be ${scored.length - would} accepted, ${would} rejected: ${changes} would change.`;
  }

  function update(newItems, newThreshold) {
    items = newItems;
    threshold = newThreshold;
    most = 3 * Math.max(1, threshold);
    slider.max = String(most);
    slider.step = String(most / FINEST);
    if (tried === null) slider.value = String(threshold);
    const scored = items.filter((item) => item.status === "ok");
    marks.replaceChildren(thresholdMark(threshold / most), ...scored.map((item) => mark(item, most)));
    tell();
  }

  update([], 1);
  return { update };
}

function mark(item, most) {
  const made = element("i", { class: item.verdict === "defect" ? "strip-defect" : "strip-good" });
  made.style.setProperty("--at", String(Math.min(1, Math.max(0, item.score / most))));
  return made;
}

function thresholdMark(share) {
  const made = element("i", { class: "strip-threshold" });
  made.style.setProperty("--at", String(share));
  return made;
}
