// A picture to start from, with what is painted over it: there it changes, or everywhere if nothing is.
import { byId, element, icon } from "./dom.js";
import { canvasPng, shrunkPng } from "./images.js";
import { say } from "./status.js";

const INK = "#d6336c"; // seen on most pictures; the mask that is sent is white
const DEFAULT_STRENGTH = 0.75;

let image = null; // the PNG that is sent
let maxSize = 1024;
let changed = () => {};
let loaded = () => {};
let painted = false;
let last = null; // where the stroke has come to

const canvas = () => byId("edit-mask");

/** {image, mask, strength, composite}, or null; the mask is written where `withMask` wants it. */
export async function chosenEdit({ withMask = true } = {}) {
  if (!image) return null;
  const mask = painted && withMask ? await maskPng() : null;
  return { image, mask, strength: Number(byId("edit-strength").value), composite: byId("edit-composite").checked };
}

/** Replaces what is chosen; null removes it. */
export async function setEdit(edit) {
  if (!edit) return clear();
  byId("edit-strength").value = edit.strength;
  byId("edit-composite").checked = edit.composite;
  await show(edit.image);
  if (edit.mask) await takeMask(edit.mask);
  update();
}

/** Pictures are shrunk to `largest`. */
export function setEditLimit(largest) {
  maxSize = largest;
}

async function take(file) {
  try {
    await show(await shrunkPng(file, maxSize));
    byId("edit-strength").value = DEFAULT_STRENGTH;
    loaded(canvas().width, canvas().height);
    update();
  } catch (error) {
    say(error.message, { kind: "error" });
  }
}

async function show(png) {
  const bitmap = await createImageBitmap(png);
  for (const id of ["edit-picture", "edit-mask"]) Object.assign(byId(id), { width: bitmap.width, height: bitmap.height });
  byId("edit-picture").getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  [image, painted] = [png, false];
}

function clear() {
  [image, painted] = [null, false];
  byId("edit-file").value = "";
  update();
}

function wipe() {
  canvas().getContext("2d").clearRect(0, 0, canvas().width, canvas().height);
  painted = false;
  update();
}

function update() {
  byId("edit-drop").hidden = image !== null;
  byId("edit-stage").hidden = byId("edit-tools").hidden = byId("edit-remove").hidden = image === null;
  byId("edit-clear").disabled = !painted;
  byId("edit-composite").disabled = !painted;
  byId("edit-where").textContent = painted ? "What is painted over changes." : "Everything changes: paint over a part of it.";
  byId("edit-strength-shown").value = Number(byId("edit-strength").value).toFixed(2);
  changed();
}

/** White where it is painted, black elsewhere. */
function maskPng() {
  const made = element("canvas", { width: canvas().width, height: canvas().height });
  const context = made.getContext("2d");
  context.drawImage(canvas(), 0, 0);
  fill(context, "source-in", "white");
  fill(context, "destination-over", "black");
  return canvasPng(made);
}

/** Fills all of a canvas, as `operation` says: within what is drawn there, or behind it. */
function fill(context, operation, colour) {
  context.globalCompositeOperation = operation;
  context.fillStyle = colour;
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  context.globalCompositeOperation = "source-over";
}

/** A mask that was written before: its white goes back onto the canvas. */
async function takeMask(png) {
  const bitmap = await createImageBitmap(png);
  const context = canvas().getContext("2d");
  context.drawImage(bitmap, 0, 0, canvas().width, canvas().height);
  bitmap.close();
  const pixels = context.getImageData(0, 0, canvas().width, canvas().height);
  for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at]; // black becomes clear
  context.putImageData(pixels, 0, 0);
  fill(context, "source-in", INK);
  painted = true;
}

function place(event) {
  const box = canvas().getBoundingClientRect();
  const scale = canvas().width / box.width;
  return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale, scale };
}

function stroke(event) {
  if (!last) return;
  const context = canvas().getContext("2d");
  for (const each of event.getCoalescedEvents?.() ?? [event]) {
    const { x, y, scale } = place(each);
    context.globalCompositeOperation = byId("edit-erase").checked ? "destination-out" : "source-over";
    Object.assign(context, { strokeStyle: INK, lineCap: "round", lineJoin: "round" });
    context.lineWidth = Number(byId("edit-brush").value) * scale;
    context.beginPath();
    context.moveTo(last.x, last.y);
    context.lineTo(x, y);
    context.stroke();
    last = { x, y };
  }
}

function connectBrush() {
  canvas().addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    canvas().setPointerCapture(event.pointerId);
    last = place(event);
    last.x -= 0.01; // a stroke of no length draws nothing
    stroke(event);
  });
  canvas().addEventListener("pointermove", stroke);
  for (const name of ["pointerup", "pointercancel"]) {
    canvas().addEventListener(name, () => {
      if (last) painted ||= !byId("edit-erase").checked;
      last = null;
      update();
    });
  }
}

/** `onChange` is called whenever the choice changes, `onLoad(width, height)` when there is another picture. */
export function connectEdit(onChange, onLoad) {
  [changed, loaded] = [onChange, onLoad];
  byId("edit-drop").append(icon("picture"), element("span", {}, "Drop or choose"));
  byId("edit-file").addEventListener("change", () => byId("edit-file").files[0] && take(byId("edit-file").files[0]));
  byId("edit-remove").addEventListener("click", clear);
  byId("edit-clear").addEventListener("click", wipe);
  byId("edit-strength").addEventListener("input", update);
  byId("edit-composite").addEventListener("change", update);
  connectBrush();
  update();
}

/** Takes a picture that was dropped onto its section; whether it was. */
export function receiveEdit(file, target) {
  if (!target?.closest?.("#edit-section")) return false;
  take(file);
  return true;
}
