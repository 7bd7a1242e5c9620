// The dialog for the token.

import { element } from "./dom.js";

/** Add the dialog to the page; returns requestToken(wasWrong), which returns a promise of the token. */
export function createTokenDialog() {
  const wrong = element("p", { id: "token-wrong", class: "alert", hidden: true }, "This token is not valid. Enter another token.");
  const text = element("input", { id: "token-text", type: "password", autocomplete: "off", required: true });
  const form = element("form", { id: "token-form", method: "dialog" },
    element("h2", { id: "token-title" }, "This service requires a token"),
    wrong,
    element("label", { for: "token-text" }, "Token"), text,
    element("p", { class: "note" }, "The operator of the service has the token. This tab stores it until you close the tab."),
    element("button", { type: "submit", class: "primary" }, "Continue"));
  const dialog = element("dialog", { id: "token", "aria-labelledby": "token-title", close: reopen }, form);
  document.body.append(dialog);

  /** Open the dialog again if it was closed without a token. */
  function reopen() {
    if (dialog.returnValue !== "submitted") dialog.showModal();
  }

  return (wasWrong) => {
    wrong.hidden = !wasWrong;
    dialog.returnValue = "";
    if (!dialog.open) dialog.showModal();
    return new Promise((resolve) => {
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        dialog.close("submitted");
        const token = text.value.trim();
        text.value = "";
        resolve(token);
      }, { once: true });
    });
  };
}
