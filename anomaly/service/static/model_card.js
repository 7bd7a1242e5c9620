// The card of a model: what it is, what it guarantees, and whether the images still come as those it was calibrated with.

import { element, figure } from "./dom.js";

/** Draw the card into an element. name, version: of the model; card: the parameters of its metadata; reason: why its file is not the one that answers. */
export function drawCard(root, { name, version, card, reason }) {
  const rows = [
    ["Model", `${name}, version ${version}`],
    ["Detector", `${card.detector}${card.precision === "fp32" ? "" : `, ${card.precision}`}`],
    ["Category", card.category || "–"],
    ["False alarms", guaranteeOf(card)],
    ["Calibrated", `${card.calibration_date.slice(0, 10)} on ${card.num_calibration} good images`],
    ["Drift", drift(card)],
    ["File", hashOf(card.sha256)],
    ["Runs on", card.provider.replace("ExecutionProvider", "")],
  ];
  root.replaceChildren(
    element("dl", { class: "facts" }, ...rows.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)])),
    reason ? element("p", { class: "alert" }, `Attention: ${reason}.`) : "");
}

/** Say in words what a model guarantees: its alpha and guarantee, and the threshold where it is judged by another than its own. */
export function guaranteeOf({ alpha, guarantee, threshold }) {
  const share = `${(100 * alpha).toPrecision(2).replace(/\.?0+$/, "")} %`;
  const words = guarantee === "bound" ? `at most ${share} of good parts, with 95 % confidence` : `at most ${share} of good parts, on average`;
  const moved = threshold === 1 ? "" : element("small", {}, `Certified at the model's own threshold 1; the threshold in force is ${figure(threshold)}.`);
  return element("span", {}, `certified ${words}`, moved);
}

function drift(card) {
  const num = `${card.drift_images.toLocaleString("en")} image${card.drift_images === 1 ? "" : "s"}`;
  if (card.drift === "alarm") {
    return element("span", { class: "alert" }, element("b", {}, "! Alarm"), ` in ${num} since it was loaded: ${card.drift_cause}.`);
  }
  if (card.drift === "none") return `none seen in ${num} since it was loaded`;
  return element("span", {}, `not watched: ${card.drift_cause}`);
}

/** Show the SHA-256 of a model's file, with a button that copies it. */
export function hashOf(sha256) {
  const code = element("code", { title: sha256 }, `${sha256.slice(0, 12)}…`);
  const button = element("button", { type: "button", class: "small", "aria-label": "Copy the SHA-256 of the model's file" }, "Copy");
  button.addEventListener("click", async () => {
    code.textContent = sha256;
    try {
      await navigator.clipboard.writeText(sha256);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard for pages that are not secure: it is marked, to be copied by hand
      button.textContent = "Marked";
    }
  });
  return element("span", { class: "hash" }, code, " ", button);
}
