// What the labels of a run say of its verdicts, and the commands that use them.

import { element } from "./dom.js";

/** How far a person has come: "17 of 120 rejected reviewed; 3 labelled really good". */
export function progressOf({ defect, good }) {
  const num = (value) => value.toLocaleString("en");
  const looked = good.good + good.defect;
  const accepted = looked > 0 ? ` · ${num(looked)} of ${num(good.all)} accepted reviewed; ${num(good.defect)} labelled really defective` : "";
  return `${num(defect.good + defect.defect)} of ${num(defect.all)} rejected reviewed; ${num(defect.good)} labelled really good${accepted}`;
}

/** Draw the panel. counts: of the run by verdict and label; card: with `labels_file` and `commands`. */
export function drawMeaning(root, { counts, card }) {
  const rows = [
    ["False alarms", counts.defect.good, "rejected, labelled really good"],
    ["Confirmed", counts.defect.defect, "rejected, labelled really defective"],
    ["Missed defects", counts.good.defect, "accepted, labelled really defective"],
    ["Confirmed good", counts.good.good, "accepted, labelled really good"],
  ];
  if (counts.review.all > 0) {
    rows.push(["To review", counts.review.good, "labelled really good"], ["", counts.review.defect, "labelled really defective"]);
  }
  const table = element("table", {}, element("caption", { class: "unseen" }, "What the labels say of the verdicts"), element("tbody", {},
    ...rows.map(([term, num, words]) => element("tr", {},
      element("th", { scope: "row" }, term), element("td", { class: "number" }, num.toLocaleString("en")), element("td", { class: "note" }, words)))));
  const numGood = Object.values(counts).reduce((sum, { good }) => sum + good, 0);
  const next = numGood > 0
    ? "Labelled good images can raise the threshold and never lower it; labelled defects move nothing, and the report says how many would pass. The model of the run stays as it is:"
    : "Label a rejected part that is really good: without one there is nothing to calibrate with. Then:";
  root.replaceChildren(
    element("h2", {}, "What the labels mean"), table,
    element("p", { class: "note" }, next),
    ...card.commands.map(command),
    element("p", { class: "note" }, "Labels are saved at once, in ", element("code", {}, card.labels_file), card.by ? `, by ${card.by}` : "", "."));
}

function command(line) {
  const code = element("code", {}, line);
  const copy = element("button", { type: "button", class: "small", "aria-label": `Copy the command ${line}` }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(line);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard for pages that are not secure: it is labelled, to be copied by hand
      copy.textContent = "Labelled";
    }
  });
  return element("div", { class: "command" }, code, copy);
}
