// A grid of tiles, one per image, with keyboard navigation.
//
// An item is a plain object, identified by reference. It has at least:
//   name            name of the image
//   short           short name under the tile; optional
//   status          "ok", or the code of an error
//   verdict         "good", "defect" or "review"; "" if status is not "ok"
//   score           calibrated score; null if status is not "ok"
//   threshold       threshold of the verdict
//   message         error message, or ""
//   width, height   size of the image in pixels, or null
//   regions         [{x, y, width, height, area, peak, weak}]
//   p_value         conformal p-value, or null
//   thumbnail       URL of the thumbnail, or ""
//   label           "", "good" or "defect": the reviewer's label
//
// createTileGrid({onOpen, onMove, drawExtra, items}) returns the element `list` and functions:
//   onOpen(item)              the user clicked a tile, or pressed Enter on it
//   onMove(item)              the user moves to a tile by keyboard
//   drawExtra(item, target)   optional: draws more controls into the element `target` under a tile
//   items()                   all items in their order
//   show(visible)             draw these tiles, in their order
//   redraw(item), redrawAll() draw again after a change of an item, or of the tried threshold
//   tryThreshold(threshold or null)   show verdicts at another threshold from the next redrawAll on
//   open(item or null)        highlight the tile of the open item
//   focus(item)               move the keyboard focus to a visible tile
//   current()                 the item in the tab order

import { element, formatNumber } from "./dom.js";
import { terms } from "./review_terms.js";
import { scoreGauge } from "./score_gauge.js";
import { verdictOf, wouldChange } from "./verdict.js";

export function createTileGrid({ onOpen, onMove, drawExtra, items }) {
  let tiles = new WeakMap(); // item -> its li
  let visible = [];
  let tried = null;
  let opened = null;
  let current = null;
  const list = element("ul", { class: "tiles", "aria-label": "Images", keydown: move });

  function show(shown) {
    visible = shown;
    const all = items();
    if (!all.includes(current)) current = all[0] ?? null;
    updateList(visible.map(tileOf));
    for (const item of visible) {
      const button = tileOf(item).firstChild;
      button.tabIndex = item === current ? 0 : -1;
      if (item === opened) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  /** Update the list; tiles that keep their position are not touched, so that no click is lost. */
  function updateList(newTiles) {
    const kept = new Set(newTiles);
    for (const tile of [...list.children]) if (!kept.has(tile)) tile.remove();
    let next = list.firstChild;
    for (const tile of newTiles) {
      if (tile === next) next = next.nextSibling;
      else list.insertBefore(tile, next);
    }
  }

  function tileOf(item) {
    if (!tiles.has(item)) tiles.set(item, element("li", {}, ...buildTile(item)));
    return tiles.get(item);
  }

  function buildTile(item) {
    const { kind, words, symbol } = verdictOf(item);
    const change = item.score > tried ? "rejected" : "accepted";
    const button = element("button", { type: "button", class: `tile is-${kind}`, title: item.name, click: () => select(item) },
      element("span", { class: "tile-picture" },
        item.thumbnail ? element("img", { src: item.thumbnail, alt: "", loading: "lazy" }) : element("span", { class: "tile-placeholder", "aria-hidden": "true" }, symbol)),
      element("span", { class: "tile-line" },
        element("span", { class: "verdict" }, element("span", { class: "symbol", "aria-hidden": "true" }, symbol), words),
        element("span", { class: "number" }, item.status === "ok" ? formatNumber(item.score) : "")),
      item.status === "ok" ? scoreGauge(item, tried) : element("span", { class: "tile-message" }, item.message),
      wouldChange(item, tried) ? element("span", { class: "tile-change" }, `⇄ ${change}`) : "",
      item.label ? element("span", { class: `tile-label is-${item.label}` }, terms.marks[item.label]) : "",
      element("span", { class: "tile-name" }, item.short ?? item.name));
    if (!drawExtra) return [button];
    const extra = element("div", { class: "tile-extra" });
    drawExtra(item, extra);
    return [button, extra];
  }

  function select(item) {
    current = item;
    onOpen(item);
  }

  function move(event) {
    const all = items();
    const index = all.indexOf(current);
    if (index < 0 || !event.target.classList.contains("tile")) return;
    const tops = [...list.children].map((tile) => tile.offsetTop);
    const numColumns = Math.max(1, tops.filter((top) => top === tops[0]).length);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -numColumns, ArrowDown: numColumns, Home: -index, End: all.length - 1 - index };
    const target = steps[event.key] === undefined ? undefined : all[index + steps[event.key]];
    if (!target) return;
    event.preventDefault();
    onMove(target);
  }

  return {
    list,
    show,
    redraw(item) {
      const tile = tiles.get(item);
      if (!tile) return;
      const hadFocus = tile.contains(document.activeElement);
      tile.replaceChildren(...buildTile(item));
      show(visible);
      if (hadFocus) tile.firstChild.focus();
    },
    redrawAll() {
      tiles = new WeakMap();
      const focused = list.contains(document.activeElement) ? current : null;
      show(visible);
      if (focused && visible.includes(focused)) tileOf(focused).firstChild.focus();
    },
    tryThreshold(threshold) {
      tried = threshold;
    },
    open(item) {
      opened = item;
      if (item !== null) current = item;
    },
    focus(item) {
      current = item;
      show(visible);
      tileOf(item).firstChild.focus();
    },
    current: () => current,
  };
}
