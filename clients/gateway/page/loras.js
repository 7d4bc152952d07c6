// LoRAs: a search over a catalogue that may have thousands, and the chosen ones with their scales.
import { byId, element, iconButton } from "./dom.js";
import { say } from "./status.js";

const MOST_MATCHES = 50;

let catalogue = [];
let most = 16;
let matches = []; // what the list shows
let active = 0; // which of them Enter takes
let changed = () => {};

const search = () => byId("lora-search");
const rows = () => [...byId("loras").children];
const isChosen = (name) => rows().some((row) => row.dataset.name === name);

export const chosenLoras = () =>
  rows().map((row) => ({ name: row.dataset.name, scale: Number(row.querySelector("input[type=number]").value) || 0 }));

export function setLoraCatalogue(loras, maxLoras) {
  catalogue = loras;
  most = maxLoras;
  byId("lora-section").hidden = !loras.length;
  search().placeholder = `Search ${loras.length.toLocaleString("en")} by name`;
}

/** Replaces what is chosen; answers the names that the catalogue lacks. */
export function setLoras(loras) {
  const known = new Set(catalogue.map((lora) => lora.name));
  const kept = loras.filter((lora) => known.has(lora.name));
  byId("loras").replaceChildren(...kept.map((lora) => row(lora.name, lora.scale)));
  count();
  return loras.map((lora) => lora.name).filter((name) => !known.has(name));
}

function count() {
  byId("lora-count").textContent = rows().length ? `${rows().length} of at most ${most}` : "";
  changed();
}

function row(name, scale) {
  const label = `Scale of ${name}`;
  const number = element("input", { type: "number", step: "any", value: scale, "aria-label": label });
  const range = { type: "range", min: -2, max: 2, step: 0.05, value: scale };
  const slider = element("input", { ...range, "aria-label": `${label}, slider` });
  number.addEventListener("input", () => (slider.value = number.value));
  slider.addEventListener("input", () => (number.value = slider.value));
  const remove = iconButton("close", `Remove ${name}`, () => {
    made.remove();
    count();
  });
  const shown = element("span", { class: "name", title: name }, name);
  const made = element("li", { class: "lora" }, shown, slider, number, remove);
  made.dataset.name = name;
  return made;
}

function add({ name, scale }) {
  if (isChosen(name)) return;
  if (rows().length >= most) return say(`A request takes at most ${most} LoRAs.`, { kind: "error" });
  byId("loras").append(row(name, scale ?? 1));
  count();
  search().select();
  show();
}

/** Names that begin with the text come first, then those that hold it anywhere. */
function found(text) {
  const wanted = text.trim().toLowerCase();
  const first = [];
  const later = [];
  for (const lora of catalogue) {
    const at = lora.name.toLowerCase().indexOf(wanted);
    if (at < 0 || isChosen(lora.name)) continue;
    (at === 0 ? first : later).push(lora);
  }
  return [...first, ...later];
}

function show() {
  const all = found(search().value);
  matches = all.slice(0, MOST_MATCHES);
  byId("lora-matches").replaceChildren(
    ...matches.map((lora, index) => {
      // mousedown, not click: the field keeps the focus, and the list stays open for the next one
      const take = (event) => (event.preventDefault(), add(lora));
      const scale = element("span", { class: "muted" }, String(lora.scale ?? 1));
      const properties = { id: `lora-match-${index}`, class: "match", role: "option", onmousedown: take };
      return element("div", properties, lora.name, scale);
    }),
  );
  const more = all.length - matches.length;
  const none = all.length ? "" : "No LoRA of that name";
  byId("lora-more").textContent = more ? `${more.toLocaleString("en")} more: type to narrow` : none;
  open(true);
  activate(0);
}

function open(wanted) {
  const popup = byId("lora-matches").parentElement;
  if (wanted && popup.hidden) requestAnimationFrame(() => popup.scrollIntoView({ block: "nearest" }));
  popup.hidden = !wanted;
  search().setAttribute("aria-expanded", String(wanted));
}

function activate(index) {
  active = Math.max(0, Math.min(index, matches.length - 1));
  [...byId("lora-matches").children].forEach((match, at) => {
    match.setAttribute("aria-selected", String(at === active));
    if (at === active) match.scrollIntoView({ block: "nearest" });
  });
  if (matches.length) search().setAttribute("aria-activedescendant", `lora-match-${active}`);
  else search().removeAttribute("aria-activedescendant");
}

function key(event) {
  const isOpen = search().getAttribute("aria-expanded") === "true";
  if (event.ctrlKey || event.metaKey) return; // Ctrl+Enter generates
  if (event.key === "ArrowDown" && !isOpen) show();
  else if (event.key === "ArrowDown") activate(active + 1);
  else if (event.key === "ArrowUp") activate(active - 1);
  else if (event.key === "Enter" && isOpen && matches[active]) add(matches[active]);
  else if (event.key === "Escape" && isOpen) open(false);
  else if (event.key !== "Enter") return; // Enter in this field never submits the form
  event.preventDefault();
}

/** `onChange` is called whenever the choice changes. */
export function connectLoras(onChange) {
  changed = onChange;
  search().addEventListener("input", show);
  search().addEventListener("focus", show);
  search().addEventListener("click", show);
  search().addEventListener("blur", () => open(false));
  search().addEventListener("keydown", key);
}
