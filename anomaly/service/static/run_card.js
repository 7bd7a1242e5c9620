// The card of a run: what it is, what its models guarantee, and whether its files are still those of its manifest.

import { element, figure } from "./dom.js";
import { hashOf, guaranteeOf } from "./model_card.js";

const FILES = {
  unchecked: "not compared with the manifest yet",
  checking: "being compared with the manifest …",
  intact: "intact: each is that of the manifest",
};

/** Draw the card into an element. onCheck(): the files are to be compared with the manifest. */
export function drawRunCard(root, card, { onCheck }) {
  const { counts } = card;
  const num = (value) => value.toLocaleString("en");
  const all = Object.values(counts).reduce((sum, kind) => sum + kind.all, 0);
  const share = all > 0 ? ` (${figure((100 * counts.defect.all) / all)} %)` : "";
  const review = counts.review.all > 0 ? `, ${num(counts.review.all)} to review` : "";
  const errors = counts.error.all > 0 ? `, ${num(counts.error.all)} errors` : "";
  const threshold = card.review_threshold === null ? figure(card.threshold) : `${figure(card.threshold)}, to review above ${figure(card.review_threshold)}`;
  const rows = [
    ["Run", card.name],
    ["Begun", card.date.slice(0, 16).replace("T", " ") + " UTC"],
    ["Images", `${num(all)} of ${card.source}`],
    ["Verdicts", `${num(counts.good.all)} accepted, ${num(counts.defect.all)} rejected${share}${review}${errors}`],
    ["Threshold", threshold],
    ...card.models.flatMap((model) => [
      ["Model", `${model.detector}${model.precision === "fp32" ? "" : `, ${model.precision}`}${model.category ? ` for ${model.category}` : ""}`],
      ["False alarms", guaranteeOf(model)],
      ["Calibrated", `${model.calibration_date.slice(0, 10)} on ${model.num_calibration} good images`],
      ["File", hashOf(model.sha256)],
    ]),
    ...(card.models.length === 0 ? [["Model", "its copy is not there: a merged run needs its shards where they were"]] : []),
    ...card.drift.map((told) => ["Drift", drift(told)]),
    ["Files", files(card.files, onCheck)],
  ];
  root.replaceChildren(element("dl", { class: "facts" }, ...rows.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)])));
}

function drift({ product, alarmed, cause, first_alarm: first, num_images: num }) {
  const which = product ? `${product}: ` : "";
  if (!alarmed) return `${which}none seen in ${num.toLocaleString("en")} images`;
  return element("span", { class: "alert" }, element("b", {}, "! Alarm"), ` ${which}from image ${first} on: ${cause}.`);
}

function files({ state, message }, onCheck) {
  if (state === "changed") return element("span", { class: "alert" }, element("b", {}, "! Changed: "), message);
  const button = element("button", { type: "button", class: "small", id: "check", click: onCheck }, "Compare");
  return element("span", { class: "hash" }, FILES[state], state === "unchecked" ? button : "");
}
