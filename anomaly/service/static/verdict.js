// What the verdict of an item is called, and what another threshold would make of it.

const VERDICTS = { good: "Accepted", defect: "Rejected", review: "To review" };
const SYMBOLS = { good: "✓", defect: "✕", review: "?", error: "!" };

/** good, defect, review or error. */
export function kindOf(item) {
  return item.status === "ok" ? item.verdict : "error";
}

/** Name the verdict of an item: in words, and by a symbol that does not need its colour. */
export function verdictOf(item) {
  const kind = kindOf(item);
  return { kind, words: VERDICTS[kind] ?? "Not scored", symbol: SYMBOLS[kind] };
}

/** Whether another threshold would turn an item from accepted to rejected or back. */
export function wouldChange(item, threshold) {
  return threshold !== null && item.status === "ok" && item.score > threshold !== (item.verdict === "defect");
}
