// The contact sheet: the gallery with whole captions, to look through, print, or save as one picture.
import { byId } from "./dom.js";
import * as gallery from "./gallery.js";
import { canvasPng, download } from "./images.js";
import { say } from "./status.js";

const GAP = 16;
const LINE = 18;
const CAPTION = 3 * LINE + 6; // two lines of the prompt, one of the seed
const FONT = "13px system-ui, sans-serif";

export function connectSheet() {
  byId("sheet-toggle").addEventListener("click", () => setSheet(!document.body.classList.contains("sheet")));
  byId("sheet-print").addEventListener("click", async () => {
    await loaded();
    print();
  });
  byId("sheet-save").addEventListener("click", async () => {
    say("Drawing the sheet…");
    try {
      download(await drawn(gallery.all()), "contact-sheet.png");
      say("Contact sheet saved.");
    } catch (error) {
      say(error.message, { kind: "error" });
    }
  });
  addEventListener("beforeprint", () => void loaded());
}

export function setSheet(wanted) {
  document.body.classList.toggle("sheet", wanted);
  byId("sheet-toggle").setAttribute("aria-pressed", String(wanted));
}

/** Pictures load when they are scrolled to; paper does not scroll. */
function loaded() {
  const images = [...byId("gallery").querySelectorAll("img")];
  for (const image of images) image.loading = "eager";
  return Promise.all(images.map((image) => image.decode().catch(() => {})));
}

async function drawn(pictures) {
  const columns = Math.min(pictures.length, Math.ceil(Math.sqrt(pictures.length * 1.3)));
  const rows = Math.ceil(pictures.length / columns);
  const cell = pictures.length > 100 ? 220 : pictures.length > 24 ? 288 : 400; // some browsers draw 16 megapixels
  const canvas = document.createElement("canvas");
  canvas.width = GAP + columns * (cell + GAP);
  canvas.height = GAP + rows * (cell + CAPTION + GAP);
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff"; // paper, whatever the page's theme
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  for (const [index, picture] of pictures.entries()) {
    const x = GAP + (index % columns) * (cell + GAP);
    const y = GAP + Math.floor(index / columns) * (cell + CAPTION + GAP);
    await drawPicture(context, picture.blob, x, y, cell);
    drawCaption(context, picture.parameters, x, y + cell + LINE, cell);
  }
  return canvasPng(canvas);
}

async function drawPicture(context, blob, x, y, cell) {
  const bitmap = await createImageBitmap(blob);
  const factor = cell / Math.max(bitmap.width, bitmap.height);
  const [width, height] = [bitmap.width * factor, bitmap.height * factor];
  context.drawImage(bitmap, x + (cell - width) / 2, y + (cell - height), width, height); // stands on its caption
  bitmap.close();
}

function drawCaption(context, { prompt, seed }, x, y, width) {
  context.font = FONT;
  context.fillStyle = "#1a1f26";
  const lines = wrapped(context, prompt || "(no prompt)", width, 2);
  lines.forEach((line, index) => context.fillText(line, x, y + index * LINE));
  context.fillStyle = "#667080";
  context.fillText(`seed ${seed}`, x, y + lines.length * LINE);
}

/** `text` in at most `most` lines of `width`; what does not fit ends in "…". */
function wrapped(context, text, width, most) {
  const fits = (line) => context.measureText(line).width <= width;
  const lines = [];
  let rest = text.replace(/\s+/g, " ").trim().slice(0, 400);
  while (rest && lines.length < most) {
    let end = rest.length;
    if (lines.length === most - 1) {
      while (end > 0 && !fits(rest.slice(0, end) + (end < rest.length ? "…" : ""))) end--;
      lines.push(rest.slice(0, end) + (end < rest.length ? "…" : ""));
      break;
    }
    while (end > 1 && !fits(rest.slice(0, end))) end--;
    const space = end < rest.length ? rest.lastIndexOf(" ", end) : -1;
    if (space > 0) end = space; // break at a word, if there is one
    lines.push(rest.slice(0, end));
    rest = rest.slice(end).trim();
  }
  return lines;
}
