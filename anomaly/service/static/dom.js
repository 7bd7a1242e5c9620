// Elements from names, attributes and children. Text is always a text node, so file names can never become markup.

/**
 * Build an element.
 *
 * A function attribute listens to the event of its name. `true` sets an empty attribute; `false`, `null` and `undefined` set no
 * attribute. Children are nodes or text.
 */
export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** Build a list of facts from [[term, value]]; rows with the value null are left out. */
export function factList(rows) {
  const kept = rows.filter(([, value]) => value !== null);
  return element("dl", { class: "facts" }, ...kept.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]));
}

/** Format a number with three or four significant digits: 0.831, 2.31, 143. */
export function formatNumber(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

/** Format a count with thousands separators, and its noun. */
export function formatCount(num, noun = "") {
  const digits = num.toLocaleString("en");
  return noun === "" ? digits : `${digits} ${noun}${num === 1 ? "" : "s"}`;
}

/** Build a button that copies a text; without a clipboard it selects the text in `source`. */
export function copyButton(text, source, label) {
  const button = element("button", { type: "button", class: "small", "aria-label": label }, "Copy");
  button.addEventListener("click", async () => {
    source.textContent = text;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source); // insecure pages have no clipboard
      button.textContent = "Selected";
    }
  });
  return button;
}

/** Save text as a download. */
export function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
