// The one line that says what happened last; screen readers read it out.
import { byId, element } from "./dom.js";

/** Shows `text`; kind "error" stands out. `action` {label, run} adds a button, for example to undo. */
export function say(text, { kind = "info", action = null } = {}) {
  const line = byId("status");
  line.dataset.kind = kind;
  line.replaceChildren(element("span", {}, text));
  if (!action) return;
  const press = () => {
    line.replaceChildren();
    action.run();
  };
  line.append(element("button", { type: "button", class: "link", onclick: press }, action.label));
}
