// Verdicts as tiles that are walked through by keyboard. It knows nothing of where items come from, nor of their order.
//
// An item is a plain object, told apart from others by identity; it may hold more than this:
//   name        of the image, as a person knows it
//   short       what stands under the tile in place of a long name; optional
//   status      "ok", or the code of an error
//   verdict     "good", "defect" or "review"; "" where status is not "ok"
//   score       calibrated; null where status is not "ok"
//   threshold       that the verdict was made by
//   message     what an error is, and the way out; "" else
//   width, height   pixels of the image, or null
//   regions     [{x, y, width, height, area, peak, weak}]
//   p_value     or null
//   thumbnail   address of a small picture, "" for none
//   label        "", "good" or "defect": what a person says it really is
//
// createTiles({onOpen, onWalk, drawExtra, items}) gives tiles in its element `list`:
//   onOpen(item)              a tile was clicked, or Enter pressed on it
//   onWalk(item)              the keyboard wants to go there
//   drawExtra(item, place)    optional: draw more controls into the element `place` under a tile; called when it is drawn
//   items()                   all that can be walked to, in their order
// and has
//   show(visible)             the tiles that are drawn, in their order
//   redraw(item), redrawAll() the item, or the threshold that is tried, has changed
//   tryThreshold(threshold or null)   show what another threshold would do to each item, from the next redrawAll on
//   open(item or null)        label the tile of the item that is open
//   focus(item)               put the keyboard on a tile that is shown
//   current()                 the item that Tab reaches

import { element, figure } from "./dom.js";
import { gauge } from "./score_gauge.js";
import { verdictOf, wouldChange } from "./verdict.js";

const MARKS = { good: "✓ really good", defect: "✕ really defective" };

export function createTiles({ onOpen, onWalk, drawExtra, items }) {
  let tiles = new WeakMap(); // item -> its li
  let visible = [];
  let tried = null;
  let opened = null;
  let current = null;
  const list = element("ul", { class: "tiles", "aria-label": "Images", keydown: walk });

  function show(wanted) {
    visible = wanted;
    const all = items();
    if (!all.includes(current)) current = all[0] ?? null;
    place(visible.map(tileOf));
    for (const item of visible) {
      const button = tileOf(item).firstChild;
      button.tabIndex = item === current ? 0 : -1;
      if (item === opened) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  /** Bring the list to these tiles; one that stays where it is is not touched, so that a click on it is not lost. */
  function place(wanted) {
    const kept = new Set(wanted);
    for (const tile of [...list.children]) if (!kept.has(tile)) tile.remove();
    let next = list.firstChild;
    for (const tile of wanted) {
      if (tile === next) next = next.nextSibling;
      else list.insertBefore(tile, next);
    }
  }

  function tileOf(item) {
    if (!tiles.has(item)) tiles.set(item, element("li", {}, ...drawnTile(item)));
    return tiles.get(item);
  }

  function drawnTile(item) {
    const { kind, words, symbol } = verdictOf(item);
    const changes = wouldChange(item, tried);
    const would = changes ? (item.score > tried ? "would be rejected" : "would be accepted") : "";
    const button = element("button", { type: "button", class: `tile is-${kind}`, title: item.name, click: () => chosen(item) },
      element("span", { class: "tile-picture" },
        item.thumbnail ? element("img", { src: item.thumbnail, alt: "", loading: "lazy" }) : element("span", { class: "tile-none", "aria-hidden": "true" }, symbol)),
      element("span", { class: "tile-line" },
        element("span", { class: "verdict" }, element("span", { class: "symbol", "aria-hidden": "true" }, symbol), words),
        element("span", { class: "number" }, item.status === "ok" ? figure(item.score) : "")),
      item.status === "ok" ? gauge(item, tried) : element("span", { class: "tile-message" }, item.message),
      changes ? element("span", { class: "tile-would" }, `⇄ ${would}`) : "",
      item.label ? element("span", { class: `tile-label is-${item.label}` }, MARKS[item.label]) : "",
      element("span", { class: "tile-name" }, item.short ?? item.name));
    if (!drawExtra) return [button];
    const extra = element("div", { class: "tile-extra" });
    drawExtra(item, extra);
    return [button, extra];
  }

  function chosen(item) {
    current = item;
    onOpen(item);
  }

  function walk(event) {
    const all = items();
    const at = all.indexOf(current);
    if (at < 0 || !event.target.classList.contains("tile")) return;
    const tops = [...list.children].map((tile) => tile.offsetTop);
    const across = Math.max(1, tops.filter((top) => top === tops[0]).length);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, Home: -at, End: all.length - 1 - at };
    const to = steps[event.key] === undefined ? undefined : all[at + steps[event.key]];
    if (!to) return;
    event.preventDefault();
    onWalk(to);
  }

  return {
    list,
    show,
    redraw(item) {
      const tile = tiles.get(item);
      if (!tile) return;
      const hadFocus = tile.contains(document.activeElement);
      tile.replaceChildren(...drawnTile(item));
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
