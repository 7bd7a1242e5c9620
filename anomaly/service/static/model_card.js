// The card of a model: its detector, its guarantee, and the drift of its images.

import { copyButton, element, factList, formatCount, formatNumber } from "./dom.js";

/** Draw the card into an element. card: parameters of the metadata; notice: warning about the model file, or "". */
export function drawModelCard(root, { name, version, card, notice }) {
  root.replaceChildren(
    factList([
      ["Model", `${name}, version ${version}`],
      ["Detector", `${card.detector}${card.precision === "fp32" ? "" : `, ${card.precision}`}`],
      ["Category", card.category || "–"],
      ["False alarms", guaranteeText(card)],
      ["Calibrated", calibrationText(card)],
      ["Drift", driftText(card)],
      ["File", fileHash(card.sha256)],
      ["Provider", card.provider.replace("ExecutionProvider", "")],
    ]),
    notice ? element("p", { class: "alert" }, `Warning: ${notice}.`) : "");
}

/** Describe the guarantee of a model, and its threshold if it differs from the certified threshold. */
export function guaranteeText({ alpha, guarantee, threshold, basis }) {
  const share = `${(100 * alpha).toPrecision(2).replace(/\.?0+$/, "")} %`;
  const limit = `at most ${share} of good parts, ${guarantee === "bound" ? "with 95 % confidence" : "on average"}`;
  const other = threshold === 1 ? "" : element("small", {}, `Certified at the model's own threshold 1; the active threshold is ${formatNumber(threshold)}.`);
  const construction = basis ? element("small", {}, `Calibration: ${basis}.`) : "";
  return element("span", {}, `certified ${basis?.includes("approximate") ? "approximately " : ""}${limit}`, construction, other);
}

/** Describe the calibration of a model. */
export function calibrationText(card) {
  return `${card.calibration_date.slice(0, 10)} on ${formatCount(card.num_calibration, "good image")}`;
}

function driftText(card) {
  const images = formatCount(card.drift_images, "image");
  if (card.drift === "alarm") {
    return element("span", { class: "alert" }, element("b", {}, "! Alarm"), ` in ${images} since loading: ${card.drift_cause}.`);
  }
  if (card.drift === "none") return `none in ${images} since loading`;
  return element("span", {}, `not watched: ${card.drift_cause}`);
}

/** Build the short SHA-256 of a model file, with a button that copies all of it. */
export function fileHash(sha256) {
  const code = element("code", { title: sha256 }, `${sha256.slice(0, 12)}…`);
  return element("span", { class: "hash" }, code, " ", copyButton(sha256, code, "Copy the SHA-256 of the model file"));
}
