// One picture: large, with all that it was made of.
import { byId, element, icon, iconButton } from "./dom.js";
import * as gallery from "./gallery.js";
import { download, thumbnail } from "./images.js";
import { fileName, linkTo } from "./parameters.js";
import { say } from "./status.js";

let shown = null; // the picture's id
let again = () => {};
let start = () => {};

/** `onAgain(picture)` fills the form, `onStart(picture)` also makes it the picture to start from. */
export function connectDetails(onAgain, onStart) {
  [again, start] = [onAgain, onStart];
  const dialog = byId("details");
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside the dialog's content
  dialog.addEventListener("close", () => {
    if (!byId("form").contains(document.activeElement)) gallery.focus(gallery.indexOf(shown));
    dialog.replaceChildren();
  });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (step) go(step);
    else if (event.key === "Delete") drop();
    else return;
    event.preventDefault();
  });
}

export function openDetails(id) {
  const dialog = byId("details");
  const label = document.activeElement?.getAttribute("aria-label");
  shown = id;
  fill();
  if (!dialog.open) dialog.showModal();
  // What had the focus was replaced: without it, the next key would not reach the dialog.
  const same = label && [...dialog.querySelectorAll("button:enabled")].find((button) => button.ariaLabel === label);
  (same || dialog).focus();
}

function go(step) {
  const next = gallery.at(gallery.indexOf(shown) + step);
  if (next) openDetails(next.id);
}

function drop() {
  const index = gallery.removeOne(shown);
  const next = gallery.at(Math.min(index, gallery.count() - 1));
  if (next) openDetails(next.id);
  else byId("details").close();
}

function fill() {
  const index = gallery.indexOf(shown);
  const picture = gallery.at(index);
  const dialog = byId("details");
  const close = iconButton("close", "Close", () => dialog.close(), "close");
  const previous = iconButton("left", "Newer picture", () => go(-1), "side left");
  const next = iconButton("right", "Older picture", () => go(1), "side right");
  previous.disabled = index === 0;
  next.disabled = index === gallery.count() - 1;
  const image = element("img", { src: gallery.addressOf(shown), alt: picture.parameters.prompt });
  dialog.replaceChildren(
    element("div", { class: "stage" }, image, previous, next),
    element("div", { class: "facts" }, close, ...facts(picture), buttons(picture, dialog)),
  );
}

function buttons(picture, dialog) {
  const button = (drawing, label, id, onclick, extra = "") =>
    element("button", { type: "button", id, class: extra, onclick }, icon(drawing), label);
  const closed = (then) => () => {
    dialog.close();
    then(picture);
  };
  const copy = async () => {
    const link = linkTo(picture.parameters);
    const { controlnets, edit } = picture.parameters;
    const lost = controlnets.length || edit ? " The pictures that it began with are not in it." : "";
    const done = await copied(link, dialog);
    const said = done ? `Link copied.${lost}` : "The browser does not let the page copy.";
    dialog.querySelector(".copied").textContent = said;
  };
  return element(
    "div",
    { class: "buttons" },
    button("again", "Same again", "same-again", closed(again), "primary"),
    button("brush", "Start from it", "start-from", closed(start)),
    button("save", "Download", "download", () => download(picture.blob, fileName(picture))),
    button("link", "Copy link", "copy-link", copy),
    button("trash", "Delete", "delete-picture", drop),
    element("p", { class: "copied muted", role: "status" }),
  );
}

/** The clipboard is for pages under https and localhost; elsewhere the old way still works. */
async function copied(text, within) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  const field = element("textarea", { value: text, class: "hidden-text" });
  within.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

function facts({ parameters, info, created, seconds, blob }) {
  const rows = [
    ["Model", parameters.model],
    ["Size", `${parameters.width} × ${parameters.height}`],
    ["Seed", parameters.seed],
    ["Steps", parameters.steps],
    ["Guidance", parameters.guidance],
    ["Scheduler", parameters.scheduler || info.scheduler || "the default"],
    ...parameters.loras.map((lora) => ["LoRA", `${lora.name} × ${lora.scale}${patched(info, lora.name)}`]),
    ...parameters.controlnets.map((control) => ["ControlNet", controlnet(control)]),
    parameters.edit ? ["Began with", began(parameters.edit)] : ["Began with", null],
    ["Took", `${seconds.toFixed(1)} s`],
    ["Made", new Date(created).toLocaleString()],
    ["File", `${Math.max(1, Math.round(blob.size / 1024)).toLocaleString("en")} KiB`],
  ];
  const listed = rows
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([label, value]) => [element("dt", {}, label), element("dd", {}, value)]); // append() turns numbers into text
  const report = element("pre", {}, JSON.stringify(info, null, 2));
  const text = (label, value) => value && [element("h3", {}, label), element("p", { class: "words" }, value)];
  return [
    text("Prompt", parameters.prompt || "(no prompt)"),
    text("Negative prompt", parameters.negative_prompt),
    element("dl", {}, listed),
    element("details", {}, element("summary", {}, "What the server reported"), report),
  ].flat();
}

/** From which step on the LoRA counted: it may have still been loading when the request began. */
function patched(info, name) {
  const step = info.loras?.find?.((lora) => lora.name === name)?.patched_at_step;
  return step ? `, from step ${step}` : "";
}

function began({ image, mask, strength, composite }) {
  const shown = [thumbnail(image, "Picture to start from"), mask && thumbnail(mask, "Mask")];
  const kept = mask && composite ? ", the rest kept" : "";
  return element("span", { class: "control-fact" }, shown, ` strength ${strength}${kept}`);
}

function controlnet({ name, scale, start, end, image }) {
  const range = start > 0 || end < 1 ? `, ${start} to ${end}` : "";
  return element("span", { class: "control-fact" }, image && thumbnail(image), `${name} × ${scale}${range}`);
}
