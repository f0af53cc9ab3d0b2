// Images, clips and the camera as uint8 RGB frames. All of it stays in this page.
import { Fault } from "./ids.js";

const LARGEST_FILE = 512 * 2 ** 20; // bytes
const MOST_PIXELS = 100e6; // of one image, before it is made smaller
const PATIENCE = 15_000; // milliseconds for the browser to find the next frame

/** Return the size whose longest side is at most `side`, at least one pixel each way. */
export function fit(width, height, side) {
  const scale = Math.min(1, side / Math.max(width, height));
  return { w: Math.max(1, Math.round(width * scale)), h: Math.max(1, Math.round(height * scale)) };
}

/** Return what a file is by its bytes and type: "ids", "clip" or "image". Throws Fault for what cannot be one. */
export function kindOf(file) {
  if (!file.size) throw new Fault(`${file.name} is empty`);
  if (file.size > LARGEST_FILE) throw new Fault(`${file.name} has ${Math.round(file.size / 2 ** 20)} MB, at most ${LARGEST_FILE / 2 ** 20} are read`);
  if (/\.npy$/i.test(file.name)) return "ids";
  if (file.type.startsWith("video/") || /\.(mp4|m4v|mov|webm|mkv|ogv)$/i.test(file.name)) return "clip";
  return "image";
}

/** Take the pixels of anything that a canvas takes, on white, as uint8 RGB. */
class Grabber {
  constructor({ w, h }) {
    this.size = { w, h };
    this.canvas = new OffscreenCanvas(w, h);
    this.context = this.canvas.getContext("2d", { willReadFrequently: true, alpha: false });
    this.context.imageSmoothingQuality = "high";
  }

  grab(source) {
    const { w, h } = this.size;
    this.context.fillStyle = "#fff";
    this.context.fillRect(0, 0, w, h);
    this.context.drawImage(source, 0, 0, w, h);
    const rgba = this.context.getImageData(0, 0, w, h).data;
    const rgb = new Uint8Array(w * h * 3);
    for (let i = 0, j = 0; j < rgb.length; i += 4, j += 3) {
      rgb[j] = rgba[i];
      rgb[j + 1] = rgba[i + 1];
      rgb[j + 2] = rgba[i + 2];
    }
    return rgb;
  }
}

/** Read an image file; return { pixels, t: 1, h, w }. A size that is within `side` keeps its pixels exactly. */
export async function readImage(file, side) {
  const address = URL.createObjectURL(file);
  try {
    const image = new Image();
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = () => reject(new Fault(`${file.name} is no image or video that this browser can read`));
      image.src = address;
    });
    const { naturalWidth: width, naturalHeight: height } = image;
    if (!width || !height) throw new Fault(`${file.name} has no size in pixels`);
    if (width * height > MOST_PIXELS) throw new Fault(`${file.name} is ${width} x ${height}, at most 100 million pixels are read`);
    await image.decode().catch(() => {
      throw new Fault(`${file.name} is damaged`);
    });
    const size = fit(width, height, side);
    return { name: file.name, pixels: new Grabber(size).grab(image), t: 1, ...size };
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** Yield the frames of a video file as { pixels, h, w, total }, `fps` a second and at most `most` of them. */
export async function* readClip(file, side, { fps, most }) {
  const address = URL.createObjectURL(file);
  const video = document.createElement("video");
  video.muted = true;
  video.preload = "auto";
  try {
    await happens(video, "loadeddata", `${file.name} is no video that this browser can read`, () => (video.src = address));
    const { videoWidth: width, videoHeight: height } = video;
    if (!width || !height) throw new Fault(`${file.name} has sound but no frames`);
    if (width * height > MOST_PIXELS) throw new Fault(`${file.name} is ${width} x ${height}: too large`);
    const seconds = Number.isFinite(video.duration) ? video.duration : most / fps;
    const total = Math.max(1, Math.min(most, Math.floor(seconds * fps)));
    const size = fit(width, height, side);
    const grabber = new Grabber(size);
    for (let i = 0; i < total; i++) {
      const time = Math.min((i + 0.5) / fps, seconds);
      await happens(video, "seeked", `${file.name} ends or is damaged at ${time.toFixed(1)} s`, () => (video.currentTime = time));
      yield { pixels: grabber.grab(video), ...size, total };
    }
  } finally {
    video.removeAttribute("src");
    video.load();
    URL.revokeObjectURL(address);
  }
}

/** Yield frames of the camera until `signal` is aborted, no more than `fps` a second. */
export async function* readCamera(side, { fps }, signal) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } }, audio: false });
  } catch (error) {
    throw new Fault(error.name === "NotAllowedError" ? "the camera may not be used: the browser did not allow it" : "there is no camera that this page can use");
  }
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;
  try {
    await happens(video, "loadeddata", "the camera gives no frames", () => (video.srcObject = stream));
    await video.play();
    const size = fit(video.videoWidth, video.videoHeight, side);
    const grabber = new Grabber(size);
    for (let due = performance.now(); !signal.aborted; due = Math.max(due + 1000 / fps, performance.now())) {
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, due - performance.now())));
      yield { pixels: grabber.grab(video), ...size, total: null };
    }
  } finally {
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  }
}

/** Do `act` and wait for an event of a video; throw a Fault if it fails or takes too long. */
function happens(video, event, failure, act) {
  return new Promise((resolve, reject) => {
    const fail = () => end(reject, new Fault(failure));
    const timer = setTimeout(fail, PATIENCE);
    const succeed = () => end(resolve);
    function end(settle, value) {
      clearTimeout(timer);
      video.removeEventListener(event, succeed);
      video.removeEventListener("error", fail);
      settle(value);
    }
    video.addEventListener(event, succeed);
    video.addEventListener("error", fail);
    act();
  });
}

/** Join parts of a video, each of whole frames of one size, to { name, pixels, t, h, w }. */
export function joinFrames(parts, { h, w, name, fps }) {
  const pixels = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let end = 0;
  for (const part of parts) {
    pixels.set(part, end);
    end += part.length;
  }
  return { name, pixels, t: pixels.length / (h * w * 3), h, w, fps };
}
