// Pictures on their way in and out: files to PNG, base64 to blobs and back.
import { element } from "./dom.js";

/** A PNG of `file` (any picture that the browser reads), no side longer than `most`, its proportions kept. */
export async function shrunkPng(file, most) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "This"} is no picture that the browser can read.`);
  }
  const factor = Math.min(1, most / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * factor));
  canvas.height = Math.max(1, Math.round(bitmap.height * factor));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvasPng(canvas);
}

export function canvasPng(canvas) {
  return new Promise((resolve, reject) => {
    const done = (blob) => (blob ? resolve(blob) : reject(new Error("The browser could not write the PNG.")));
    canvas.toBlob(done, "image/png");
  });
}

export function blobToBase64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1)); // without "data:…;base64,"
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Not fetch("data:…"): the page's Content-Security-Policy forbids it. */
export function base64ToBlob(base64, format) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const type = ["png", "jpeg", "webp"].includes(format) ? format : "png";
  return new Blob([bytes], { type: `image/${type}` });
}

/** The first picture among what was dropped or pasted, or null. */
export function pictureIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}

/** A small view of a picture; its address is given back once it is drawn. */
export function thumbnail(blob, alt = "Control picture") {
  const src = URL.createObjectURL(blob);
  return element("img", { class: "thumbnail", src, alt, onload: () => URL.revokeObjectURL(src) });
}

/** Lets the browser save `blob` as a file. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // the browser may read it after click() returned
}
