// The tiles of this page's items, filtered and sorted here. It knows nothing of where items come from; see tiles.js for what
// one holds.
//
// createGallery(root, {onOpen, actions}) fills the element `root`:
//   onOpen(item)              a tile was clicked, or Enter pressed on it
//   actions                   [{label, run(items shown)}]: buttons beside the filters
// and gives
//   add(...items)             newest last
//   remove(item)              also `clear()`
//   tryThreshold(threshold or null)   show what another threshold would do to each item
//   items(), shown()          all, and those that pass the filter in the order shown
//   open(item or null)        mark the tile of the item that is open
//   focus(item)               put the keyboard on its tile
//   neighbour(item, step)     the item so many places further among those shown, or undefined

import { element } from "./dom.js";
import { createTiles } from "./tile_grid.js";
import { kindOf, wouldChange } from "./verdict.js";

const PAGE = 120;
const ORDERS = {
  newest: ["Newest first", (a, b) => b.at - a.at],
  oldest: ["Oldest first", (a, b) => a.at - b.at],
  highest: ["Highest score first", (a, b) => rank(b.item) - rank(a.item) || b.at - a.at],
  lowest: ["Lowest score first", (a, b) => -rank(b.item) + rank(a.item) || b.at - a.at],
};

export function createGallery(root, { onOpen, actions }) {
  const entries = new Map(); // item -> {item, at}
  let tried = null;
  let num = 0;
  let numDrawn = PAGE;
  let waiting = false;

  const filters = {
    all: ["All", () => true],
    good: ["Accepted", (item) => kindOf(item) === "good"],
    defect: ["Rejected", (item) => kindOf(item) === "defect"],
    review: ["To review", (item) => kindOf(item) === "review"],
    error: ["Errors", (item) => kindOf(item) === "error"],
    change: ["Would change", (item) => wouldChange(item, tried)],
  };
  const inputs = {};
  const counts = {};
  const segments = element("fieldset", { class: "segments" }, element("legend", { class: "unseen" }, "Show"));
  for (const [key, [words]] of Object.entries(filters)) {
    inputs[key] = element("input", { type: "radio", name: "gallery-filter", value: key, checked: key === "all", change: refilter });
    counts[key] = element("b", {});
    segments.append(element("label", { class: "segment", "data-filter": key }, inputs[key], element("span", {}, words, " ", counts[key])));
  }
  const text = element("input", { type: "search", placeholder: "Text in name", "aria-label": "Text in name", input: refilter });
  const order = element("select", { "aria-label": "Order", change: refilter },
    ...Object.entries(ORDERS).map(([key, [words]]) => element("option", { value: key }, words)));
  const buttons = actions.map(({ label, run }) => element("button", { type: "button", click: () => run(shown()) }, label));
  const tiles = createTiles({ onOpen, onWalk: focus, items: shown });
  const none = element("p", { class: "note" });
  const more = element("button", { type: "button", hidden: true, click: () => grow() });
  root.replaceChildren(element("div", { class: "gallery-tools" }, segments, text, order, ...buttons), none, tiles.list, more);
  draw();

  function filter() {
    return Object.keys(filters).find((key) => inputs[key].checked);
  }

  function shown() {
    const part = text.value.trim().toLowerCase();
    const passes = filters[filter()][1];
    const found = [...entries.values()].filter(({ item }) => passes(item) && item.name.toLowerCase().includes(part));
    return found.sort(ORDERS[order.value][1]).map(({ item }) => item);
  }

  function refilter() {
    numDrawn = PAGE;
    draw();
  }

  function grow() {
    const first = shown()[numDrawn];
    numDrawn += PAGE;
    draw();
    if (first) focus(first);
  }

  /** Draw once for all that happens in one turn. */
  function later() {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => {
      waiting = false;
      draw();
    });
  }

  function draw() {
    for (const [key, [, passes]] of Object.entries(filters)) {
      counts[key].textContent = String([...entries.keys()].filter(passes).length);
    }
    segments.querySelector('[data-filter="change"]').hidden = tried === null && filter() !== "change";
    segments.querySelector('[data-filter="review"]').hidden = counts.review.textContent === "0" && filter() !== "review";
    const items = shown();
    tiles.show(items.slice(0, numDrawn));
    none.textContent = entries.size === 0 ? "No images yet." : items.length === 0 ? "No image passes this filter." : "";
    none.hidden = none.textContent === "";
    more.hidden = items.length <= numDrawn;
    more.textContent = `Show more (${items.length - numDrawn} are not drawn)`;
    for (const button of buttons) button.disabled = items.length === 0;
  }

  function focus(item) {
    const at = shown().indexOf(item);
    if (at < 0) return;
    numDrawn = Math.max(numDrawn, at + 1);
    draw();
    tiles.focus(item);
  }

  return {
    add(...items) {
      for (const item of items) entries.set(item, { item, at: num++ });
      later();
    },
    remove(item) {
      entries.delete(item);
      later();
    },
    clear() {
      entries.clear();
      later();
    },
    tryThreshold(threshold) {
      tried = threshold;
      if (tried === null && filter() === "change") inputs.all.checked = true;
      tiles.tryThreshold(threshold);
      draw();
      tiles.redrawAll();
    },
    items: () => [...entries.keys()],
    shown,
    open(item) {
      tiles.open(item);
      later();
    },
    focus,
    neighbour(item, step) {
      const items = shown();
      const at = items.indexOf(item);
      return at < 0 ? undefined : items[at + step];
    },
  };
}

function rank(item) {
  return item.score ?? -Infinity;
}
