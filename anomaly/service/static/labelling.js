// Labelling by buttons and keys, with undo; labels are saved in the order of the user's actions.

import { element } from "./dom.js";
import { terms } from "./review_terms.js";

/**
 * Fill `root` with the buttons.
 *
 * api: review API, which saves the labels. selected(): item of the buttons and keys, or null. onLabelled(item): its label
 * changed. onSaved(counts): a label was saved. onNext(item): the user has finished the item. onUndo(item): its label was
 * undone. onError(error): a label could not be saved; its previous value was restored.
 */
export function createLabelling(root, api, { selected, onLabelled, onSaved, onNext, onUndo, onError }) {
  const history = [];
  const keys = { g: "good", d: "defect", n: "" };
  const buttons = {
    good: button("good", terms.buttons.good, "g"),
    defect: button("defect", terms.buttons.defect, "d"),
    "": button("", terms.buttons[""], "n"),
  };
  const undoButton = element("button", { type: "button", click: undo, disabled: true, "aria-keyshortcuts": "u" }, "Undo", element("kbd", {}, "u"));
  const hint = element("p", { class: "note" });
  root.replaceChildren(element("h2", {}, "Your label"), element("div", { class: "label-buttons" }, ...Object.values(buttons), undoButton), hint);
  draw();

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || isTyping(event.target)) return;
    if (event.key === "u") undo();
    else if (event.key in keys && selected() !== null) set(selected(), keys[event.key]);
    else return;
    event.preventDefault();
  });

  function button(label, text, key) {
    return element("button", { type: "button", class: `label-${label || "none"}`, "aria-keyshortcuts": key, click: () => selected() && set(selected(), label) },
      text, element("kbd", {}, key));
  }

  function draw() {
    const item = selected();
    for (const [label, node] of Object.entries(buttons)) {
      node.disabled = !item || item.status !== "ok";
      node.setAttribute("aria-pressed", String(Boolean(item) && item.status === "ok" && item.label === label));
    }
    undoButton.disabled = history.length === 0;
    hint.textContent = !item
      ? "Open an image, or select its tile with the keyboard."
      : item.status !== "ok"
        ? "This image has no score, so it cannot be labelled."
        : terms.hint;
  }

  function set(item, label) {
    if (item.status !== "ok") return;
    if (item.label !== label) {
      history.push({ item, before: item.label });
      save(item, label);
    }
    onNext(item);
    draw();
  }

  function undo() {
    const last = history.pop();
    if (!last) return;
    save(last.item, last.before);
    onUndo(last.item);
    draw();
  }

  /** Show a label at once and save it. */
  async function save(item, label) {
    const before = item.label;
    item.label = label;
    onLabelled(item);
    try {
      onSaved((await api.label(item.number, label)).counts);
    } catch (error) {
      item.label = before;
      onLabelled(item);
      onError(error);
      draw();
    }
  }

  return { set, draw };
}

/** Name a label in words. */
export function labelName(label) {
  return terms.labels[label];
}

function isTyping(target) {
  return target.closest?.("dialog, select, textarea, input:not([type=radio], [type=checkbox], [type=range])") !== null;
}
