// Ids as numbers: digits, colours, edits, links and .npy files. Nothing here touches the page.
//
// A grid of ids is { data: Float64Array, t, h, w }: a double holds every id of a codebook up to 2^53 exactly.

export const LARGEST_CODEBOOK = 2 ** 53;
const LINK_PIXELS = 2 ** 22; // of a link or a file of ids: 2048 x 2048, or 33 frames of 360 x 360
const LINK_FRAMES = 257;

export class Fault extends Error {} // its message is for the reader of the page

/** Return the digits of an id, digit 0 least significant: 0 <= digit[j] < levels[j]. */
export function digitsOf(id, levels) {
  return levels.map((level) => {
    const digit = id % level;
    id = (id - digit) / level;
    return digit;
  });
}

/** Return the id of digits, the inverse of digitsOf. */
export function idOf(digits, levels) {
  return levels.reduceRight((id, level, j) => id * level + digits[j], 0);
}

/** Return the id that an erased token has: the middle level of every digit. */
export function erasedId(levels) {
  return idOf(levels.map((level) => Math.floor(level / 2)), levels);
}

/** Return the grid of a video of (t, h, w) in tokens: the first frame stands alone, then whole groups. */
export function gridOf(size, strides) {
  const [t, h, w] = strides;
  return { t: 1 + Math.ceil((size.t - 1) / t), h: Math.ceil(size.h / h), w: Math.ceil(size.w / w) };
}

/** Return the latent frame that a frame of the video belongs to. */
export function latentOf(frame, timeStride) {
  return Math.ceil(frame / timeStride);
}

/** Return the bits of one token when every id takes the same number of them. */
export function bitsPerToken(codebookSize) {
  return Math.log2(codebookSize);
}

// --- colours

/** Return a function from an id to [red, green, blue]: by "id", near codes in near colours, or by digit number. */
export function colouring(levels, by) {
  if (by === "id") {
    if (levels.length < 3) return (id) => hashed(id);
    return (id) => nearby(digitsOf(id, levels), levels);
  }
  const level = levels[by];
  const radix = levels.slice(0, by).reduce((a, b) => a * b, 1);
  const ramp = Array.from({ length: Math.min(level, 256) }, (_, i) => ramped(i / (Math.min(level, 256) - 1 || 1)));
  return (id) => ramp[Math.floor(((Math.floor(id / radix) % level) * ramp.length) / level)];
}

/** Digits 0, 3, 6, ... give the lightness; 1, 4, ... and 2, 5, ... the two axes of colour; early digits weigh most. */
function nearby(digits, levels) {
  const axis = [0, 0, 0];
  const scale = [1, 1, 1];
  digits.forEach((digit, j) => {
    scale[j % 3] /= levels[j];
    axis[j % 3] += digit * scale[j % 3];
  });
  return oklab(0.36 + 0.52 * axis[0], 0.23 * (axis[1] - 0.5), 0.23 * (axis[2] - 0.5));
}

function hashed(id) {
  const turn = (id * 0.6180339887498949) % 1;
  const light = (id * 0.7548776662466927) % 1;
  const angle = 2 * Math.PI * turn;
  return oklab(0.45 + 0.38 * light, 0.13 * Math.cos(angle), 0.13 * Math.sin(angle));
}

/** A ramp from dark teal over teal to light gold, its lightness even. */
export function ramped(x) {
  return oklab(0.24 + 0.66 * x, -0.075 + 0.1 * x, -0.05 + 0.17 * x);
}

/** Convert OKLab to sRGB of 0 to 255 (Ottosson 2020). */
function oklab(light, a, b) {
  const l = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (light - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return linear.map((v) => {
    const c = Math.min(1, Math.max(0, v));
    return Math.round(255 * (c <= 0.0031308 ? 12.92 * c : 1.055 * c ** (1 / 2.4) - 0.055));
  });
}

// --- edits: each gives a new grid

/** Yield the indices of a box { t0, t1, y0, y1, x0, x1 } (ends included) in a grid. */
export function* cells(grid, box) {
  for (let t = box.t0; t <= box.t1; t++) {
    for (let y = box.y0; y <= box.y1; y++) {
      for (let x = box.x0; x <= box.x1; x++) yield (t * grid.h + y) * grid.w + x;
    }
  }
}

/** Return the box of a whole grid. */
export function wholeBox(grid) {
  return { t0: 0, t1: grid.t - 1, y0: 0, y1: grid.h - 1, x0: 0, x1: grid.w - 1 };
}

export function fill(grid, box, id) {
  const data = grid.data.slice();
  for (const i of cells(grid, box)) data[i] = id;
  return { ...grid, data };
}

/** Shuffle the tokens of a box among themselves, each latent frame by itself. */
export function shuffle(grid, box, random = Math.random) {
  const data = grid.data.slice();
  for (let t = box.t0; t <= box.t1; t++) {
    const places = [...cells(grid, { ...box, t0: t, t1: t })];
    for (let i = places.length - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [data[places[i]], data[places[j]]] = [data[places[j]], data[places[i]]];
    }
  }
  return { ...grid, data };
}

/** Copy the tokens of a box from the same place of another grid, which repeats its last row, column and frame. */
export function paste(grid, box, other) {
  const data = grid.data.slice();
  for (const i of cells(grid, box)) {
    const x = Math.min(i % grid.w, other.w - 1);
    const y = Math.min(Math.floor(i / grid.w) % grid.h, other.h - 1);
    const t = Math.min(Math.floor(i / (grid.w * grid.h)), other.t - 1);
    data[i] = other.data[(t * other.h + y) * other.w + x];
  }
  return { ...grid, data };
}

// --- links: the ids packed in as many whole bits as the codebook needs, least significant first

export function packIds(ids, codebookSize) {
  const bits = Math.max(1, Math.ceil(Math.log2(codebookSize)));
  const bytes = new Uint8Array(Math.ceil((ids.length * bits) / 8));
  let position = 0;
  for (const id of ids) {
    for (let b = 0; b < bits; b++, position++) {
      if (Math.floor(id / 2 ** b) % 2) bytes[position >> 3] |= 1 << (position & 7);
    }
  }
  return bytes;
}

export function unpackIds(bytes, count, codebookSize) {
  const bits = Math.max(1, Math.ceil(Math.log2(codebookSize)));
  if (bytes.length !== Math.ceil((count * bits) / 8)) throw new Fault("the ids of this link are cut or too long");
  const ids = new Float64Array(count);
  let position = 0;
  for (let i = 0; i < count; i++) {
    for (let b = 0; b < bits; b++, position++) if ((bytes[position >> 3] >> (position & 7)) & 1) ids[i] += 2 ** b;
  }
  checkIds(ids, codebookSize, "this link");
  return ids;
}

export function checkIds(ids, codebookSize, where) {
  const bad = ids.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < codebookSize));
  if (bad >= 0) throw new Fault(`${where} holds the id ${ids[bad]}, and ids of this tokenizer are 0 to ${codebookSize - 1}`);
}

function toBase64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function fromBase64(text) {
  if (!/^[A-Za-z0-9_-]*$/.test(text)) throw new Fault("the ids of this link are no base64url");
  try {
    return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  } catch {
    throw new Fault("the ids of this link are no base64url");
  }
}

/** Return the fragment that carries a video as its tokens. */
export function toFragment(tokenizer, grid, size) {
  const packed = toBase64(packIds(grid.data, tokenizer.codebookSize));
  const name = encodeURIComponent(tokenizer.name);
  return `#v=1&tokenizer=${name}&of=${tokenizer.fingerprint.slice(0, 12)}&size=${size.t}x${size.h}x${size.w}&ids=${packed}`;
}

/** Return { tokenizer, grid, size } of a fragment, or null where it carries no ids. Throws Fault. */
export function fromFragment(fragment, tokenizers) {
  const fields = new URLSearchParams(fragment.replace(/^#/, ""));
  if (!fields.has("ids")) return null;
  if (fields.get("v") !== "1") throw new Fault("this link was written by another version of the page");
  const of = fields.get("of") ?? "";
  const name = (fields.get("tokenizer") ?? "").slice(0, 100);
  const tokenizer = tokenizers.find((one) => of.length === 12 && one.fingerprint.startsWith(of));
  if (!tokenizer) throw new Fault(`this link needs the tokenizer ${name || "without a name"} (${of.slice(0, 12)}), which is not on this page`);
  const match = /^(\d{1,4})x(\d{1,5})x(\d{1,5})$/.exec(fields.get("size") ?? "");
  const size = match && { t: Number(match[1]), h: Number(match[2]), w: Number(match[3]) };
  checkSize(size, "this link");
  const grid = gridOf(size, tokenizer.strides);
  const data = unpackIds(fromBase64(fields.get("ids")), grid.t * grid.h * grid.w, tokenizer.codebookSize);
  return { tokenizer, grid: { ...grid, data }, size };
}

function checkSize(size, where) {
  if (!size || Math.min(size.t, size.h, size.w) < 1) throw new Fault(`${where} does not say its size`);
  if (size.t > LINK_FRAMES || size.t * size.h * size.w > LINK_PIXELS) {
    throw new Fault(`${where} is ${size.t} frames of ${size.w} x ${size.h}: too large for this page`);
  }
}

// --- .npy files

/** Return ids as a .npy file: (h, w) of an image, (t, h, w) of a clip, of the smallest unsigned type. */
export function toNpy(grid, codebookSize) {
  const [type, Kind] = codebookSize <= 2 ** 8 ? ["|u1", Uint8Array] : codebookSize <= 2 ** 16 ? ["<u2", Uint16Array]
    : codebookSize <= 2 ** 32 ? ["<u4", Uint32Array] : ["<i8", BigInt64Array];
  const shape = grid.t === 1 ? `(${grid.h}, ${grid.w})` : `(${grid.t}, ${grid.h}, ${grid.w})`;
  const text = `{'descr': '${type}', 'fortran_order': False, 'shape': ${shape}, }`;
  const header = text.padEnd(Math.ceil((10 + text.length + 1) / 64) * 64 - 11) + "\n";
  const body = Kind === BigInt64Array ? BigInt64Array.from(grid.data, BigInt) : Kind.from(grid.data);
  const file = new Uint8Array(10 + header.length + body.byteLength);
  file.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 255, header.length >> 8]);
  file.set(new TextEncoder().encode(header), 10);
  file.set(new Uint8Array(body.buffer), 10 + header.length);
  return file;
}

const NPY_KINDS = {
  "|u1": [1, "getUint8"], "|i1": [1, "getInt8"], "<u2": [2, "getUint16"], "<i2": [2, "getInt16"], "<u4": [4, "getUint32"],
  "<i4": [4, "getInt32"], "<i8": [8, "getBigInt64"], "<u8": [8, "getBigUint64"],
};

/** Return the grid of ids in a .npy file of whole numbers. Throws Fault for anything else. */
export function fromNpy(buffer, codebookSize, name) {
  const bytes = new Uint8Array(buffer);
  const is = bytes.length > 12 && [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59].every((b, i) => bytes[i] === b);
  if (!is) throw new Fault(`${name} is not a .npy file`);
  const view = new DataView(buffer);
  const start = bytes[6] === 1 ? 10 : 12;
  const length = bytes[6] === 1 ? view.getUint16(8, true) : view.getUint32(8, true);
  if (length > 4096 || start + length > bytes.length) throw new Fault(`${name} is a damaged .npy file`);
  const header = new TextDecoder("latin1").decode(bytes.subarray(start, start + length));
  const kind = NPY_KINDS[/'descr': *'([^']*)'/.exec(header)?.[1] ?? ""];
  const shape = (/'shape': *\(([0-9, ]*)\)/.exec(header)?.[1] ?? "").split(",").map((s) => s.trim()).filter(Boolean).map(Number);
  if (!kind || /'fortran_order': *True/.test(header)) throw new Fault(`${name} does not hold whole numbers in C order`);
  while (shape.length > 2 && shape[0] === 1) shape.shift();
  if (shape.length < 2 || shape.length > 3) throw new Fault(`${name} has the shape (${shape}); ids are (h, w) or (t, h, w)`);
  const [t, h, w] = shape.length === 2 ? [1, ...shape] : shape;
  const count = t * h * w;
  if (!(count > 0 && count <= LINK_PIXELS / 16)) throw new Fault(`${name} holds ${count} ids: too many or none`);
  if (bytes.length !== start + length + count * kind[0]) throw new Fault(`${name} is cut, or longer than its shape`);
  const data = Float64Array.from({ length: count }, (_, i) => Number(view[kind[1]](start + length + i * kind[0], true)));
  checkIds(data, codebookSize, name);
  return { data, t, h, w };
}
