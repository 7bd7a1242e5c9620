// Verdicts as tiles that can be filtered, sorted and walked through by keyboard. It knows nothing of where items come from.
//
// An item is a plain object, told apart from others by identity; it may hold more than this:
//   name        of the image, as a person knows it
//   status      "ok", or the code of an error
//   verdict     "good", "defect" or "review"; "" where status is not "ok"
//   score       calibrated; null where status is not "ok"
//   limit       that the verdict was made by
//   message     what an error is, and the way out; "" else
//   width, height   pixels of the image, or null
//   regions     [{x, y, width, height, area, peak, weak}]
//   p_value     or null
//   thumbnail   address of a small picture, "" for none
//   mark        "", "good" or "defect": what a person says it really is
//
// createGallery(root, {onOpen, drawExtra, actions}) fills the element `root`:
//   onOpen(item)              a tile was clicked, or Enter pressed on it
//   drawExtra(item, place)    optional: draw more controls into the element `place` under a tile; called when it is drawn
//   actions                   [{label, run(items shown)}]: buttons beside the filters
// and gives
//   add(...items)             newest last
//   update(item)              the item has changed: draw it again
//   remove(item)              also `clear()`
//   tryLimit(limit or null)   show what another limit would do to each item
//   items(), shown()          all, and those that pass the filter in the order shown
//   open(item or null)        mark the tile of the item that is open
//   focus(item)               put the keyboard on its tile
//   neighbour(item, step)     the item so many places further among those shown, or undefined

import { element, figure } from "./elements.js";
import { gauge } from "./gauge.js";

const PAGE = 120;
const VERDICTS = { good: "Accepted", defect: "Rejected", review: "To review" };
const SYMBOLS = { good: "✓", defect: "✕", review: "?", error: "!" };
const MARKS = { good: "marked really good", defect: "marked really defective" };
const ORDERS = {
  newest: ["Newest first", (a, b) => b.at - a.at],
  oldest: ["Oldest first", (a, b) => a.at - b.at],
  highest: ["Highest score first", (a, b) => rank(b.item) - rank(a.item) || b.at - a.at],
  lowest: ["Lowest score first", (a, b) => -rank(b.item) + rank(a.item) || b.at - a.at],
};

/** good, defect, review or error. */
export function kindOf(item) {
  return item.status === "ok" ? item.verdict : "error";
}

/** Name the verdict of an item: in words, and by a symbol that does not need its colour. */
export function verdictOf(item) {
  const kind = kindOf(item);
  return { kind, words: VERDICTS[kind] ?? "Not scored", symbol: SYMBOLS[kind] };
}

/** Whether another limit would turn an item from accepted to rejected or back. */
export function wouldChange(item, limit) {
  return limit !== null && item.status === "ok" && item.score > limit !== (item.verdict === "defect");
}

export function createGallery(root, { onOpen, drawExtra, actions }) {
  const entries = new Map(); // item -> {item, at, tile}
  let tried = null;
  let opened = null;
  let current = null; // the item that Tab reaches
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
  const list = element("ul", { class: "tiles", "aria-label": "Images", keydown: walk });
  const none = element("p", { class: "note" });
  const more = element("button", { type: "button", hidden: true, click: () => grow() });
  root.replaceChildren(element("div", { class: "gallery-tools" }, segments, text, order, ...buttons), none, list, more);
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
    if (!items.includes(current)) current = items[0] ?? null;
    const visible = items.slice(0, numDrawn);
    place(visible.map(tileOf));
    for (const item of visible) {
      const button = entries.get(item).tile.firstChild;
      button.tabIndex = item === current ? 0 : -1;
      if (item === opened) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    none.textContent = entries.size === 0 ? "No images yet." : items.length === 0 ? "No image passes this filter." : "";
    none.hidden = none.textContent === "";
    more.hidden = items.length <= numDrawn;
    more.textContent = `Show more (${items.length - visible.length} are not drawn)`;
    for (const button of buttons) button.disabled = items.length === 0;
  }

  /** Bring the list to these tiles; one that stays where it is is not touched, so that a click on it is not lost. */
  function place(tiles) {
    const wanted = new Set(tiles);
    for (const tile of [...list.children]) if (!wanted.has(tile)) tile.remove();
    let next = list.firstChild;
    for (const tile of tiles) {
      if (tile === next) next = next.nextSibling;
      else list.insertBefore(tile, next);
    }
  }

  function tileOf(item) {
    const entry = entries.get(item);
    entry.tile ??= element("li", {}, ...drawnTile(item));
    return entry.tile;
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
      item.mark ? element("span", { class: "tile-mark" }, MARKS[item.mark]) : "",
      element("span", { class: "tile-name" }, item.name));
    if (!drawExtra) return [button];
    const extra = element("div", { class: "tile-extra" });
    drawExtra(item, extra);
    return [button, extra];
  }

  function chosen(item) {
    current = item;
    onOpen(item);
  }

  function focus(item) {
    const at = shown().indexOf(item);
    if (at < 0) return;
    current = item;
    numDrawn = Math.max(numDrawn, at + 1);
    draw();
    entries.get(item).tile.firstChild.focus();
  }

  function walk(event) {
    const items = shown();
    const at = items.indexOf(current);
    if (at < 0 || !event.target.classList.contains("tile")) return;
    const tops = [...list.children].map((tile) => tile.offsetTop);
    const across = Math.max(1, tops.filter((top) => top === tops[0]).length);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, Home: -at, End: items.length - 1 - at };
    const to = steps[event.key] === undefined ? undefined : items[at + steps[event.key]];
    if (!to) return;
    event.preventDefault();
    focus(to);
  }

  function update(item) {
    const entry = entries.get(item);
    entry?.tile?.replaceChildren(...drawnTile(item));
    later();
  }

  return {
    add(...items) {
      for (const item of items) entries.set(item, { item, at: num++, tile: null });
      later();
    },
    update,
    remove(item) {
      entries.delete(item);
      later();
    },
    clear() {
      entries.clear();
      later();
    },
    tryLimit(limit) {
      tried = limit;
      if (tried === null && filter() === "change") inputs.all.checked = true;
      for (const entry of entries.values()) entry.tile = null;
      const focusedItem = list.contains(document.activeElement) ? current : null;
      draw();
      if (focusedItem) focus(focusedItem);
    },
    items: () => [...entries.keys()],
    shown,
    open(item) {
      opened = item;
      if (item !== null) current = item;
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
