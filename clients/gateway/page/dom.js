// Builds elements. Text always goes in as text nodes: prompts and names of LoRAs are strangers' input.

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * An element: `on…` become listeners, `class`, `aria-…`, `data-…` and `role` attributes, the rest properties.
 * Children are elements, text, or lists of them; null, undefined and false are left out.
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class" || name === "role" || name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== false && child !== undefined));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** A drawing from the symbols at the top of index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows a drawing only; `label` is what it is called. */
export function iconButton(name, label, onclick, extra = "") {
  const properties = { type: "button", class: `icon-button ${extra}`, title: label, "aria-label": label, onclick };
  return element("button", properties, icon(name));
}

/** Whether keys typed now go into a text. */
export function isTyping() {
  const focused = document.activeElement;
  if (!focused) return false;
  return focused.matches("textarea, select, [contenteditable], input:not([type=range], [type=checkbox], [type=file])");
}

/** Calls `work` once, `delay` milliseconds after the last of several calls. */
export function settled(delay, work) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, delay);
  };
}
