// Where the parts of the page meet.
import { pipelines } from "./api.js";
import { connectDetails, openDetails } from "./details.js";
import { byId } from "./dom.js";
import { DEFAULT_STRENGTH } from "./editing.js";
import { connectForm, fillForm, readCount, readForm, readWhole, setLastSeed, setPipelines } from "./form.js";
import * as gallery from "./gallery.js";
import { askForKey, connectKey } from "./key.js";
import { connectKeys } from "./keys.js";
import { fromLink, isSeed, randomSeed, seedPlus } from "./parameters.js";
import { cancelAll, clearEnded, run, runningCount } from "./runs.js";
import { connectSheet, setSheet } from "./sheet.js";
import { say } from "./status.js";
import { recall, remember } from "./storage.js";

const RETRY_MS = 5000;
const isNarrow = () => matchMedia("(max-width: 820px)").matches; // as in style.css

/** Asks what the server serves, until it answers. */
async function load() {
  try {
    const served = await pipelines();
    await setPipelines(served);
    if (!served.length) return say("The server serves no pipeline.", { kind: "error" });
    openLink();
    if (byId("status").dataset.kind === "error") say("");
  } catch (error) {
    say(error.message, { kind: "error" });
    if (error.status === 401) askForKey(error.message);
    else setTimeout(load, RETRY_MS);
  }
}

/** Starts as many pictures as wanted, with seeds one after the other, all at once. */
async function generate() {
  const parameters = await readWhole();
  if (!parameters.model) return;
  const bare = parameters.controlnets.find((control) => !control.image);
  if (bare) return say(`ControlNet ${bare.name} has no picture yet.`, { kind: "error" });
  if (parameters.seed && !isSeed(parameters.seed)) {
    return say("The seed is a whole number, or empty for a random one.", { kind: "error" });
  }
  const seed = parameters.seed || randomSeed();
  const count = readCount();
  setLastSeed(seed);
  clearEnded();
  setSheet(false);
  say(count > 1 ? `Asked for ${count} pictures.` : "Asked for a picture.");
  const started = Array.from({ length: count }, (_, index) => one({ ...parameters, seed: seedPlus(seed, index) }));
  if (isNarrow()) byId("pictures").scrollIntoView(); // they are below the form
  const results = await Promise.all(started);
  const done = results.filter((result) => result.picture);
  if (count > 1 && done.length) say(`${done.length} of ${count} pictures are done.`);
}

async function one(parameters) {
  const result = await run(parameters, { onChange: showRunning, again: () => one(parameters) });
  if (result.picture) {
    await gallery.add(result.picture);
    result.card.remove();
    say(`Picture done in ${result.picture.seconds.toFixed(1)} s, seed ${result.picture.parameters.seed}.`);
  } else if (result.cancelled) say("Cancelled.");
  else {
    say(result.error.message, { kind: "error" });
    if (result.error.status === 401) askForKey(result.error.message);
  }
  gallery.showEmpty();
  return result;
}

function showRunning() {
  byId("cancel").disabled = runningCount() === 0;
  document.title = runningCount() ? `(${runningCount()}) SwiftDiffusion` : "SwiftDiffusion";
  gallery.showEmpty();
}

function sameAgain({ parameters }) {
  setSheet(false);
  fill(parameters, "The form has this picture's parameters.");
  byId("generate").focus();
  if (isNarrow()) byId("form").scrollIntoView();
}

/** A finished picture is the one to start from; all else is as it was made. */
function startFrom({ parameters, blob }) {
  setSheet(false);
  const edit = { image: blob, mask: null, strength: DEFAULT_STRENGTH, composite: false };
  fill({ ...parameters, edit }, "The form begins with this picture.");
  byId("edit-section").scrollIntoView({ block: "nearest" });
}

function fill(parameters, done) {
  const lacking = fillForm(parameters);
  if (lacking.length) say(`Not on this server, left out: ${lacking.join(", ")}`, { kind: "error" });
  else say(done);
}

/** Takes the parameters of a copied link, once. */
function openLink() {
  const parameters = fromLink(location.hash);
  if (!parameters || !readForm().model) return; // load() comes here again once the pipelines are known
  history.replaceState(null, "", location.pathname + location.search);
  fill(parameters, "The form has the link's parameters.");
}

function connectToolbar() {
  const size = byId("tile-size");
  const show = () => document.documentElement.style.setProperty("--tile", `${size.value}px`);
  size.value = recall("tile-size", 250);
  show();
  size.addEventListener("input", () => {
    show();
    remember("tile-size", Number(size.value));
  });
  byId("cancel").addEventListener("click", cancelAll);
  byId("delete-all").addEventListener("click", deleteAll);
}

function deleteAll() {
  const count = gallery.count();
  const dialog = byId("confirm");
  const what = count === 1 ? "the picture" : `all ${count} pictures`;
  byId("confirm-text").textContent = `Delete ${what} that this browser keeps? There is no way back.`;
  dialog.returnValue = "";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "yes") return;
    await gallery.remove(gallery.all().map((picture) => picture.id)).catch(() => {});
    say("All pictures deleted.");
  };
  dialog.showModal();
}

connectForm(generate);
connectKey(load);
connectDetails(sameAgain, startFrom);
connectSheet();
connectKeys();
connectToolbar();
addEventListener("hashchange", openLink);
gallery.connectGallery(openDetails);
load();
