// The API key: asked for when the server answers 401, kept until the tab is closed.
import { byId } from "./dom.js";
import { recallForTab, rememberForTab } from "./storage.js";

let key = recallForTab("api_key");

export const apiKey = () => key;

/** Shows the field; `why` is the server's sentence, if a refusal is the reason. */
export function askForKey(why = "") {
  byId("key-reason").textContent = why || "The key is kept until this tab is closed.";
  byId("key-bar").hidden = false;
  byId("api-key").value = key;
  byId("api-key").focus();
}

/** `onChange` is called with every new key. */
export function connectKey(onChange) {
  byId("key-button").addEventListener("click", () => {
    if (byId("key-bar").hidden) askForKey();
    else byId("key-bar").hidden = true;
  });
  byId("key-bar").addEventListener("submit", (event) => {
    event.preventDefault();
    key = byId("api-key").value.trim();
    rememberForTab("api_key", key);
    byId("key-bar").hidden = true;
    onChange();
  });
}
