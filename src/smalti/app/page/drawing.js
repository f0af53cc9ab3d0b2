// Pixels on canvases: original beside reconstruction, errors, what a token governs, the mosaic of tokens.
import { colouring } from "./ids.js";

const ERROR_RANGE = 64; // grey levels that are shown as the brightest error

/** Return the mean squared error of two uint8 arrays as PSNR in dB; Infinity where they are equal. */
export function psnr(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2;
  return 10 * Math.log10(255 ** 2 / (sum / a.length));
}

/** Return frame `f` of frames t h w 3, as a view. */
export function frameOf(pixels, f, { h, w }) {
  return pixels.subarray(f * h * w * 3, (f + 1) * h * w * 3);
}

/** Paint RGB frames into a canvas of their size: `left` in the columns before `split`, `right` in the others. */
export function paintFrames(canvas, { h, w }, left, right, split) {
  sizeCanvas(canvas, w, h);
  const context = canvas.getContext("2d");
  const image = context.createImageData(w, h);
  for (let y = 0, i = 0, j = 0; y < h; y++) {
    for (let x = 0; x < w; x++, i += 4, j += 3) {
      const from = x < split ? left : right;
      image.data[i] = from[j];
      image.data[i + 1] = from[j + 1];
      image.data[i + 2] = from[j + 2];
      image.data[i + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

/** From black over red and orange to pale yellow. */
function heat(x) {
  return [Math.min(255, 470 * x), Math.min(255, Math.max(0, 380 * x - 100)), Math.min(255, Math.max(0, 620 * x - 420))];
}

/** Return the error of each pixel, the mean over its channels, as a frame of colours. */
export function errorFrame(a, b, range = ERROR_RANGE) {
  const out = new Uint8Array(a.length);
  for (let i = 0; i < a.length; i += 3) {
    const error = (Math.abs(a[i] - b[i]) + Math.abs(a[i + 1] - b[i + 1]) + Math.abs(a[i + 2] - b[i + 2])) / 3;
    out.set(heat(Math.min(1, error / range)), i);
  }
  return out;
}

/** Return a grey copy of a frame on which every pixel that differs from `other` glows, and how many and where. */
export function governedFrame(frame, other, w) {
  const out = new Uint8Array(frame.length);
  const found = { pixels: 0, x0: Infinity, x1: -1, y0: Infinity, y1: -1 };
  for (let i = 0; i < frame.length; i += 3) {
    const change = Math.max(Math.abs(frame[i] - other[i]), Math.abs(frame[i + 1] - other[i + 1]), Math.abs(frame[i + 2] - other[i + 2]));
    const grey = 0.35 * (0.299 * frame[i] + 0.587 * frame[i + 1] + 0.114 * frame[i + 2]) + 20;
    const strength = Math.min(1, Math.sqrt(change / 48));
    const glow = heat(0.25 + 0.75 * strength);
    for (let c = 0; c < 3; c++) out[i + c] = change ? grey + (glow[c] - grey) * Math.max(0.35, strength) : grey;
    if (change) {
      const x = (i / 3) % w;
      const y = Math.floor(i / 3 / w);
      found.pixels += 1;
      found.x0 = Math.min(found.x0, x);
      found.x1 = Math.max(found.x1, x);
      found.y0 = Math.min(found.y0, y);
      found.y1 = Math.max(found.y1, y);
    }
  }
  return { frame: out, found };
}

export function sizeCanvas(canvas, width, height) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
}

/** Return [red, green, blue] of each token of one latent frame: by id, by digit, or the mean of the pixels it gave. */
function tileColours(grid, latent, tokenizer, by, decoded) {
  const count = grid.h * grid.w;
  if (by === "pixels" && decoded) return meanColours(grid, latent, tokenizer, decoded);
  const colour = colouring(tokenizer.levels, by === "pixels" ? "id" : by);
  return Array.from({ length: count }, (_, i) => colour(grid.data[latent * count + i]));
}

function meanColours(grid, latent, { strides }, { pixels, t, h, w }) {
  const [st, sh, sw] = strides;
  const frame = frameOf(pixels, Math.min(t - 1, latent * st), { h, w });
  return Array.from({ length: grid.h * grid.w }, (_, i) => {
    const y0 = Math.floor(i / grid.w) * sh;
    const x0 = (i % grid.w) * sw;
    const sum = [0, 0, 0, 0];
    for (let y = y0; y < Math.min(y0 + sh, h); y++) {
      for (let x = x0; x < Math.min(x0 + sw, w); x++) {
        for (let c = 0; c < 3; c++) sum[c] += frame[(y * w + x) * 3 + c];
        sum[3] += 1;
      }
    }
    return sum.slice(0, 3).map((v) => v / Math.max(1, sum[3]));
  });
}

/** Paint one latent frame as a mosaic; tiles that have the id `same` are outlined, and so is the box that is selected. */
export function paintMosaic(canvas, grid, latent, tokenizer, { by, decoded, same, box }) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  sizeCanvas(canvas, width, height);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const colours = tileColours(grid, latent, tokenizer, by, decoded);
  const [cw, ch] = [width / grid.w, height / grid.h];
  const gap = cw > 5 * ratio ? Math.max(1, Math.min(1.5 * ratio, cw * 0.06)) : 0;
  const radius = Math.min(cw, ch) > 12 * ratio ? 2 * ratio : 0;
  const count = grid.h * grid.w;
  for (let y = 0; y < grid.h; y++) {
    for (let x = 0; x < grid.w; x++) {
      const i = y * grid.w + x;
      const dim = same !== null && grid.data[latent * count + i] !== same ? 0.38 : 1;
      context.globalAlpha = dim;
      context.fillStyle = `rgb(${colours[i].map(Math.round).join(" ")})`;
      const place = [x * cw + gap / 2, y * ch + gap / 2, cw - gap, ch - gap];
      if (radius) {
        context.beginPath();
        context.roundRect(...place, radius);
        context.fill();
      } else context.fillRect(...place);
    }
  }
  context.globalAlpha = 1;
  outline(context, box, cw, ch, ratio);
}

/** Outline on the image every place of an id, and the box that is selected. */
export function paintMarks(canvas, grid, latent, { strides }, { h, w }, { same, box }) {
  const ratio = window.devicePixelRatio || 1;
  sizeCanvas(canvas, Math.max(1, Math.round(canvas.clientWidth * ratio)), Math.max(1, Math.round(canvas.clientHeight * ratio)));
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  const [cw, ch] = [(canvas.width / w) * strides[2], (canvas.height / h) * strides[1]];
  if (same !== null) {
    const count = grid.h * grid.w;
    context.lineWidth = Math.max(1, 1.25 * ratio);
    for (let i = 0; i < count; i++) {
      if (grid.data[latent * count + i] !== same) continue;
      const place = [(i % grid.w) * cw, Math.floor(i / grid.w) * ch, cw, ch];
      context.strokeStyle = "#000a";
      context.strokeRect(place[0] - 1, place[1] - 1, cw + 2, ch + 2);
      context.strokeStyle = "#ffffff";
      context.strokeRect(...place);
    }
  }
  outline(context, box, cw, ch, ratio);
}

function outline(context, box, cw, ch, ratio) {
  if (!box) return;
  const place = [box.x0 * cw, box.y0 * ch, (box.x1 - box.x0 + 1) * cw, (box.y1 - box.y0 + 1) * ch];
  context.lineWidth = 4 * ratio;
  context.strokeStyle = "#000c";
  context.strokeRect(...place);
  context.lineWidth = 2 * ratio;
  context.strokeStyle = "#ffc93c";
  context.strokeRect(...place);
}
