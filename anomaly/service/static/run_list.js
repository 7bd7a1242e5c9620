// The rows of a run as tiles. The server filters and sorts up to a million rows; the page loads some at a time.
//
// createRunList(root, api, {onOpen, onLabel, onCounts, onError, onExport}) fills the element `root`:
//   onOpen(item)              the user opens a tile
//   onLabel(item, label)      the user presses a label button under a tile
//   onCounts(counts)          the counts of the run changed
//   onError(error)            rows could not be loaded
//   onExport(query)           the user exports the filtered rows as a file
// and returns
//   load(verdict or "")       load the first rows, filtered by a verdict
//   items(), total()          the loaded items, and the number of rows that pass the filter
//   neighbour(item, step)     a promise of the item `step` places after an item; loads more rows if necessary
//   current()                 the item in the tab order
//   update(item)              draw a changed item again
//   open(item or null), focus(item)   as in tile_grid.js
//   showCounts(counts)        show new counts
//
// An item has the form of tile_grid.js, and `number` and `path` of its row. `picture` and `map` are its image and map,
// `notice` a message in place of the image, and `problem` the reason of a missing thumbnail.

import { element, formatCount } from "./dom.js";
import { terms } from "./review_terms.js";
import { createThumbnails } from "./thumbnails.js";
import { createTileGrid } from "./tile_grid.js";

const PAGE_SIZE = 120;
const NUM_SHORT_PARTS = 2;
const VERDICTS = { defect: "Rejected", review: "To review", good: "Accepted", error: "Errors", all: "All" };
const LABELS = { all: "With or without label", none: "Not labelled", any: "Labelled", good: "", defect: "" };
const ORDERS = { "-score": "Highest score first", score: "Lowest score first", order: "" };
const MATCHES = { all: () => true, none: (label) => label === "", any: (label) => label !== "" };

export function createRunList(root, api, { onOpen, onLabel, onCounts, onError, onExport }) {
  let items = [];
  let total = 0;
  let numLoads = 0;
  let isLoading = false;

  const inputs = {};
  const counts = {};
  const segments = element("fieldset", { class: "segments" }, element("legend", { class: "visually-hidden" }, "Show"));
  for (const [key, name] of Object.entries({ ...VERDICTS, ...terms.verdicts })) {
    inputs[key] = element("input", { type: "radio", name: "verdict-filter", value: key, checked: key === "all", change: reload });
    counts[key] = element("b", {});
    segments.append(element("label", { class: "segment", "data-filter": key }, inputs[key], element("span", {}, name, " ", counts[key])));
  }
  const labels = select("Labels", { ...LABELS, ...terms.filters });
  const order = select("Order", { ...ORDERS, order: terms.order });
  const text = element("input", { type: "search", placeholder: "Text in path", "aria-label": "Text in path", input: reloadSoon });
  const exportButton = element("button", { type: "button", click: () => onExport(query()) }, "Export CSV");
  const thumbnails = createThumbnails(api, { onLoaded: (item) => tiles.redraw(item) });
  const tiles = createTileGrid({ onOpen, onMove: focus, items: () => items, drawExtra });
  const summary = element("p", { class: "note list-summary", role: "status" });
  const more = element("button", { type: "button", hidden: true, click: showMore });
  root.replaceChildren(element("div", { class: "gallery-tools" }, segments, labels, text, order, exportButton), summary, tiles.list, more);
  let timer = 0;

  function select(label, options) {
    return element("select", { "aria-label": label, change: reload },
      ...Object.entries(options).map(([key, name]) => element("option", { value: key }, name)));
  }

  function query() {
    const verdict = Object.keys(inputs).find((key) => inputs[key].checked);
    return { verdict, label: labels.value, text: text.value.trim(), sort: order.value };
  }

  function reloadSoon() {
    clearTimeout(timer);
    timer = setTimeout(reload, 250);
  }

  async function reload() {
    const load = ++numLoads;
    const page = await fetchRows(0);
    if (page === null || load !== numLoads) return;
    thumbnails.clear();
    items = page.items.map(itemOf);
    draw();
  }

  async function showMore() {
    const first = await loadMore();
    if (first) focus(first);
  }

  /** Load the next rows and return the first. Items that left the filter by a new label do not count for the offset. */
  async function loadMore() {
    if (isLoading || items.length === 0) return undefined;
    isLoading = true;
    const load = numLoads;
    const matches = MATCHES[labels.value] ?? ((label) => label === labels.value);
    const page = await fetchRows(items.filter((item) => matches(item.label)).length);
    isLoading = false;
    if (page === null || load !== numLoads) return undefined;
    const known = new Set(items.map((item) => item.number));
    const newItems = page.items.filter((row) => !known.has(row.number)).map(itemOf);
    items.push(...newItems);
    draw();
    return newItems[0];
  }

  async function fetchRows(offset) {
    try {
      const page = await api.rows({ ...query(), offset, limit: PAGE_SIZE });
      total = page.total;
      showCounts(page.counts);
      return page;
    } catch (error) {
      onError(error);
      return null;
    }
  }

  function showCounts(newCounts) {
    let all = 0;
    for (const [kind, { all: num }] of Object.entries(newCounts)) {
      counts[kind].textContent = formatCount(num);
      segments.querySelector(`[data-filter="${kind}"]`).hidden = num === 0 && kind !== "defect" && kind !== "good" && !inputs[kind].checked;
      all += num;
    }
    counts.all.textContent = formatCount(all);
    onCounts(newCounts);
  }

  function draw() {
    tiles.show(items);
    const numLeft = Math.max(0, total - items.length);
    summary.textContent = total === 0 ? "No image passes this filter." : `${formatCount(total, "image")}${numLeft ? `; the first ${formatCount(items.length)} are shown` : ""}.`;
    more.hidden = numLeft === 0;
    more.textContent = `Show ${Math.min(PAGE_SIZE, numLeft)} more`;
    exportButton.disabled = total === 0;
  }

  function drawExtra(item, target) {
    thumbnails.observe(item, target);
    if (item.problem) target.append(element("p", { class: "tile-problem" }, item.problem));
    if (item.status !== "ok") return;
    const button = (label, text, name) => element("button", {
      type: "button", class: `small label-${label}`, tabindex: -1, "aria-pressed": String(item.label === label),
      "aria-label": `${name}: ${item.short}`, title: name, click: () => onLabel(item, item.label === label ? "" : label),
    }, element("span", { "aria-hidden": "true" }, text));
    const name = (label) => terms.buttons[label].slice(2);
    target.append(button("good", terms.tiles.good, name("good")), button("defect", terms.tiles.defect, name("defect")));
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
      const index = items.indexOf(item);
      if (index < 0) return undefined;
      if (index + step === items.length && total > items.length) await loadMore();
      return items[index + step];
    },
    current: tiles.current,
    update: (item) => tiles.redraw(item),
    open(item) {
      tiles.open(item);
      tiles.show(items);
    },
    focus,
    showCounts,
  };
}

function itemOf(row) {
  const parts = row.path.split("/");
  const short = parts.slice(-NUM_SHORT_PARTS).join("/");
  return { ...row, name: row.path, short, thumbnail: "", picture: null, map: null, isOverlay: false, notice: "", problem: "" };
}
