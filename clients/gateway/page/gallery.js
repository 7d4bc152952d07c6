// This browser's pictures, newest first.
import { byId, element } from "./dom.js";
import { pictures } from "./storage.js";
import { say } from "./status.js";

const MOST = 200;

let entries = []; // {picture, item, url}, newest first
let open = () => {};

export const count = () => entries.length;
export const all = () => entries.map((entry) => entry.picture);
export const at = (index) => entries[index]?.picture;
export const indexOf = (id) => entries.findIndex((entry) => entry.picture.id === id);
export const addressOf = (id) => entries.find((entry) => entry.picture.id === id)?.url;

/** `onOpen(id)` shows a picture's details. */
export async function connectGallery(onOpen) {
  open = onOpen;
  byId("gallery").addEventListener("keydown", move);
  try {
    const kept = await pictures.all();
    kept.sort((one, other) => other.created - one.created);
    for (const picture of kept) if (indexOf(picture.id) < 0) entries.push(makeEntry(picture));
    entries.sort((one, other) => other.picture.created - one.picture.created);
    byId("gallery").replaceChildren(...entries.map((entry) => entry.item));
    await remove(entries.slice(MOST).map((entry) => entry.picture.id)); // two tabs together may have kept more
  } catch (error) {
    say(`This browser keeps no pictures (${error.message}); they are gone with the page.`, { kind: "error" });
  }
  changed();
}

/** Shows a picture and keeps it; resolves once it is on the page. */
export async function add(picture) {
  const entry = makeEntry(picture);
  const image = entry.item.querySelector("img");
  image.loading = "eager";
  const place = entries.findIndex((other) => other.picture.created <= picture.created); // an undone deletion goes back
  entries.splice(place < 0 ? entries.length : place, 0, entry);
  await image.decode().catch(() => {}); // no gap between the card that goes and the picture that comes
  const index = indexOf(picture.id);
  if (index < 0) return; // deleted, with all others, in the meantime
  const older = entries.slice(index + 1).find((other) => other.item.isConnected); // others may still be on their way
  byId("gallery").insertBefore(entry.item, older?.item ?? null);
  changed();
  try {
    await pictures.put(picture);
    await remove(entries.slice(MOST).map((old) => old.picture.id));
  } catch (error) {
    say(`The picture is shown but not kept: ${error.message}`, { kind: "error" });
  }
}

export async function remove(ids) {
  if (!ids.length) return;
  for (const id of ids) {
    const [entry] = entries.splice(indexOf(id), 1);
    URL.revokeObjectURL(entry.url);
    entry.item.remove();
  }
  changed();
  await pictures.remove(ids);
}

/** Deletes one, with a way back; says so once it would not come back by itself. */
export function removeOne(id) {
  const index = indexOf(id);
  if (index < 0) return;
  const picture = entries[index].picture;
  remove([id])
    .catch(() => {}) // a browser that keeps nothing
    .then(() => say("Picture deleted.", { action: { label: "Undo", run: () => add(picture) } }));
  return index;
}

export function focus(index) {
  const button = entries[Math.max(0, Math.min(index, entries.length - 1))]?.item.querySelector("button");
  if (!button) return;
  for (const other of byId("gallery").querySelectorAll("button")) other.tabIndex = other === button ? 0 : -1;
  button.focus();
}

function makeEntry(picture) {
  const { prompt, seed } = picture.parameters;
  const url = URL.createObjectURL(picture.blob);
  const image = element("img", { src: url, alt: prompt, loading: "lazy", decoding: "async" });
  const onclick = () => open(picture.id);
  const button = element("button", { type: "button", class: "frame", title: prompt, onclick }, image);
  const text = element("p", { class: "caption-prompt" }, prompt || "(no prompt)");
  const caption = element("div", { class: "caption" }, text, element("p", { class: "seed-shown" }, seed));
  const item = element("li", { class: "tile" }, button, caption);
  item.dataset.id = picture.id;
  return { picture, url, item };
}

function changed() {
  byId("gallery-count").textContent = entries.length ? String(entries.length) : "";
  byId("delete-all").disabled = byId("sheet-save").disabled = byId("sheet-print").disabled = !entries.length;
  const buttons = [...byId("gallery").querySelectorAll("button")];
  const current = buttons.find((button) => button === document.activeElement) ?? buttons[0];
  for (const button of buttons) button.tabIndex = button === current ? 0 : -1; // Tab passes the gallery in one step
  showEmpty();
}

export function showEmpty() {
  byId("empty").hidden = entries.length > 0 || byId("runs").childElementCount > 0;
}

/** Arrows, Home, End and Delete on a picture. */
function move(event) {
  const index = indexOf(event.target.closest(".tile")?.dataset.id);
  if (index < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  const columns = getComputedStyle(byId("gallery").parentElement).gridTemplateColumns.split(" ").length;
  const arrows = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const steps = { ...arrows, Home: -index, End: entries.length };
  if (event.key in steps) focus(index + steps[event.key]);
  else if (event.key === "Delete") focus(removeOne(entries[index].picture.id));
  else return;
  event.preventDefault();
}
