// A mask that is painted over a picture, on a canvas of the picture's size: ink where it changes.
import { byId, element } from "./dom.js";
import { canvasPng } from "./images.js";

const INK = "#d6336c"; // seen on most pictures; the mask that is sent is white
const MOST_UNDONE = 20;

let changed = () => {};
let isErasing = false;
let last = null; // where the stroke has come to
let before = []; // what undoing brings back: pixels, the newest last
let inked = false;
let file = null; // the mask as a PNG, until the next stroke

const canvas = () => byId("edit-mask");
const context = () => canvas().getContext("2d", { willReadFrequently: true });
const pixels = () => context().getImageData(0, 0, canvas().width, canvas().height);

export const isPainted = () => inked;
export const canUndo = () => before.length > 0;

/** An empty mask of another size. */
export function beginMask(width, height) {
  Object.assign(canvas(), { width, height });
  [before, inked, file, last] = [[], false, null, null];
}

/** White where it is painted, black elsewhere; null where nothing is. */
export async function maskPng() {
  if (!inked) return null;
  const made = element("canvas", { width: canvas().width, height: canvas().height });
  const drawing = made.getContext("2d");
  drawing.drawImage(canvas(), 0, 0);
  fill(drawing, "source-in", "white");
  fill(drawing, "destination-over", "black");
  file ??= canvasPng(made);
  return file;
}

/** A mask that was written before: its white goes back onto the canvas. */
export async function takeMask(png) {
  const bitmap = await createImageBitmap(png);
  context().drawImage(bitmap, 0, 0, canvas().width, canvas().height);
  bitmap.close();
  const made = pixels();
  for (let at = 0; at < made.data.length; at += 4) made.data[at + 3] = made.data[at]; // black becomes clear
  context().putImageData(made, 0, 0);
  fill(context(), "source-in", INK);
  look();
}

/** Fills all of a canvas, as `operation` says: within what is drawn there, or behind it. */
function fill(drawing, operation, colour) {
  drawing.globalCompositeOperation = operation;
  drawing.fillStyle = colour;
  drawing.fillRect(0, 0, drawing.canvas.width, drawing.canvas.height);
  drawing.globalCompositeOperation = "source-over";
}

export function undo() {
  const pixelsBefore = before.pop();
  if (pixelsBefore) context().putImageData(pixelsBefore, 0, 0);
  look();
}

export function wipe() {
  keep();
  context().clearRect(0, 0, canvas().width, canvas().height);
  look();
}

function keep() {
  before.push(pixels());
  before = before.slice(-MOST_UNDONE);
}

/** Takes notice of what is on the canvas: all of it may have been erased. */
function look() {
  const { data } = pixels();
  inked = false;
  for (let at = 3; at < data.length && !inked; at += 4) inked = data[at] > 127;
  file = null;
  changed();
}

export function setErasing(erasing) {
  isErasing = erasing;
  byId("edit-paint").setAttribute("aria-pressed", String(!erasing));
  byId("edit-erase").setAttribute("aria-pressed", String(erasing));
}

/** The cursor is the brush: a ring of its size, light within dark. */
function showBrush() {
  const size = Number(byId("edit-brush").value);
  const [side, middle] = [size + 4, size / 2 + 2];
  const ring = (radius, colour) => `<circle cx="${middle}" cy="${middle}" r="${radius}" stroke="${colour}"/>`;
  const rings = ring(size / 2 + 0.5, "black") + ring(size / 2 - 0.5, "white");
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${side}" height="${side}" fill="none">${rings}</svg>`;
  canvas().style.cursor = `url("data:image/svg+xml,${encodeURIComponent(svg)}") ${middle} ${middle}, crosshair`;
  byId("edit-brush-shown").value = size;
}

function place(event) {
  const box = canvas().getBoundingClientRect();
  const scale = canvas().width / box.width;
  return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale, scale };
}

function stroke(event) {
  if (!last) return;
  const drawing = context();
  drawing.globalCompositeOperation = isErasing ? "destination-out" : "source-over";
  for (const each of event.getCoalescedEvents?.() ?? [event]) {
    const { x, y, scale } = place(each);
    Object.assign(drawing, { strokeStyle: INK, lineCap: "round", lineJoin: "round" });
    drawing.lineWidth = Number(byId("edit-brush").value) * scale;
    drawing.beginPath();
    drawing.moveTo(last.x, last.y);
    drawing.lineTo(x, y);
    drawing.stroke();
    last = { x, y };
  }
  drawing.globalCompositeOperation = "source-over";
}

/** `onChange` is called after every stroke. */
export function connectPainting(onChange) {
  changed = onChange;
  canvas().addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    canvas().setPointerCapture(event.pointerId);
    keep();
    last = place(event);
    last.x -= 0.01; // a stroke of no length draws nothing
    stroke(event);
  });
  canvas().addEventListener("pointermove", stroke);
  for (const name of ["pointerup", "pointercancel"]) {
    canvas().addEventListener(name, () => {
      if (!last) return;
      last = null;
      look();
    });
  }
  byId("edit-brush").addEventListener("input", showBrush);
  byId("edit-paint").addEventListener("click", () => setErasing(false));
  byId("edit-erase").addEventListener("click", () => setErasing(true));
  byId("edit-undo").addEventListener("click", undo);
  byId("edit-clear").addEventListener("click", wipe);
  setErasing(false);
  showBrush();
}
