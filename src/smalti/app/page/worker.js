// The tokenizers of the page: ONNX programs run by onnxruntime-web, off the page's own thread.
import * as ort from "./ort/ort.js";

const opened = new Map(); // name -> { files, strides, startsAlone, sessions }
const streams = new Map(); // number -> Stream
let ready = null;

/** Pixel u of 0 to 255 is u / 127.5 - 1 in float32, each step rounded as PyTorch rounds it. */
const LEVELS = Float32Array.from({ length: 256 }, (_, u) => Math.fround(Math.fround(u / 127.5) - 1));

async function start() {
  ort.env.wasm.numThreads = 1; // threads need headers that plain hosts do not send
  ort.env.wasm.wasmBinary = await load("ort/ort.wasm", "onnxruntime");
}

async function load(path, what) {
  const response = await fetch(new URL(path, self.location.href));
  if (!response.ok) throw new Error(`${path} cannot be read from the page's host (${response.status})`);
  const total = Number(response.headers.get("content-length"));
  const parts = [];
  let done = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    done += part.value.length;
    self.postMessage({ progress: { what, done, total } });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** Return the program of a tokenizer; each is loaded when it is first used. */
async function program(name, kind) {
  const entry = opened.get(name);
  if (!(kind in entry.sessions)) {
    ready ??= start();
    await ready;
    const bytes = await load(entry.files[kind], name);
    entry.sessions[kind] = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
  }
  return entry.sessions[kind];
}

/** Return uint8 frames t h w 3 as a video tensor 1 3 t2 h2 w2, its last frame, row and column repeated. */
function toVideo(pixels, size, legal) {
  const { t, h, w } = size;
  const data = new Float32Array(3 * legal.t * legal.h * legal.w);
  let out = 0;
  for (let c = 0; c < 3; c++) {
    for (let f = 0; f < legal.t; f++) {
      for (let y = 0; y < legal.h; y++) {
        const row = (Math.min(f, t - 1) * h + Math.min(y, h - 1)) * w;
        for (let x = 0; x < legal.w; x++) data[out++] = LEVELS[pixels[(row + Math.min(x, w - 1)) * 3 + c]];
      }
    }
  }
  return new ort.Tensor("float32", data, [1, 3, legal.t, legal.h, legal.w]);
}

/** Return a decoded video tensor as uint8 frames t h w 3, cut to the size; half levels go to the even neighbour. */
function toPixels(video, size) {
  const [, , , height, width] = video.dims;
  const frames = video.dims[2];
  const { h, w } = size;
  const pixels = new Uint8ClampedArray(size.t * h * w * 3);
  for (let c = 0; c < 3; c++) {
    for (let f = 0; f < size.t; f++) {
      for (let y = 0; y < h; y++) {
        const from = ((c * frames + f) * height + y) * width;
        let to = ((f * h + y) * w) * 3 + c;
        // A clamped array rounds to the nearest, halves to even, as torch.round does.
        for (let x = 0; x < w; x++, to += 3) pixels[to] = Math.fround(Math.fround(video.data[from + x] + 1) * 127.5);
      }
    }
  }
  return new Uint8Array(pixels.buffer);
}

const toNumbers = (ids) => Float64Array.from(ids, Number);

function idTensor(grid) {
  return new ort.Tensor("int64", BigInt64Array.from(grid.data, BigInt), [1, grid.t, grid.h, grid.w]);
}

const legalSize = ({ t, h, w }, [st, sh, sw]) => ({ t: 1 + Math.ceil((t - 1) / st) * st, h: Math.ceil(h / sh) * sh, w: Math.ceil(w / sw) * sw });

/** The past that a program gave, as the next one takes it. */
function pastOf(session, found) {
  const states = session.outputNames.filter((name) => name.startsWith("state_out_"));
  return Object.fromEntries(states.map((name) => [name.replace("state_out_", "state_in_"), found[name]]));
}

/** One video that is still coming: whole groups of frames are encoded and decoded as soon as they are there. */
class Stream {
  constructor(name) {
    this.name = name;
    const { files, strides } = opened.get(name);
    this.strides = strides;
    this.files = files;
    this.past = { encode: null, decode: null };
    this.waiting = []; // frames
    this.held = null; // ids whose frames wait for the next ones, where a decoder looks ahead
    this.read = 0; // frames in
    this.made = 0; // frames out
  }

  /** Take a frame; return { grid, pixels, t } of what is ready, in which grid and pixels may be null. */
  async push(frame, { h, w }, last) {
    const s = this.strides[0];
    if (frame) {
      this.waiting.push(frame);
      this.read += 1;
    }
    const first = this.past.encode ? 0 : 1;
    let ready = first + Math.floor((this.waiting.length - first) / s) * s;
    if (last && this.waiting.length > ready) {
      ready += s;
      while (this.waiting.length < ready) this.waiting.push(this.waiting.at(-1));
    }
    const ids = ready > 0 ? await this.encode(this.waiting.splice(0, ready), { h, w }) : null;
    const parts = await this.decodeReady(ids, last);
    const found = { grid: null, pixels: null, t: 0 };
    if (ids) {
      const [, gt, gh, gw] = ids.dims;
      found.grid = { data: toNumbers(ids.data), t: gt, h: gh, w: gw };
    }
    const videos = parts.filter((video) => video.dims[2] > 0);
    const frames = videos.map((video) => {
      const t = Math.min(video.dims[2], last ? this.read - this.made : video.dims[2]);
      this.made += t;
      found.t += t;
      return toPixels(video, { t, h, w });
    });
    if (frames.length) found.pixels = new Uint8Array(await new Blob(frames).arrayBuffer());
    return found;
  }

  async encode(frames, { h, w }) {
    const pixels = new Uint8Array(await new Blob(frames).arrayBuffer());
    const [, sh, sw] = this.strides;
    const size = { t: frames.length, h, w };
    const video = toVideo(pixels, size, { t: frames.length, h: Math.ceil(h / sh) * sh, w: Math.ceil(w / sw) * sw });
    return this.run("encode", this.past.encode && this.files.encode_step ? "encode_step" : "encode", video);
  }

  async decodeReady(ids, last) {
    if (!this.files.decode_last) {
      return ids ? [await this.run("decode", this.past.decode && this.files.decode_step ? "decode_step" : "decode", ids)] : [];
    }
    const before = this.held;
    this.held = last ? null : (ids ?? before);
    const ready = [ids && before, last && (ids ?? before)].filter(Boolean);
    const made = [];
    for (const [i, one] of ready.entries()) {
      const ends = last && i === ready.length - 1;
      const started = this.past.decode !== null;
      made.push(await this.run("decode", ends ? (started ? "decode_last" : "decode") : started ? "decode_step" : "decode_start", one));
    }
    return made;
  }

  async run(kind, name, input) {
    const session = await program(this.name, name);
    const found = await session.run({ [session.inputNames[0]]: input, ...(/_(step|last)$/.test(name) ? this.past[kind] : {}) });
    this.past[kind] = pastOf(session, found);
    return found[session.outputNames[0]];
  }
}

/** Encode a whole video with programs of a first frame and of one group each: those of conditional tokens. */
async function encodeByGroups(name, pixels, { t, h, w }) {
  const stream = new Stream(name);
  const [s] = stream.strides;
  const frame = (f) => pixels.subarray(Math.min(f, t - 1) * h * w * 3, (Math.min(f, t - 1) + 1) * h * w * 3);
  const begun = performance.now();
  const found = [await stream.encode([frame(0)], { h, w })];
  for (let f = 1; f < t; f += s) found.push(await stream.encode(Array.from({ length: s }, (_, i) => frame(f + i)), { h, w }));
  const [, , gh, gw] = found[0].dims;
  const data = Float64Array.from(found.flatMap((ids) => [...toNumbers(ids.data)]));
  return { grid: { data, t: found.length, h: gh, w: gw }, seconds: (performance.now() - begun) / 1000 };
}

/** Decode ids as `encodeByGroups` encodes: each group after the frames before it. */
async function decodeByGroups(name, grid, { t, h, w }) {
  const stream = new Stream(name);
  const begun = performance.now();
  const row = grid.h * grid.w;
  const frames = [];
  for (let i = 0, made = 0; i < grid.t; i++) {
    const ids = idTensor({ ...grid, data: grid.data.slice(i * row, (i + 1) * row), t: 1 });
    const video = await stream.run("decode", i ? "decode_step" : "decode", ids);
    const count = Math.min(video.dims[2], t - made);
    frames.push(toPixels(video, { t: count, h, w }));
    made += count;
  }
  return { pixels: new Uint8Array(await new Blob(frames).arrayBuffer()), seconds: (performance.now() - begun) / 1000 };
}

const operations = {
  startStream({ name, stream }) {
    streams.set(stream, new Stream(name));
    return {};
  },

  async push({ stream, frame, size, last }) {
    const begun = performance.now();
    const found = await streams.get(stream).push(frame, size, last);
    if (last) streams.delete(stream);
    return { ...found, seconds: (performance.now() - begun) / 1000 };
  },

  endStream({ stream }) {
    streams.delete(stream);
    return {};
  },

  open({ name, files, strides, startsAlone }) {
    opened.set(name, { files, strides, startsAlone, sessions: {} });
    return {};
  },

  async encode({ name, pixels, size }) {
    if (opened.get(name).startsAlone) return encodeByGroups(name, pixels, size);
    const session = await program(name, "encode");
    const begun = performance.now();
    const { strides } = opened.get(name);
    const found = await session.run({ [session.inputNames[0]]: toVideo(pixels, size, legalSize(size, strides)) });
    const ids = found[session.outputNames[0]];
    const [, t, h, w] = ids.dims;
    return { grid: { data: toNumbers(ids.data), t, h, w }, seconds: (performance.now() - begun) / 1000 };
  },

  async decode({ name, grid, size }) {
    if (opened.get(name).startsAlone) return decodeByGroups(name, grid, size);
    const session = await program(name, "decode");
    const begun = performance.now();
    const found = await session.run({ [session.inputNames[0]]: idTensor(grid) });
    return { pixels: toPixels(found[session.outputNames[0]], size), seconds: (performance.now() - begun) / 1000 };
  },
};

let queue = Promise.resolve(); // one at a time, in order

self.onmessage = ({ data }) => {
  queue = queue.then(async () => {
    try {
      self.postMessage({ id: data.id, result: await operations[data.op](data) });
    } catch (error) {
      const reason = String(error?.message ?? error).replace(/\S*\/\S*\/\S*/g, "").slice(0, 200);
      self.postMessage({ id: data.id, error: `${data.name ?? "the tokenizer"} does not run here: ${reason}` });
    }
  });
};
