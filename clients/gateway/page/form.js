// The form: fills it from the chosen pipeline's rules, reads it as parameters, and keeps it across reloads.
import { byId, element, settled } from "./dom.js";
import { chosenControlnets, connectControlnets, setControlnetCatalogue, setControlnets } from "./controlnets.js";
import { chosenEdit, connectEdit, setEdit, setEditLimit } from "./editing.js";
import { chosenLoras, connectLoras, setLoraCatalogue, setLoras } from "./loras.js";
import { randomSeed, whole } from "./parameters.js";
import { connectSize, setSize, setSizeLimits } from "./size.js";
import { drafts, recall, remember } from "./storage.js";

// field -> where the pipeline says its default
const DEFAULTS = { width: "width", height: "height", steps: "steps", guidance: "guidance_scale" };
const SLIDERS = { steps: 100, guidance: 20 }; // field -> where its slider ends; its number goes on

let known = [];
let pipeline = null; // none until the server told what it serves
let lastSeed = recall("last-seed", "");

const number = (id) => (byId(id).value.trim() === "" ? null : Number(byId(id).value));

/** What the form holds but for the picture to start from. The seed is empty where a random one is wanted. */
export const readForm = () => ({
  model: pipeline?.id ?? "",
  prompt: byId("prompt").value,
  negative_prompt: byId("negative-prompt").value,
  width: number("width"),
  height: number("height"),
  steps: number("steps"),
  guidance: number("guidance"),
  seed: byId("seed").value.trim(),
  scheduler: byId("scheduler").value,
  loras: chosenLoras(),
  controlnets: chosenControlnets(),
});

/** All of it. */
export const readWhole = async () => ({ ...readForm(), edit: await chosenEdit() });

export const readCount = () => Math.min(8, Math.max(1, Math.round(Number(byId("count").value)) || 1));

/** Fills in `parameters`; answers the names that this server lacks, which are left out. */
export function fillForm(parameters) {
  const lacking = [];
  if (parameters.model && !known.some(({ id }) => id === parameters.model)) lacking.push(parameters.model);
  else if (parameters.model) choosePipeline(parameters.model);
  byId("prompt").value = parameters.prompt;
  byId("negative-prompt").value = parameters.negative_prompt;
  setSize(parameters.width, parameters.height);
  for (const field of ["steps", "guidance"]) byId(field).value = parameters[field] ?? "";
  byId("seed").value = parameters.seed;
  byId("scheduler").value = parameters.scheduler;
  if (byId("scheduler").selectedIndex < 0) {
    byId("scheduler").value = "";
    lacking.push(parameters.scheduler);
  }
  lacking.push(...setLoras(parameters.loras), ...setControlnets(parameters.controlnets));
  if (parameters.edit !== undefined) setEdit(parameters.edit);
  show();
  return lacking;
}

/** Takes what the server serves; the form's values stay, or come back from the last visit. */
export async function setPipelines(pipelines) {
  const now = readForm();
  const first = pipeline === null;
  known = pipelines;
  byId("model").replaceChildren(...known.map(({ id }) => element("option", { value: id }, id)));
  if (!known.length) return;
  const wanted = first ? whole(recall("form")) : now;
  if (first) {
    wanted.edit = whole({ edit: await drafts.get("edit").catch(() => null) }).edit;
    wanted.controlnets = whole({ controlnets: await drafts.get("controlnets").catch(() => []) }).controlnets;
    [wanted.prompt, wanted.negative_prompt] = [now.prompt, now.negative_prompt]; // may have been typed while waiting
  }
  choosePipeline(known.some(({ id }) => id === wanted.model) ? wanted.model : known[0].id);
  for (const [field, of] of Object.entries(DEFAULTS)) wanted[field] ??= pipeline[of];
  fillForm({ ...wanted, model: pipeline.id });
  byId("generate").disabled = false;
}

function choosePipeline(id) {
  const before = pipeline;
  pipeline = known.find((other) => other.id === id);
  byId("model").value = id;
  setSizeLimits(pipeline);
  for (const [field, of] of Object.entries(DEFAULTS)) {
    const tooLarge = ["width", "height"].includes(field) && number(field) > pipeline.max_size;
    const isDefault = !before || number(field) === before[of]; // then it follows the pipeline
    if (isDefault || tooLarge) byId(field).value = pipeline[of];
  }
  Object.assign(byId("steps"), { min: 1, max: pipeline.max_steps, placeholder: pipeline.steps });
  Object.assign(byId("guidance"), { min: 0, max: pipeline.max_guidance_scale, placeholder: pipeline.guidance_scale });
  Object.assign(byId("steps-slider"), { min: 1, max: Math.min(SLIDERS.steps, pipeline.max_steps) });
  Object.assign(byId("guidance-slider"), { min: 0, max: Math.min(SLIDERS.guidance, pipeline.max_guidance_scale) });
  const scheduler = byId("scheduler").value;
  byId("scheduler").replaceChildren(
    element("option", { value: "" }, `Default: ${pipeline.scheduler.replace(/Scheduler$/, "")}`),
    ...pipeline.schedulers.map(({ name, sampler, schedule }) => {
      const shown = schedule && schedule !== "Automatic" ? `${sampler} ${schedule}` : sampler;
      return element("option", { value: name, title: name }, shown || name);
    }),
  );
  byId("scheduler").value = scheduler;
  if (byId("scheduler").selectedIndex < 0) byId("scheduler").value = "";
  const [loras, controlnets] = [chosenLoras(), chosenControlnets()];
  setLoraCatalogue(pipeline.loras, pipeline.max_loras);
  setControlnetCatalogue(pipeline.controlnets, pipeline.max_controlnets, pipeline.max_size);
  setEditLimit(pipeline.max_size);
  setLoras(loras);
  setControlnets(controlnets);
  show();
}

/** The seed that was drawn last, for the button that keeps it. */
export function setLastSeed(seed) {
  lastSeed = seed;
  remember("last-seed", seed);
}

/** Brings what hangs on other fields in line, and saves. */
function show() {
  for (const field of Object.keys(SLIDERS)) {
    byId(`${field}-slider`).value = number(field) ?? pipeline?.[DEFAULTS[field]] ?? 0;
  }
  const most = pipeline?.max_prompt_characters;
  const characters = [...byId("prompt").value].length;
  byId("prompt-count").textContent = most && characters ? `${characters} of ${most}` : "";
  byId("prompt-count").classList.toggle("bad", characters > most);
  byId("seed-random").setAttribute("aria-pressed", String(!byId("seed").value));
  byId("seed-keep").setAttribute("aria-pressed", String(Boolean(byId("seed").value)));
  save();
}

const save = settled(300, saveNow);

function saveNow() {
  if (!pipeline) return; // what was saved has not been filled in yet
  const { controlnets, ...rest } = readForm();
  remember("form", rest);
  drafts.put("controlnets", controlnets).catch(() => {});
  chosenEdit().then((edit) => drafts.put("edit", edit)).catch(() => {});
}

export function connectForm(onSubmit) {
  const saved = whole(recall("form"));
  byId("prompt").value = saved.prompt;
  byId("negative-prompt").value = saved.negative_prompt;
  byId("count").value = recall("count", 1);
  byId("generate").disabled = true;
  byId("count").addEventListener("change", () => {
    byId("count").value = readCount();
    remember("count", readCount());
  });
  connectSize();
  connectLoras(save);
  connectControlnets(save);
  const fitted = (side) => Math.max(1, Math.floor(side / (pipeline?.size_multiple ?? 8))) * (pipeline?.size_multiple ?? 8);
  connectEdit(save, (width, height) => setSize(fitted(width), fitted(height)));
  for (const field of Object.keys(SLIDERS)) {
    byId(`${field}-slider`).addEventListener("input", () => (byId(field).value = byId(`${field}-slider`).value));
  }
  byId("model").addEventListener("change", () => choosePipeline(byId("model").value));
  const setSeed = (seed) => {
    byId("seed").value = seed;
    show();
  };
  byId("seed-random").addEventListener("click", () => setSeed(""));
  byId("seed-keep").addEventListener("click", () => setSeed(byId("seed").value || lastSeed || randomSeed()));
  byId("form").addEventListener("input", show);
  addEventListener("pagehide", saveNow);
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    onSubmit();
  });
}
