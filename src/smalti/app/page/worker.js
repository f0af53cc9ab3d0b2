// The tokenizers of the page: ONNX programs run by onnxruntime-web, off the page's own thread.
import * as ort from "./ort/ort.js";

const opened = new Map(); // name -> { encode, decode, steps }
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

const operations = {
  open({ name, files, strides }) {
    opened.set(name, { files, strides, sessions: {} });
    return {};
  },

  async encode({ name, pixels, size }) {
    const session = await program(name, "encode");
    const begun = performance.now();
    const { strides } = opened.get(name);
    const found = await session.run({ [session.inputNames[0]]: toVideo(pixels, size, legalSize(size, strides)) });
    const ids = found[session.outputNames[0]];
    const [, t, h, w] = ids.dims;
    return { grid: { data: toNumbers(ids.data), t, h, w }, seconds: (performance.now() - begun) / 1000 };
  },

  async decode({ name, grid, size }) {
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
      self.postMessage({ id: data.id, error: String(error?.message ?? error) });
    }
  });
};
