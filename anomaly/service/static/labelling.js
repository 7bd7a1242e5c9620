// Marking: buttons and keys, one step back for each mark, and saving in the order in which marks were made.

import { element } from "./dom.js";

const WORDS = { good: "really good", defect: "really defective", "": "not marked" };

/**
 * Fill `root` with the buttons.
 *
 * run: that keeps the marks. item(): the one that the buttons and keys are about, or null. onMarked(item): its mark is
 * another now. onSaved(counts): marks were written. onNext(item): the person is done with it. onBack(item): a mark was
 * taken back. onFault(error): a mark could not be written; it was taken back.
 */
export function createMarks(root, run, { item, onMarked, onSaved, onNext, onBack, onFault }) {
  const history = [];
  let saving = Promise.resolve();
  const keys = { g: "good", d: "defect", n: "" };
  const buttons = {
    good: button("good", "✓ Really good", "g"),
    defect: button("defect", "✕ Really defective", "d"),
    "": button("", "No mark", "n"),
  };
  const undo = element("button", { type: "button", click: back, disabled: true, "aria-keyshortcuts": "u" }, "Undo", element("kbd", {}, "u"));
  const about = element("p", { class: "note" });
  root.replaceChildren(element("h2", {}, "Your mark"), element("div", { class: "mark-buttons" }, ...Object.values(buttons), undo), about);
  draw();

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || isTyping(event.target)) return;
    if (event.key === "u") back();
    else if (event.key in keys && item() !== null) set(item(), keys[event.key]);
    else return;
    event.preventDefault();
  });

  function button(mark, words, key) {
    return element("button", { type: "button", class: `mark-${mark || "none"}`, "aria-keyshortcuts": key, click: () => item() && set(item(), mark) },
      words, element("kbd", {}, key));
  }

  function draw() {
    const about_it = item();
    for (const [mark, made] of Object.entries(buttons)) {
      made.disabled = !about_it || about_it.status !== "ok";
      made.setAttribute("aria-pressed", String(Boolean(about_it) && about_it.status === "ok" && about_it.mark === mark));
    }
    undo.disabled = history.length === 0;
    about.textContent = !about_it
      ? "Open an image, or put the keyboard on its tile."
      : about_it.status !== "ok"
        ? "It could not be scored: there is no verdict to mark."
        : "What the part really is, whatever the verdict. The next image follows.";
  }

  function set(about_it, mark) {
    if (about_it.status !== "ok") return;
    if (about_it.mark !== mark) {
      history.push({ item: about_it, before: about_it.mark });
      write(about_it, mark);
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

  /** Show a mark at once, and write it after those before it. */
  function write(about_it, mark) {
    const before = about_it.mark;
    about_it.mark = mark;
    onMarked(about_it);
    saving = saving.then(async () => {
      try {
        onSaved((await run.mark(about_it.number, mark)).counts);
      } catch (error) {
        about_it.mark = before;
        onMarked(about_it);
        onFault(error);
        draw();
      }
    });
  }

  return { set, draw };
}

/** Say a mark in words. */
export function markWords(mark) {
  return WORDS[mark];
}

function isTyping(target) {
  return target.closest?.("dialog, select, textarea, input:not([type=radio], [type=checkbox], [type=range])") !== null;
}
