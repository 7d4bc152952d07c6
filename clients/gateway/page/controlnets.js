// ControlNets: each a name, a picture that is dropped, picked or pasted, and three sliders.
import { byId, element, icon, iconButton, isTyping } from "./dom.js";
import { receiveEdit } from "./editing.js";
import { pictureIn, shrunkPng, thumbnail } from "./images.js";
import { say } from "./status.js";

let names = [];
let most = 8;
let maxSize = 1024;
let changed = () => {};
const images = new WeakMap(); // card -> the PNG that is sent

const cards = () => [...byId("controlnets").children];
const targets = () => [...cards(), byId("edit-section")]; // where pictures may be dropped

export const chosenControlnets = () =>
  cards().map((card) => {
    const value = (part) => Number(card.querySelector(`.${part}`).value);
    const name = card.querySelector("select").value;
    return { name, scale: value("scale"), start: value("start"), end: value("end"), image: images.get(card) ?? null };
  });

/** What the chosen pipeline offers; pictures are shrunk to `largest`. */
export function setControlnetCatalogue(controlnets, maxControlnets, largest) {
  names = controlnets.map((control) => control.name);
  most = maxControlnets;
  maxSize = largest;
  byId("controlnet-section").hidden = !names.length;
}

/** Replaces what is chosen; answers the names that the pipeline lacks. */
export function setControlnets(controls) {
  byId("controlnets").replaceChildren(...controls.filter((control) => names.includes(control.name)).map(card));
  count();
  return controls.map((control) => control.name).filter((name) => !names.includes(name));
}

function count() {
  byId("controlnet-add").disabled = cards().length >= most;
  changed();
}

function add() {
  const unused = names.find((name) => !cards().some((other) => other.querySelector("select").value === name));
  const made = card({ name: unused ?? names[0], scale: 1, start: 0, end: 1, image: null });
  byId("controlnets").append(made);
  count();
  made.scrollIntoView({ block: "nearest" });
  return made;
}

function card(control) {
  const picker = element("input", {
    type: "file",
    accept: "image/*",
    class: "controlnet-file hidden-text",
    "aria-label": "Picture of the ControlNet",
  });
  const drop = element("label", { class: "drop", title: "Drop, paste or choose a picture" }, picker);
  const options = names.map((name) => element("option", { value: name }, name));
  const choose = element("select", { "aria-label": "ControlNet" }, options);
  choose.value = control.name;
  const remove = iconButton("close", "Remove this ControlNet", () => {
    made.remove();
    count();
  });
  const made = element(
    "li",
    { class: "controlnet" },
    drop,
    element("div", { class: "label-row" }, choose, remove),
    slider("Scale", "scale", 2, control.scale),
    slider("Start", "start", 1, control.start),
    slider("End", "end", 1, control.end),
  );
  picker.addEventListener("change", () => picker.files[0] && take(made, picker.files[0]));
  made.addEventListener("input", ({ target }) => keepOrder(made, target));
  show(made, control.image);
  return made;
}

function slider(label, part, max, value) {
  const range = element("input", { type: "range", class: part, min: 0, max, step: 0.05, value });
  const shown = element("output", {}, Number(value).toFixed(2));
  range.addEventListener("input", () => (shown.value = Number(range.value).toFixed(2)));
  return element("label", { class: "slider" }, element("span", {}, label), range, shown);
}

/** The start stays before the end: whichever is moved pushes the other. */
function keepOrder(made, moved) {
  const [start, end] = [made.querySelector(".start"), made.querySelector(".end")];
  if (moved !== start && moved !== end) return;
  if (Number(start.value) < Number(end.value)) return;
  const [pushed, to] = moved === start ? [end, Number(start.value) + 0.05] : [start, Number(end.value) - 0.05];
  pushed.value = to;
  pushed.dispatchEvent(new Event("input"));
  if (moved === start && Number(end.value) <= Number(start.value)) start.value = Number(end.value) - 0.05;
  if (moved === end && Number(end.value) <= Number(start.value)) end.value = Number(start.value) + 0.05;
  moved.nextElementSibling.value = Number(moved.value).toFixed(2);
}

async function take(made, file) {
  try {
    show(made, await shrunkPng(file, maxSize));
    changed();
  } catch (error) {
    say(error.message, { kind: "error" });
  }
}

function show(made, image) {
  const drop = made.querySelector(".drop");
  [...drop.children].slice(1).forEach((child) => child.remove()); // the file input stays
  if (!image) {
    images.delete(made);
    return drop.append(icon("picture"), element("span", {}, "Drop, paste or choose"));
  }
  images.set(made, image);
  drop.append(thumbnail(image));
}

/** A pasted or dropped picture goes to the card it is meant for, else to the first without one, else to a new one. */
function receive(file, target) {
  const meant = target?.closest?.(".controlnet") ?? cards().find((other) => !images.has(other));
  if (!meant && (!names.length || cards().length >= most)) return;
  take(meant ?? add(), file);
}

/** `onChange` is called whenever the choice changes. */
export function connectControlnets(onChange) {
  changed = onChange;
  byId("controlnet-add").addEventListener("click", add);
  document.addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData);
    if (!file || document.querySelector("dialog[open]")) return;
    // Some programs copy a picture of the text beside the text.
    if (isTyping() && event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    if (!receiveEdit(file, document.activeElement)) receive(file, document.activeElement);
  });
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault(); // also beside the form: the browser would leave the page for the picture
    targets().forEach((other) => other.classList.toggle("over", other.contains(event.target)));
  });
  document.addEventListener("drop", (event) => {
    const file = pictureIn(event.dataTransfer);
    targets().forEach((other) => other.classList.remove("over"));
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    if (file && !receiveEdit(file, event.target)) receive(file, event.target);
  });
}
