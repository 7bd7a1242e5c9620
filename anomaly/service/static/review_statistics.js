// Statistics of the labels, and the commands that use them.

import { copyButton, element, formatCount, formatNumber } from "./dom.js";
import { terms } from "./review_terms.js";

/** Describe the progress of the review: "17 of 120 rejected reviewed; 3 labelled really good". */
export function progressText({ defect, good }) {
  if (terms.kind === "training") {
    return `${formatCount(defect.good + defect.defect)} of ${formatCount(defect.all)} suspicious reviewed; ${formatCount(defect.defect + good.defect)} excluded`;
  }
  const numAccepted = good.good + good.defect;
  const accepted = numAccepted > 0 ? ` · ${formatCount(numAccepted)} of ${formatCount(good.all)} accepted reviewed; ${formatCount(good.defect)} labelled really defective` : "";
  return `${formatCount(defect.good + defect.defect)} of ${formatCount(defect.all)} rejected reviewed; ${formatCount(defect.good)} labelled really good${accepted}`;
}

/** Draw the panel. counts: images by verdict and label; card: run card with `labels_file` and `commands`. */
export function drawStatistics(root, { counts, card }) {
  if (terms.kind === "training") {
    drawExclusion(root, { counts, card });
    return;
  }
  const rows = [
    ["False alarms", counts.defect.good, "rejected, labelled really good"],
    ["True alarms", counts.defect.defect, "rejected, labelled really defective"],
    ["Missed defects", counts.good.defect, "accepted, labelled really defective"],
    ["Confirmed good", counts.good.good, "accepted, labelled really good"],
  ];
  if (counts.review.all > 0) {
    rows.push(["To review", counts.review.good, "labelled really good"], ["", counts.review.defect, "labelled really defective"]);
  }
  const table = element("table", {}, element("caption", { class: "visually-hidden" }, "Verdicts and labels"), element("tbody", {},
    ...rows.map(([term, num, words]) => element("tr", {},
      element("th", { scope: "row" }, term), element("td", { class: "number" }, formatCount(num)), element("td", { class: "note" }, words)))));
  const numGood = Object.values(counts).reduce((sum, { good }) => sum + good, 0);
  const next = numGood > 0
    ? "Images labelled good can raise the threshold but never lower it. Images labelled defective do not move it; the report counts the missed ones. These commands write a new model and keep the run's model:"
    : "First label a rejected part that is really good: the calibration needs at least one. Then run:";
  root.replaceChildren(
    element("h2", {}, "Use of the labels"), table,
    element("p", { class: "note" }, next),
    ...card.commands.map(commandLine),
    element("p", { class: "note" }, "Each label is saved at once in ", element("code", {}, card.labels_file), card.by ? `, by ${card.by}` : "", "."));
}

/** Draw the panel of training images: the excluded ones, and the command that fits again without them. */
function drawExclusion(root, { counts: { defect, good }, card }) {
  const rows = [
    ["Suspicious", defect.all, "unlike the other images"],
    ["Excluded", defect.defect + good.defect, "not used by the next fit"],
    ["Kept", defect.good + good.good, "reviewed and kept"],
  ];
  const table = element("table", {}, element("tbody", {}, ...rows.map(([term, num, text]) => element("tr", {},
    element("th", { scope: "row" }, term), element("td", { class: "number" }, formatCount(num)), element("td", { class: "note" }, text)))));
  const factor = card.threshold_without;
  root.replaceChildren(
    ...[element("h2", {}, "Excluded images"), table,
    card.reason === null ? null : element("p", { class: "alert" }, `No image is named: ${card.reason}.`),
    factor === null ? null : element("p", { class: "note" }, `Without the suspicious images, the threshold would be about ${formatNumber(factor)} times the present one.`),
    element("p", { class: "note" }, "Nothing is excluded before you fit again:"),
    ...card.commands.map(commandLine),
    element("p", { class: "note" }, "Each decision is saved at once in ", element("code", {}, card.labels_file), ".")].filter((node) => node !== null));
}

function commandLine(command) {
  const code = element("code", {}, command);
  return element("div", { class: "command" }, code, copyButton(command, code, `Copy the command ${command}`));
}
