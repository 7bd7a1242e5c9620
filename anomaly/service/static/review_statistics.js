// What the marks of a run say of its verdicts, and the commands that use them.

import { element } from "./dom.js";

/** How far a person has come: "17 of 120 rejected reviewed; 3 marked really good". */
export function progressOf({ defect, good }) {
  const num = (value) => value.toLocaleString("en");
  const looked = good.good + good.defect;
  const accepted = looked > 0 ? ` · ${num(looked)} of ${num(good.all)} accepted reviewed; ${num(good.defect)} marked really defective` : "";
  return `${num(defect.good + defect.defect)} of ${num(defect.all)} rejected reviewed; ${num(defect.good)} marked really good${accepted}`;
}

/** Draw the panel. counts: of the run by verdict and mark; card: with `marks_file` and `commands`. */
export function drawMeaning(root, { counts, card }) {
  const rows = [
    ["False alarms", counts.defect.good, "rejected, marked really good"],
    ["Confirmed", counts.defect.defect, "rejected, marked really defective"],
    ["Missed defects", counts.good.defect, "accepted, marked really defective"],
    ["Confirmed good", counts.good.good, "accepted, marked really good"],
  ];
  if (counts.review.all > 0) {
    rows.push(["To review", counts.review.good, "marked really good"], ["", counts.review.defect, "marked really defective"]);
  }
  const table = element("table", {}, element("caption", { class: "unseen" }, "What the marks say of the verdicts"), element("tbody", {},
    ...rows.map(([term, num, words]) => element("tr", {},
      element("th", { scope: "row" }, term), element("td", { class: "number" }, num.toLocaleString("en")), element("td", { class: "note" }, words)))));
  const numGood = Object.values(counts).reduce((sum, { good }) => sum + good, 0);
  const next = numGood > 0
    ? "Marked goods can raise the limit and never lower it; marked defects move nothing, and the report says how many would pass. The model of the run stays as it is:"
    : "Mark a rejected part that is really good: without one there is nothing to calibrate with. Then:";
  root.replaceChildren(
    element("h2", {}, "What the marks mean"), table,
    element("p", { class: "note" }, next),
    ...card.commands.map(command),
    element("p", { class: "note" }, "Marks are saved at once, in ", element("code", {}, card.marks_file), card.by ? `, by ${card.by}` : "", "."));
}

function command(line) {
  const code = element("code", {}, line);
  const copy = element("button", { type: "button", class: "small", "aria-label": `Copy the command ${line}` }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(line);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard for pages that are not secure: it is marked, to be copied by hand
      copy.textContent = "Marked";
    }
  });
  return element("div", { class: "command" }, code, copy);
}
