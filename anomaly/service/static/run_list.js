// The rows of a run as tiles: filtered and sorted where they lie, for there may be a million, and fetched some at a time.
//
// createRunList(root, run, {onOpen, onLabel, onCounts, onFault, onExport}) fills the element `root`:
//   onOpen(item)          a tile was opened
//   onLabel(item, label)    a button under a tile was pressed
//   onCounts(counts)      the run was counted anew
//   onFault(error)        rows could not be had
//   onExport(query)       the rows of a filter are wanted as a file
// and gives
//   load(verdict or "")       begin, with the filter on a verdict if one is named
//   items(), total()          what was fetched, and how many pass the filter
//   neighbour(item, step)     a promise of the item so many places further; the next rows are fetched if need be
//   current()                 the item that the keyboard is on
//   update(item), open(item or null), focus(item), counted(counts)
//
// An item is as tiles.js has it, and holds `number` of its row, `path`, and what the page keeps of it: `picture`, `map`,
// `notice` and `problem`, why there is no picture.

import { element } from "./dom.js";
import { createThumbnails } from "./thumbnails.js";
import { createTiles } from "./tile_grid.js";

const PAGE = 120;
const SHORT_PARTS = 2;
const VERDICTS = { defect: "Rejected", review: "To review", good: "Accepted", error: "Errors", all: "All" };
const MARKS = {
  all: "With or without label", none: "Not labelled", any: "Labelled", good: "Labelled really good", defect: "Labelled really defective",
};
const ORDERS = { "-score": "Highest score first", score: "Lowest score first", order: "Order of the run" };
const MATCHES = { all: () => true, none: (label) => label === "", any: (label) => label !== "" };

export function createRunList(root, run, { onOpen, onLabel, onCounts, onFault, onExport }) {
  let items = [];
  let total = 0;
  let asked = 0;
  let isLoading = false;

  const inputs = {};
  const counts = {};
  const segments = element("fieldset", { class: "segments" }, element("legend", { class: "unseen" }, "Show"));
  for (const [key, words] of Object.entries(VERDICTS)) {
    inputs[key] = element("input", { type: "radio", name: "verdict-filter", value: key, checked: key === "all", change: reload });
    counts[key] = element("b", {});
    segments.append(element("label", { class: "segment", "data-filter": key }, inputs[key], element("span", {}, words, " ", counts[key])));
  }
  const labels = choice("Labels", MARKS);
  const order = choice("Order", ORDERS);
  const text = element("input", { type: "search", placeholder: "Text in path", "aria-label": "Text in path", input: soon });
  const save = element("button", { type: "button", click: () => onExport(query()) }, "Export CSV");
  const thumbnails = createThumbnails(run, { onLoaded: (item) => tiles.redraw(item) });
  const tiles = createTiles({ onOpen, onWalk: focus, items: () => items, drawExtra });
  const told = element("p", { class: "note list-told", role: "status" });
  const more = element("button", { type: "button", hidden: true, click: grow });
  root.replaceChildren(element("div", { class: "gallery-tools" }, segments, labels, text, order, save), told, tiles.list, more);
  let timer = 0;

  function choice(label, options) {
    return element("select", { "aria-label": label, change: reload },
      ...Object.entries(options).map(([key, words]) => element("option", { value: key }, words)));
  }

  function query() {
    const verdict = Object.keys(inputs).find((key) => inputs[key].checked);
    return { verdict, label: labels.value, text: text.value.trim(), sort: order.value };
  }

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(reload, 250);
  }

  async function reload() {
    const wanted = ++asked;
    const answer = await fetched(0);
    if (answer === null || wanted !== asked) return;
    thumbnails.clear();
    items = answer.items.map(itemOf);
    draw();
  }

  async function grow() {
    const first = await loadMore();
    if (first) focus(first);
  }

  /** Fetch the next rows; gives the first of them. What was labelled meanwhile may pass the filter no more, and counts not. */
  async function loadMore() {
    if (isLoading || items.length === 0) return undefined;
    isLoading = true;
    const wanted = asked;
    const matches = MATCHES[labels.value] ?? ((label) => label === labels.value);
    const answer = await fetched(items.filter((item) => matches(item.label)).length);
    isLoading = false;
    if (answer === null || wanted !== asked) return undefined;
    const known = new Set(items.map((item) => item.number));
    const fresh = answer.items.filter((row) => !known.has(row.number)).map(itemOf);
    items.push(...fresh);
    draw();
    return fresh[0];
  }

  async function fetched(offset) {
    try {
      const answer = await run.rows({ ...query(), offset, limit: PAGE });
      total = answer.total;
      counted(answer.counts);
      return answer;
    } catch (error) {
      onFault(error);
      return null;
    }
  }

  function counted(found) {
    let all = 0;
    for (const [kind, { all: num }] of Object.entries(found)) {
      counts[kind].textContent = num.toLocaleString("en");
      segments.querySelector(`[data-filter="${kind}"]`).hidden = num === 0 && kind !== "defect" && kind !== "good" && !inputs[kind].checked;
      all += num;
    }
    counts.all.textContent = all.toLocaleString("en");
    onCounts(found);
  }

  function draw() {
    tiles.show(items);
    const left = Math.max(0, total - items.length);
    told.textContent = total === 0 ? "No image passes this filter." : `${total.toLocaleString("en")} image${total === 1 ? "" : "s"}${left ? `, the first ${items.length.toLocaleString("en")} are drawn` : ""}.`;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(PAGE, left)} more`;
    save.disabled = total === 0;
  }

  function drawExtra(item, place) {
    thumbnails.look(item, place);
    if (item.problem) place.append(element("p", { class: "tile-problem" }, item.problem));
    if (item.status !== "ok") return;
    const button = (label, symbol, words) => element("button", {
      type: "button", class: `small label-${label}`, tabindex: -1, "aria-pressed": String(item.label === label),
      "aria-label": `${words}: ${item.short}`, title: words, click: () => onLabel(item, item.label === label ? "" : label),
    }, element("span", { "aria-hidden": "true" }, symbol));
    place.append(button("good", "✓ good", "Really good"), button("defect", "✕ defect", "Really defective"));
  }

  function focus(item) {
    tiles.focus(item);
  }

  return {
    load(verdict) {
      if (verdict) inputs[verdict].checked = true;
      return reload();
    },
    items: () => items,
    total: () => total,
    async neighbour(item, step) {
      const at = items.indexOf(item);
      if (at < 0) return undefined;
      if (at + step === items.length && total > items.length) await loadMore();
      return items[at + step];
    },
    current: tiles.current,
    update: (item) => tiles.redraw(item),
    open(item) {
      tiles.open(item);
      tiles.show(items);
    },
    focus,
    counted,
  };
}

function itemOf(row) {
  const parts = row.path.split("/");
  const short = parts.slice(-SHORT_PARTS).join("/");
  return { ...row, name: row.path, short, thumbnail: "", picture: null, map: null, isDrawn: false, notice: "", problem: "" };
}
