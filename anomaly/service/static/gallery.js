// The gallery of the scoring page: tiles, filtered and sorted on the page. tile_grid.js describes an item.
//
// createGallery(root, {onOpen, actions}) fills the element `root`:
//   onOpen(item)              the user clicked a tile, or pressed Enter on it
//   actions                   buttons beside the filters: [{label, run(shown items)}]
// and returns
//   add(...items)             append items, the newest last
//   remove(item), clear()     remove one item, or all
//   tryThreshold(threshold or null)   show the verdict of each item at another threshold
//   items(), shown()          all items, and the filtered items in their order
//   open(item or null)        highlight the tile of the open item
//   focus(item)               move the keyboard focus to a tile
//   neighbour(item, step)     the shown item `step` places after an item, or undefined

import { element } from "./dom.js";
import { createTileGrid } from "./tile_grid.js";
import { kindOf, wouldChange } from "./verdict.js";

const PAGE_SIZE = 120;
const ORDERS = {
  newest: ["Newest first", (a, b) => b.index - a.index],
  oldest: ["Oldest first", (a, b) => a.index - b.index],
  highest: ["Highest score first", (a, b) => sortScore(b.item) - sortScore(a.item) || b.index - a.index],
  lowest: ["Lowest score first", (a, b) => -sortScore(b.item) + sortScore(a.item) || b.index - a.index],
};

export function createGallery(root, { onOpen, actions }) {
  const entries = new Map(); // item -> {item, index}
  let tried = null;
  let numAdded = 0;
  let numDrawn = PAGE_SIZE;
  let isDrawScheduled = false;

  const filters = {
    all: ["All", () => true],
    good: ["Accepted", (item) => kindOf(item) === "good"],
    defect: ["Rejected", (item) => kindOf(item) === "defect"],
    review: ["To review", (item) => kindOf(item) === "review"],
    error: ["Errors", (item) => kindOf(item) === "error"],
    change: ["Changes", (item) => wouldChange(item, tried)],
  };
  const inputs = {};
  const counts = {};
  const segments = element("fieldset", { class: "segments" }, element("legend", { class: "visually-hidden" }, "Show"));
  for (const [key, [name]] of Object.entries(filters)) {
    inputs[key] = element("input", { type: "radio", name: "gallery-filter", value: key, checked: key === "all", change: applyFilter });
    counts[key] = element("b", {});
    segments.append(element("label", { class: "segment", "data-filter": key }, inputs[key], element("span", {}, name, " ", counts[key])));
  }
  const text = element("input", { type: "search", placeholder: "Text in name", "aria-label": "Text in name", input: applyFilter });
  const order = element("select", { "aria-label": "Order", change: applyFilter },
    ...Object.entries(ORDERS).map(([key, [name]]) => element("option", { value: key }, name)));
  const buttons = actions.map(({ label, run }) => element("button", { type: "button", click: () => run(shown()) }, label));
  const tiles = createTileGrid({ onOpen, onMove: focus, items: shown });
  const empty = element("p", { class: "note" });
  const more = element("button", { type: "button", hidden: true, click: () => showMore() });
  root.replaceChildren(element("div", { class: "gallery-tools" }, segments, text, order, ...buttons), empty, tiles.list, more);
  draw();

  function selectedFilter() {
    return Object.keys(filters).find((key) => inputs[key].checked);
  }

  function shown() {
    const part = text.value.trim().toLowerCase();
    const passes = filters[selectedFilter()][1];
    const passing = [...entries.values()].filter(({ item }) => passes(item) && item.name.toLowerCase().includes(part));
    return passing.sort(ORDERS[order.value][1]).map(({ item }) => item);
  }

  function applyFilter() {
    numDrawn = PAGE_SIZE;
    draw();
  }

  function showMore() {
    const first = shown()[numDrawn];
    numDrawn += PAGE_SIZE;
    draw();
    if (first) focus(first);
  }

  /** Draw once for all changes of one event. */
  function scheduleDraw() {
    if (isDrawScheduled) return;
    isDrawScheduled = true;
    queueMicrotask(() => {
      isDrawScheduled = false;
      draw();
    });
  }

  function draw() {
    for (const [key, [, passes]] of Object.entries(filters)) {
      counts[key].textContent = String([...entries.keys()].filter(passes).length);
    }
    segments.querySelector('[data-filter="change"]').hidden = tried === null && selectedFilter() !== "change";
    segments.querySelector('[data-filter="review"]').hidden = counts.review.textContent === "0" && selectedFilter() !== "review";
    const items = shown();
    tiles.show(items.slice(0, numDrawn));
    empty.textContent = entries.size === 0 ? "No images yet." : items.length === 0 ? "No image passes this filter." : "";
    empty.hidden = empty.textContent === "";
    more.hidden = items.length <= numDrawn;
    more.textContent = `Show more (${items.length - numDrawn} hidden)`;
    for (const button of buttons) button.disabled = items.length === 0;
  }

  function focus(item) {
    const index = shown().indexOf(item);
    if (index < 0) return;
    numDrawn = Math.max(numDrawn, index + 1);
    draw();
    tiles.focus(item);
  }

  return {
    add(...items) {
      for (const item of items) entries.set(item, { item, index: numAdded++ });
      scheduleDraw();
    },
    remove(item) {
      entries.delete(item);
      scheduleDraw();
    },
    clear() {
      entries.clear();
      scheduleDraw();
    },
    tryThreshold(threshold) {
      tried = threshold;
      if (tried === null && selectedFilter() === "change") inputs.all.checked = true;
      tiles.tryThreshold(threshold);
      draw();
      tiles.redrawAll();
    },
    items: () => [...entries.keys()],
    shown,
    open(item) {
      tiles.open(item);
      scheduleDraw();
    },
    focus,
    neighbour(item, step) {
      const items = shown();
      const index = items.indexOf(item);
      return index < 0 ? undefined : items[index + step];
    },
  };
}

function sortScore(item) {
  return item.score ?? -Infinity;
}
