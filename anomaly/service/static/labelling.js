// Labelling: buttons and keys, one step back for each label, and saving in the order in which labels were made.

import { element } from "./dom.js";

const WORDS = { good: "really good", defect: "really defective", "": "not labelled" };

/**
 * Fill `root` with the buttons.
 *
 * run: that keeps the labels. item(): the one that the buttons and keys are about, or null. onLabelled(item): its label is
 * another now. onSaved(counts): labels were written. onNext(item): the person is done with it. onBack(item): a label was
 * taken back. onFault(error): a label could not be written; it was taken back.
 */
export function createLabels(root, run, { item, onLabelled, onSaved, onNext, onBack, onFault }) {
  const history = [];
  let saving = Promise.resolve();
  const keys = { g: "good", d: "defect", n: "" };
  const buttons = {
    good: button("good", "✓ Really good", "g"),
    defect: button("defect", "✕ Really defective", "d"),
    "": button("", "No label", "n"),
  };
  const undo = element("button", { type: "button", click: back, disabled: true, "aria-keyshortcuts": "u" }, "Undo", element("kbd", {}, "u"));
  const about = element("p", { class: "note" });
  root.replaceChildren(element("h2", {}, "Your label"), element("div", { class: "label-buttons" }, ...Object.values(buttons), undo), about);
  draw();

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || isTyping(event.target)) return;
    if (event.key === "u") back();
    else if (event.key in keys && item() !== null) set(item(), keys[event.key]);
    else return;
    event.preventDefault();
  });

  function button(label, words, key) {
    return element("button", { type: "button", class: `label-${label || "none"}`, "aria-keyshortcuts": key, click: () => item() && set(item(), label) },
      words, element("kbd", {}, key));
  }

  function draw() {
    const about_it = item();
    for (const [label, made] of Object.entries(buttons)) {
      made.disabled = !about_it || about_it.status !== "ok";
      made.setAttribute("aria-pressed", String(Boolean(about_it) && about_it.status === "ok" && about_it.label === label));
    }
    undo.disabled = history.length === 0;
    about.textContent = !about_it
      ? "Open an image, or put the keyboard on its tile."
      : about_it.status !== "ok"
        ? "It could not be scored: there is no verdict to label."
        : "What the part really is, whatever the verdict. The next image follows.";
  }

  function set(about_it, label) {
    if (about_it.status !== "ok") return;
    if (about_it.label !== label) {
      history.push({ item: about_it, before: about_it.label });
      write(about_it, label);
    }
    onNext(about_it);
    draw();
  }

  function back() {
    const last = history.pop();
    if (!last) return;
    write(last.item, last.before);
    onBack(last.item);
    draw();
  }

  /** Show a label at once, and write it after those before it. */
  function write(about_it, label) {
    const before = about_it.label;
    about_it.label = label;
    onLabelled(about_it);
    saving = saving.then(async () => {
      try {
        onSaved((await run.label(about_it.number, label)).counts);
      } catch (error) {
        about_it.label = before;
        onLabelled(about_it);
        onFault(error);
        draw();
      }
    });
  }

  return { set, draw };
}

/** Say a label in words. */
export function labelWords(label) {
  return WORDS[label];
}

function isTyping(target) {
  return target.closest?.("dialog, select, textarea, input:not([type=radio], [type=checkbox], [type=range])") !== null;
}
