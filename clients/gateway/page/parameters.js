// Parameters are what the form holds and a picture was made of:
// {model, prompt, negative_prompt, width, height, steps, guidance, seed, scheduler,
//  loras: [{name, scale}], controlnets: [{name, scale, start, end, image: Blob}],
//  edit: {image: Blob, mask: Blob or null, strength, composite} or null}
// Numbers that are not set are null. A seed is digits, never a number: the server's seeds go up to 2^63 - 1, which
// JavaScript's numbers do not hold.
import { blobToBase64 } from "./images.js";

/** The request: JSON text, or a form where it begins with a picture. */
export async function requestBody(parameters) {
  const body = await fields(parameters);
  if (!parameters.edit) return `${JSON.stringify(body).slice(0, -1)},"seed":${parameters.seed}}`; // digits as they are
  const { image, mask, strength, composite } = parameters.edit;
  const form = new FormData();
  for (const [name, value] of Object.entries({ ...body, strength })) {
    form.append(name, typeof value === "string" ? value : JSON.stringify(value));
  }
  form.append("seed", parameters.seed);
  form.append("image", image, "image.png");
  if (mask) form.append("mask", mask, "mask.png");
  if (mask && composite) form.append("composite", "true");
  return form;
}

/** All but the seed and the picture. What is not set is left out: the server's defaults count then. */
async function fields(parameters) {
  const { width, height, steps } = parameters;
  const body = { model: parameters.model, prompt: parameters.prompt };
  if (parameters.negative_prompt) body.negative_prompt = parameters.negative_prompt;
  if (width !== null && height !== null) body.size = `${width}x${height}`;
  if (steps !== null) body.num_inference_steps = steps;
  if (parameters.guidance !== null) body.guidance_scale = parameters.guidance;
  if (parameters.scheduler) body.scheduler = parameters.scheduler;
  if (parameters.loras.length) body.lora = parameters.loras;
  if (parameters.controlnets.length) {
    const encode = async (control) => ({ ...control, image: await blobToBase64(control.image) });
    body.controlnet = await Promise.all(parameters.controlnets.map(encode));
  }
  // About ten previews: more are hardly seen.
  const preview_every = Math.max(1, Math.round((steps ?? 20) / 10));
  return { ...body, output_format: "png", stream: true, progress: true, preview_every };
}

/** A seed that also other programs hold exactly. */
export const randomSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);

export const isSeed = (text) => /^-?\d{1,19}$/.test(text); // its range is the server's to judge

export const seedPlus = (seed, offset) => String(BigInt(seed) + BigInt(offset));

/** A file's name that says what the picture is. */
export function fileName(picture) {
  const { model, seed, prompt } = picture.parameters;
  const words = `${model}-${seed}-${prompt}`.normalize("NFKD").toLowerCase();
  return `${words.replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 80)}.png`;
}

const MARK = "#parameters=";

/** The page's address with the parameters in its fragment, which browsers do not send. Pictures do not fit in. */
export function linkTo(parameters) {
  const plain = { ...parameters, edit: null, controlnets: parameters.controlnets.map(({ image, ...control }) => control) };
  const text = String.fromCharCode(...new TextEncoder().encode(JSON.stringify(plain)));
  return `${location.origin}${location.pathname}${MARK}${btoa(text).replaceAll("+", "-").replaceAll("/", "_")}`;
}

/** The parameters of such an address, or null. */
export function fromLink(hash) {
  if (!hash.startsWith(MARK)) return null;
  try {
    const text = atob(hash.slice(MARK.length).replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
    return whole(JSON.parse(new TextDecoder().decode(bytes)));
  } catch {
    return null;
  }
}

/** `given` with every field there and of its type: it may come from a link, or from an older page's storage. */
export function whole(given) {
  const source = given && typeof given === "object" ? given : {};
  const text = (value) => (typeof value === "string" ? value : "");
  const number = (value) => (Number.isFinite(value) ? value : null);
  const list = (value) => (Array.isArray(value) ? value.filter((entry) => typeof entry?.name === "string") : []);
  const made = {};
  for (const name of ["model", "prompt", "negative_prompt", "seed", "scheduler"]) made[name] = text(source[name]);
  for (const name of ["width", "height", "steps", "guidance"]) made[name] = number(source[name]);
  made.loras = list(source.loras).map((lora) => ({ name: lora.name, scale: number(lora.scale) ?? 1 }));
  made.controlnets = list(source.controlnets).map((control) => ({
    name: control.name,
    scale: number(control.scale) ?? 1,
    start: number(control.start) ?? 0,
    end: number(control.end) ?? 1,
    image: control.image instanceof Blob ? control.image : null,
  }));
  const { image, mask, strength, composite } = source.edit ?? {};
  made.edit = image instanceof Blob
    ? { image, mask: mask instanceof Blob ? mask : null, strength: number(strength) ?? 0.75, composite: Boolean(composite) }
    : null;
  return made;
}
