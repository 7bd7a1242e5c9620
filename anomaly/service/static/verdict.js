// The names of verdicts, and the verdict under another threshold.

const VERDICTS = { good: "Accepted", defect: "Rejected", review: "To review" };
const SYMBOLS = { good: "✓", defect: "✕", review: "?", error: "!" };

/** Give the verdicts other names: {good, defect}. */
export function nameVerdicts(names) {
  Object.assign(VERDICTS, names);
}

/** The kind of an item: good, defect, review or error. */
export function kindOf(item) {
  return item.status === "ok" ? item.verdict : "error";
}

/** Name the verdict of an item in words and by a symbol, so that colour is not needed. */
export function verdictOf(item) {
  const kind = kindOf(item);
  return { kind, words: VERDICTS[kind] ?? "Not scored", symbol: SYMBOLS[kind] };
}

/** Whether another threshold would accept a rejected item, or reject an accepted one. */
export function wouldChange(item, threshold) {
  return threshold !== null && item.status === "ok" && item.score > threshold !== (item.verdict === "defect");
}
