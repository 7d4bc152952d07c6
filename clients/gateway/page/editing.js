// A picture to start from, with what is painted over it: there it changes, or everywhere if nothing is.
import { byId, element, icon } from "./dom.js";
import { shrunkPng } from "./images.js";
import { beginMask, canUndo, connectPainting, isPainted, maskPng, setErasing, takeMask } from "./painting.js";
import { say } from "./status.js";

export const DEFAULT_STRENGTH = 0.75;
const MOST_HIGH = 420; // pixels of the page

let image = null; // the PNG that is sent
let maxSize = 1024;
let changed = () => {};
let loaded = () => {};
let loading = Promise.resolve(); // pictures take a moment to be drawn

/** {image, mask, strength, composite}, or null. */
export async function chosenEdit() {
  await loading;
  if (!image) return null;
  const mask = await maskPng();
  return { image, mask, strength: Number(byId("edit-strength").value), composite: byId("edit-composite").checked };
}

/** Replaces what is chosen; null removes it. What is no picture is none. */
export function setEdit(edit) {
  loading = loading.then(() => (edit ? fill(edit) : clear())).catch(clear);
}

/** Pictures are shrunk to `largest`. */
export function setEditLimit(largest) {
  maxSize = largest;
}

async function fill({ image: png, mask, strength, composite }) {
  await show(png);
  if (mask) await takeMask(mask);
  byId("edit-strength").value = strength;
  byId("edit-composite").checked = composite;
  update();
}

function take(file) {
  const taken = async () => {
    await show(await shrunkPng(file, maxSize));
    byId("edit-strength").value = DEFAULT_STRENGTH;
    loaded(byId("edit-picture").width, byId("edit-picture").height);
    update();
  };
  loading = loading.then(taken).catch((error) => say(error.message, { kind: "error" }));
  byId("edit-file").value = ""; // the same file may be chosen again
}

async function show(png) {
  const bitmap = await createImageBitmap(png);
  const { width, height } = bitmap;
  Object.assign(byId("edit-picture"), { width, height });
  byId("edit-picture").getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  byId("edit-stage").style.maxWidth = `${Math.round((MOST_HIGH * width) / height)}px`;
  beginMask(width, height);
  setErasing(false);
  image = png;
}

function clear() {
  image = null;
  beginMask(1, 1);
  update();
}

function update() {
  byId("edit-drop").hidden = image !== null;
  byId("edit-chosen").hidden = byId("edit-remove").hidden = image === null;
  byId("edit-undo").disabled = !canUndo();
  byId("edit-clear").disabled = byId("edit-composite").disabled = !isPainted();
  byId("edit-where").textContent = isPainted()
    ? "Only what is painted over changes."
    : "All of it changes. Paint over a part to change only that.";
  byId("edit-strength-shown").value = Number(byId("edit-strength").value).toFixed(2);
  changed();
}

/** `onChange` is called whenever the choice changes, `onLoad(width, height)` when there is another picture. */
export function connectEdit(onChange, onLoad) {
  [changed, loaded] = [onChange, onLoad];
  byId("edit-drop").append(icon("picture"), element("span", {}, "Drop, paste or choose"));
  byId("edit-file").addEventListener("change", () => byId("edit-file").files[0] && take(byId("edit-file").files[0]));
  byId("edit-remove").addEventListener("click", clear);
  byId("edit-strength").addEventListener("input", update);
  byId("edit-composite").addEventListener("change", update);
  connectPainting(update);
  update();
}

/** Takes a picture that was dropped or pasted onto its section; whether it was. */
export function receiveEdit(file, target) {
  if (!target?.closest?.("#edit-section")) return false;
  take(file);
  return true;
}
