// Tokenizers as the page uses them, wherever they run: in a worker of this page, or on the machine that serves it.
import { Fault, LARGEST_CODEBOOK } from "./ids.js";

let lastStream = 0; // number of the newest stream
const LATEST_WAIT = 180_000; // milliseconds that the server may take

/** Read the list of tokenizers beside the page; return { tokenizers, models, samples, facts }. */
export async function openTokenizers(onProgress) {
  const response = await fetch("tokenizers.json");
  if (!response.ok) throw new Fault(`the list of tokenizers cannot be read (${response.status})`);
  const facts = await response.json();
  const local = facts.tokenizers.some((one) => one.place === "browser") ? new Programs(onProgress) : null;
  const usable = facts.tokenizers.filter((one) => one.codebook_size <= LARGEST_CODEBOOK);
  const tokenizers = usable.map((one) => (one.place === "browser" ? new BrowserTokenizer(one, local) : new ServedTokenizer(one)));
  return { tokenizers, models: facts.models ?? [], samples: facts.samples ?? [], facts };
}

/** The worker that holds onnxruntime: calls by number, answers in order. */
class Programs {
  constructor(onProgress) {
    this.calls = new Map();
    this.last = 0;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => {
      if (data.progress) return onProgress(data.progress);
      const call = this.calls.get(data.id);
      this.calls.delete(data.id);
      return data.error === undefined ? call.resolve(data.result) : call.reject(new Fault(data.error));
    };
    this.worker.onerror = (event) => {
      const fault = new Fault(`this browser cannot run the tokenizers: ${event.message || "module workers and WebAssembly are needed"}`);
      for (const call of this.calls.values()) call.reject(fault);
      this.calls.clear();
    };
  }

  call(op, fields) {
    return new Promise((resolve, reject) => {
      this.last += 1;
      this.calls.set(this.last, { resolve, reject });
      this.worker.postMessage({ id: this.last, op, ...fields });
    });
  }
}

/** What every tokenizer says of itself. */
class AnyTokenizer {
  constructor(facts) {
    this.name = facts.name;
    this.place = facts.place;
    this.strides = facts.strides;
    this.levels = facts.levels;
    this.codebookSize = facts.codebook_size;
    this.fingerprint = facts.fingerprint;
    this.isCausal = facts.is_causal;
    this.parameters = facts.parameters;
  }

  get isVideo() {
    return this.strides[0] > 1;
  }

  /** Return a line that tells it from others. */
  get title() {
    const [t, h, w] = this.strides;
    return `${this.name} (${this.isVideo ? `${t} x ` : ""}${h} x ${w}, ${this.codebookSize.toLocaleString("en")} codes)`;
  }
}

class BrowserTokenizer extends AnyTokenizer {
  constructor(facts, programs) {
    super(facts);
    this.programs = programs;
    this.files = facts.files;
    programs.call("open", { name: facts.name, files: facts.files, strides: facts.strides, startsAlone: facts.starts_alone });
  }

  /** Encode { pixels: Uint8Array of t h w 3, t, h, w }; return { grid, seconds }. */
  encode({ pixels, t, h, w }) {
    return this.programs.call("encode", { name: this.name, pixels, size: { t, h, w } });
  }

  /** Decode a grid of ids to frames of a size; return { pixels, seconds }. */
  decode(grid, size) {
    return this.programs.call("decode", { name: this.name, grid, size });
  }

  /** Return a stream of a video that is still coming, or null where this tokenizer needs all of it. */
  stream() {
    const { programs, name } = this;
    if (!this.isCausal || (this.isVideo && !this.files.encode_step)) return null;
    const stream = ++lastStream;
    programs.call("startStream", { name, stream });
    return {
      push: (frame, size, last) => programs.call("push", { name, stream, frame, size, last }),
      end: () => programs.call("endStream", { stream }),
    };
  }
}

class ServedTokenizer extends AnyTokenizer {
  async encode({ pixels, t, h, w }) {
    const begun = performance.now();
    const answer = await post("encode", { tokenizer: this.name, frames: t, height: h, width: w }, pixels);
    return { grid: gridIn(answer), seconds: (performance.now() - begun) / 1000 };
  }

  async decode(grid, size) {
    const begun = performance.now();
    const fields = { tokenizer: this.name, grid: [grid.t, grid.h, grid.w], frames: size.t, height: size.h, width: size.w };
    const answer = await post("decode", fields, new Uint8Array(BigInt64Array.from(grid.data, BigInt).buffer));
    return { pixels: new Uint8Array(answer.body), seconds: (performance.now() - begun) / 1000 };
  }

  /** Return null: a clip goes to the server when all of it is there. */
  stream() {
    return null;
  }
}

function gridIn(answer) {
  const [t, h, w] = answer.headers.get("smalti-grid").split(",").map(Number);
  return { data: Float64Array.from(new BigInt64Array(answer.body), Number), t, h, w };
}

/** Send bytes to the machine that serves the page; return { body: ArrayBuffer, headers }. Throws Fault with its line. */
async function post(verb, fields, bytes) {
  const query = new URLSearchParams(Object.entries(fields).map(([key, value]) => [key, String(value)]));
  let response;
  try {
    response = await fetch(`${verb}?${query}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: bytes,
      signal: AbortSignal.timeout(LATEST_WAIT),
    });
  } catch {
    throw new Fault("smalti serve does not answer: it was stopped, or it takes too long");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Fault(said.error ?? `smalti serve answered ${response.status}`);
  }
  return { body: await response.arrayBuffer(), headers: response.headers };
}

/** Sample ids from a token model of the server; return { grid, size }. `media` is what is continued, or null. */
export async function generate(model, { label, seed }, media) {
  const fields = { model: model.name, seed, ...(label === null ? {} : { label }) };
  if (media) Object.assign(fields, { frames: media.t, height: media.h, width: media.w });
  const answer = await post(media ? "continue" : "generate", fields, media ? media.pixels : new Uint8Array());
  const [t, h, w] = answer.headers.get("smalti-size").split(",").map(Number);
  return { grid: gridIn(answer), size: { t, h, w } };
}
