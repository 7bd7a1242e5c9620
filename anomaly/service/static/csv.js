// Rows as CSV, with the columns of `anomaly score`.

export const COLUMNS = [
  "path", "sha256", "status", "verdict", "score", "threshold", "p_value", "width", "height", "regions", "model", "message",
];
const FORMULA = /^[=+\-@\t\r\n＝＋－＠]/;

/** Write items as one table; an apostrophe is put before texts that a spreadsheet would compute. */
export function csvOf(items) {
  const lines = items.map((item) => COLUMNS.map((name) => field(name === "path" ? item.name : item[name])).join(","));
  return [COLUMNS.join(","), ...lines, ""].join("\r\n");
}

function field(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = typeof value === "string" ? value : JSON.stringify(value);
  const safe = FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
