// The card of a run: its settings, the guarantees of its models, and the state of its files.

import { element, factList, formatCount, formatNumber } from "./dom.js";
import { terms } from "./review_terms.js";
import { calibrationText, fileHash, guaranteeText } from "./model_card.js";

const FILE_STATES = {
  unchecked: "not compared with the manifest yet",
  checking: "comparing with the manifest …",
  intact: "intact: all files match the manifest",
};

/** Draw the card into an element. onCheck(): the user starts the comparison of the files with the manifest. */
export function drawRunCard(root, card, { onCheck }) {
  const { counts } = card;
  if (terms.kind === "training") {
    const num = counts.good.all + counts.defect.all;
    root.replaceChildren(factList([["Fitted model", card.name], ["Images", `${formatCount(num)} from ${card.source}`], ["Limit", `suspicious above ${formatNumber(card.threshold)}`]]));
    return;
  }
  const all = Object.values(counts).reduce((sum, kind) => sum + kind.all, 0);
  const share = all > 0 ? ` (${formatNumber((100 * counts.defect.all) / all)} %)` : "";
  const review = counts.review.all > 0 ? `, ${formatCount(counts.review.all)} to review` : "";
  const errors = counts.error.all > 0 ? `, ${formatCount(counts.error.all, "error")}` : "";
  const reviewAbove = card.review_threshold === null ? "" : `, to review above ${formatNumber(card.review_threshold)}`;
  root.replaceChildren(factList([
    ["Run", card.name],
    ["Started", card.date.slice(0, 16).replace("T", " ") + " UTC"],
    ["Images", `${formatCount(all)} from ${card.source}`],
    ["Verdicts", `${formatCount(counts.good.all)} accepted, ${formatCount(counts.defect.all)} rejected${share}${review}${errors}`],
    ["Threshold", `${formatNumber(card.threshold)}${reviewAbove}`],
    ...card.models.flatMap((model) => [
      ["Model", `${model.detector}${model.precision === "fp32" ? "" : `, ${model.precision}`}${model.category ? ` for ${model.category}` : ""}`],
      ["False alarms", guaranteeText(model)],
      ["Calibrated", calibrationText(model)],
      ["File", fileHash(model.sha256)],
    ]),
    ...(card.models.length === 0 ? [["Model", "missing: a merged run needs its shards at their paths"]] : []),
    ...card.drift.map((drift) => ["Drift", driftText(drift)]),
    ["Files", fileState(card.files, onCheck)],
  ]));
}

function driftText({ product, alarmed, cause, first_alarm: first, num_images: num }) {
  const prefix = product ? `${product}: ` : "";
  if (!alarmed) return `${prefix}none in ${formatCount(num, "image")}`;
  return element("span", { class: "alert" }, element("b", {}, "! Alarm"), ` ${prefix}since image ${first}: ${cause}.`);
}

function fileState({ state, message }, onCheck) {
  if (state === "changed") return element("span", { class: "alert" }, element("b", {}, "! Changed: "), message);
  const button = element("button", { type: "button", class: "small", id: "check", click: onCheck }, "Compare");
  return element("span", { class: "hash" }, FILE_STATES[state], state === "unchecked" ? button : "");
}
