// Keys that work anywhere on the page; index.html lists them in its dialog.
import { byId, isTyping } from "./dom.js";
import * as gallery from "./gallery.js";
import { cancelAll } from "./runs.js";
import { setSheet } from "./sheet.js";

export function connectKeys() {
  if (/Mac|iPhone|iPad/.test(navigator.platform)) byId("generate-key").textContent = "⌘ ↵";
  byId("keys-button").addEventListener("click", () => byId("keys").showModal());
  byId("keys").addEventListener("click", (event) => event.target === byId("keys") && byId("keys").close());
  document.addEventListener("keydown", pressed);
}

function pressed(event) {
  if (event.defaultPrevented || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return; // dialogs have their own keys
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit(byId("generate"));
  else if (event.key === "Escape") escape();
  else if (isTyping() || event.ctrlKey || event.metaKey || event.altKey) return;
  else if (event.key === "/") {
    setSheet(false); // the sheet hides the form
    byId("prompt").focus();
  } else if (event.key === "?") byId("keys").showModal();
  else if (/^Arrow(Left|Right)$/.test(event.key) && document.activeElement === document.body) gallery.focus(0);
  else return;
  event.preventDefault();
}

function escape() {
  if (!byId("key-bar").hidden) byId("key-bar").hidden = true;
  else if (!cancelAll()) setSheet(false);
}
