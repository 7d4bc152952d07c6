// Requests that run, each with a card: preview, bar, time, and its own way to end it.
import { byId, element, iconButton } from "./dom.js";
import { ApiError, generate } from "./api.js";
import { base64ToBlob } from "./images.js";
import { requestBody } from "./parameters.js";

const running = new Set(); // of AbortController

/** Ends all that runs; answers how many that were. */
export function cancelAll() {
  const count = running.size;
  for (const run of [...running]) run.abort();
  return count;
}

export const runningCount = () => running.size;

/** Removes the cards of requests that came to nothing. */
export function clearEnded() {
  for (const card of byId("runs").querySelectorAll(".ended")) card.remove();
}

/**
 * Runs one request, its seed given. Answers {picture, card}, the card to be removed once the picture is shown, or
 * {error}, in which case the card says why.
 */
export async function run(parameters, { onChange, again }) {
  const abort = new AbortController();
  const card = makeCard(parameters, () => abort.abort());
  byId("runs").append(card.root);
  running.add(abort);
  onChange();
  const started = performance.now();
  const seconds = () => (performance.now() - started) / 1000;
  const clock = setInterval(() => (card.time.textContent = `${seconds().toFixed(1)} s`), 100);
  try {
    const body = await requestBody(parameters);
    const said = await generate(body, { signal: abort.signal, onProgress: card.progressed });
    return { card: card.root, picture: pictureOf(said, parameters, seconds()) };
  } catch (error) {
    const cancelled = error.name === "AbortError";
    card.ended(cancelled ? "" : sentence(error), cancelled ? "cancelled" : "failed", again);
    return { error, cancelled };
  } finally {
    clearInterval(clock);
    running.delete(abort);
    onChange();
  }
}

function sentence(error) {
  if (!(error instanceof ApiError) || !error.retryAfter) return error.message;
  return `${error.message} (the server asks to wait ${error.retryAfter} s)`;
}

/** What is kept: the parameters are made exact by what the server says it did. */
function pictureOf(said, parameters, seconds) {
  const info = said.info ?? {};
  const exact = { ...parameters };
  exact.width ??= info.width ?? null;
  exact.height ??= info.height ?? null;
  exact.steps ??= info.steps ?? null;
  exact.guidance ??= info.guidance_scale ?? null;
  const created = Date.now();
  const id = `${created}-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  return { id, created, seconds, parameters: exact, info, blob: base64ToBlob(said.b64_json, said.output_format) };
}

function makeCard(parameters, cancel) {
  const preview = element("img", { class: "preview", alt: "Preview", hidden: true });
  const progress = element("progress", { "aria-label": "Progress" }); // without a value: it waits
  const step = element("span", { class: "step" }, "Waiting");
  const time = element("span", { class: "elapsed muted" });
  const stop = iconButton("close", "Cancel this picture", cancel, "stop");
  const text = element("p", { class: "caption-prompt", title: parameters.prompt }, parameters.prompt);
  const root = element(
    "li",
    { class: "run" },
    element("div", { class: "frame" }, preview, stop),
    progress,
    element("div", { class: "caption" }, element("p", { class: "label-row" }, step, time), text),
  );

  const progressed = ({ step: done, of, b64_json, output_format }) => {
    Object.assign(progress, { max: of, value: done });
    step.textContent = `${done}/${of}`;
    if (!b64_json) return;
    preview.src = `data:image/${/^\w+$/.test(output_format ?? "") ? output_format : "jpeg"};base64,${b64_json}`;
    preview.hidden = false;
  };

  const ended = (why, state, again) => {
    root.classList.add("ended", state);
    const reached = progress.value ? ` at ${progress.value}/${progress.max}` : "";
    step.textContent = (state === "failed" ? "Failed" : "Cancelled") + reached;
    stop.remove();
    progress.remove();
    const dismiss = iconButton("close", "Remove this card", () => root.remove(), "stop");
    root.querySelector(".frame").append(dismiss);
    const retry = () => {
      root.remove();
      again();
    };
    const button = element("button", { type: "button", class: "link", onclick: retry }, "Try again");
    root.querySelector(".frame").append(element("div", { class: "reason" }, element("p", {}, why), button));
  };

  return { root, time, progressed, ended };
}
