// The routes of the gateway. Addresses are relative, so that the page works behind a path prefix.
import { serverEvents } from "./sse.js";
import { apiKey } from "./key.js";

/** What the server (or the way to it) said; `message` is shown as it is. */
export class ApiError extends Error {
  constructor(message, { status = 0, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** [{id, …pipeline}] of every pipeline that the server serves. */
export async function pipelines() {
  const response = await ask("./v1/models", {});
  const { data } = await response.json();
  return data.filter((model) => model.pipeline).map((model) => ({ id: model.id, ...model.pipeline }));
}

/**
 * Runs one request, `body` being its JSON text or its form; answers what the server says of the finished picture.
 * `onProgress` gets {step, of, b64_json?, output_format?}. Aborting `signal` closes the connection, which ends the run.
 */
export async function generate(body, { signal, onProgress }) {
  const isForm = body instanceof FormData; // whose Content-Type the browser writes
  const headers = { ...(isForm ? {} : { "Content-Type": "application/json" }), Accept: "text/event-stream" };
  const address = isForm ? "./v1/images/edits" : "./v1/images/generations";
  const response = await ask(address, { method: "POST", headers, body, signal });
  try {
    for await (const { event, data } of serverEvents(response.body)) {
      const said = JSON.parse(data);
      if (event.endsWith(".progress")) onProgress(said);
      else if (event.endsWith(".completed")) return said;
      else if (event === "error") throw new ApiError(said.error?.message ?? "The server gave no reason for its error.");
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError(`The connection broke before the picture was done (${error.message}).`);
  }
  throw new ApiError("The server closed the connection before the picture was done.");
}

async function ask(address, options) {
  const key = apiKey();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (response.ok) return response;
  // A proxy's error page is no JSON: then the status is all there is to say.
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  throw new ApiError(message, { status: response.status, retryAfter });
}
