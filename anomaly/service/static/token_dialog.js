// The dialog that asks a person for the token.

import { element } from "./dom.js";

/** Put the dialog into the page; gives askToken(wasWrong), a promise of what was typed. */
export function createTokenDialog() {
  const wrong = element("p", { id: "token-wrong", class: "alert", hidden: true }, "That was not the token of this service.");
  const text = element("input", { id: "token-text", type: "password", autocomplete: "off", required: true });
  const form = element("form", { id: "token-form", method: "dialog" },
    element("h2", { id: "token-title" }, "This service wants its token"),
    wrong,
    element("label", { for: "token-text" }, "Token"), text,
    element("p", { class: "note" }, "Who started the service knows it. It is kept in this tab until the tab is closed."),
    element("button", { type: "submit", class: "primary" }, "Go on"));
  const dialog = element("dialog", { id: "token", "aria-labelledby": "token-title", close: again }, form);
  document.body.append(dialog);

  /** Nothing goes on without. */
  function again() {
    if (dialog.returnValue !== "given") dialog.showModal();
  }

  return (wasWrong) => {
    wrong.hidden = !wasWrong;
    dialog.returnValue = "";
    if (!dialog.open) dialog.showModal();
    return new Promise((resolve) => {
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        dialog.close("given");
        const given = text.value.trim();
        text.value = "";
        resolve(given);
      }, { once: true });
    });
  };
}
