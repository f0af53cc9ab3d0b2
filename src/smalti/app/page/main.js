// The page: what is opened, which tokens are selected, what is done with them.
import { generate, openTokenizers } from "./engine.js";
import { Fault, fill, erasedId, fromFragment, fromNpy, paste, shuffle, toFragment, toNpy, wholeBox } from "./ids.js";
import { joinFrames, kindOf, readCamera, readClip, readImage } from "./media.js";
import { frameOf, paintFrames, sizeCanvas } from "./drawing.js";
import { Inspector } from "./inspector.js";
import { Pane } from "./pane.js";
import { Player } from "./player.js";

const element = (id) => document.getElementById(id);
const LONGEST_LINK = 30_000; // characters; what mails and chats still carry is less

class Page {
  constructor({ tokenizers, models, samples, facts }) {
    Object.assign(this, { tokenizers, models, facts });
    this.panes = [];
    this.active = null;
    this.media = null; // what is open; null where only ids are
    this.second = null; // the image to paste from
    this.secondIds = new Map(); // tokenizer -> its grid
    this.reading = null; // AbortController of a clip or camera that is being read
    this.inspector = new Inspector(this);
    this.player = new Player(this);
    this.addPane(tokenizers[0]);
    this.#watchOpening(samples);
    this.#watchEdits();
    this.#watchSaving();
    this.#watchModels();
  }

  // --- panes

  addPane(tokenizer) {
    const pane = new Pane(this.tokenizers, tokenizer, {
      active: (one) => this.activate(one),
      edited: () => this.refresh(),
      fault: (error) => this.say(error),
      tokenizer: (one) => this.run(() => this.showIn(one)),
      add: () => this.run(() => this.compare()),
      close: (one) => this.close(one),
    });
    this.panes.push(pane);
    element("panes").append(pane.root);
    this.#arrange();
    this.activate(pane);
    return pane;
  }

  async compare() {
    const used = this.panes.map((pane) => pane.tokenizer);
    const pane = this.addPane(this.tokenizers.find((one) => !used.includes(one)) ?? this.tokenizers[0]);
    await this.showIn(pane);
    pane.root.scrollIntoView({ block: "nearest" });
  }

  close(pane) {
    pane.job += 1;
    pane.root.remove();
    this.panes = this.panes.filter((one) => one !== pane);
    this.#arrange();
    this.activate(this.panes[0]);
    this.panes[0].draw();
  }

  #arrange() {
    const two = this.panes.length > 1;
    element("panes").classList.toggle("two", two);
    for (const pane of this.panes) {
      pane.parts.add.hidden = two;
      pane.parts.close.hidden = !two;
    }
  }

  activate(pane) {
    for (const other of this.panes) {
      if (pane.box && other !== pane && other.box) {
        other.box = null;
        other.governed = null;
        other.draw();
      }
    }
    this.active = pane;
    this.refresh();
  }

  // --- what is open

  /** Show what is open in a pane whose tokenizer is new. */
  async showIn(pane) {
    if (this.media) await pane.open(this.media);
    else if (this.panes[0] !== pane && this.panes[0].decoded) await pane.open(joinFrames([this.panes[0].decoded.pixels], { ...this.panes[0].size, name: "decoded" }));
    else if (pane.grid) this.say(new Fault("ids belong to their tokenizer: open an image to see it with another one"));
    this.refresh();
  }

  async openFile(file) {
    this.stopReading();
    const kind = kindOf(file);
    if (kind === "ids") return this.openNpy(file);
    if (kind === "clip") return this.openFrames(file.name, () => readClip(file, this.side, this.clip));
    return this.openMedia(await readImage(file, this.side));
  }

  async openMedia(media) {
    this.media = media;
    this.player.show(media);
    this.refresh();
    await Promise.all(this.panes.map((pane) => pane.open(media)));
    this.refresh();
  }

  async openNpy(file) {
    const { tokenizer } = this.active;
    const grid = fromNpy(await file.arrayBuffer(), tokenizer.codebookSize, file.name);
    const [st, sh, sw] = tokenizer.strides;
    await this.openIds(tokenizer, grid, { t: 1 + (grid.t - 1) * st, h: grid.h * sh, w: grid.w * sw });
  }

  /** Show ids, in the first pane alone. */
  async openIds(tokenizer, grid, size) {
    this.stopReading();
    while (this.panes.length > 1) this.close(this.panes.at(-1));
    const [pane] = this.panes;
    pane.parts.tokenizer.value = tokenizer.name;
    pane.tokenizer = tokenizer;
    pane.refreshColours();
    this.media = null;
    this.player.show({ ...size, fps: this.clip.fps });
    await pane.openIds(grid, size);
    this.refresh();
  }

  /** Read frames one by one; encode and decode them as they come, where a tokenizer can. */
  async openFrames(name, read) {
    const reading = (this.reading = new AbortController());
    const frames = [];
    let size = null;
    for (const pane of this.panes) pane.startStream();
    for await (const { pixels, h, w, total } of read(reading.signal)) {
      if (this.reading !== reading) return;
      frames.push(pixels);
      size = { h, w };
      for (const pane of this.panes) {
        pane.showOriginal({ name, pixels, t: 1, h, w });
        pane.say(total === null ? `${frames.length} of ${this.clip.most} frames` : `Frame ${frames.length} of ${total}`);
      }
      await Promise.all(this.panes.map((pane) => pane.push(pixels, size, false)));
      if (frames.length >= this.clip.most) break;
    }
    if (this.reading !== reading || !size) return;
    this.reading = null;
    const media = (this.media = joinFrames(frames, { ...size, name, fps: this.clip.fps }));
    await Promise.all(this.panes.map((pane) => pane.finish(media)));
    this.player.show(media);
    this.refresh();
  }

  stopReading() {
    this.reading?.abort();
    this.reading = null;
  }

  get side() {
    return Number(element("side").value);
  }

  get clip() {
    const [most, fps] = element("clip").value.split(",").map(Number);
    return { most, fps };
  }

  #watchOpening(samples) {
    const file = element("file");
    element("open").onclick = () => file.click();
    file.onchange = () => {
      const [chosen] = file.files;
      file.value = "";
      if (chosen) this.run(() => this.openFile(chosen));
    };
    element("camera").onclick = () => this.run(() => this.toggleCamera());
    element("side").onchange = element("clip").onchange = () => this.source && this.run(this.source);
    const drop = element("drop");
    window.addEventListener("dragover", (event) => {
      event.preventDefault();
      drop.hidden = false;
    });
    window.addEventListener("dragleave", (event) => event.relatedTarget ?? (drop.hidden = true));
    window.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.hidden = true;
      const [dropped] = event.dataTransfer.files;
      if (dropped) this.run(() => this.openFile(dropped), true);
    });
    window.addEventListener("paste", (event) => {
      const [pasted] = event.clipboardData.files;
      if (pasted) this.run(() => this.openFile(pasted), true);
    });
    for (const sample of samples) {
      const button = Object.assign(document.createElement("button"), { title: sample.title, className: sample.kind });
      button.setAttribute("aria-label", `Open the ${sample.kind} ${sample.title}`);
      const view = Object.assign(document.createElement(sample.kind === "clip" ? "video" : "img"), { src: sample.file, alt: "", muted: true, preload: "metadata" });
      button.append(view);
      button.onclick = () => this.run(() => this.openSample(sample), true);
      const item = document.createElement("li");
      item.append(button);
      element("samples").append(item);
    }
  }

  async openSample(sample) {
    const response = await fetch(sample.file);
    if (!response.ok) throw new Fault(`${sample.file} cannot be read from the page's host (${response.status})`);
    const blob = await response.blob();
    await this.openFile(new File([blob], sample.file.split("/").pop(), { type: blob.type }));
  }

  async toggleCamera() {
    const button = element("camera");
    if (button.getAttribute("aria-pressed") === "true") return this.camera?.abort();
    const camera = (this.camera = new AbortController());
    this.stopReading();
    button.setAttribute("aria-pressed", "true");
    button.textContent = "Stop";
    const set = this.clip;
    try {
      await this.openFrames("camera", () => readCamera(this.side, set, camera.signal));
    } finally {
      camera.abort();
      button.setAttribute("aria-pressed", "false");
      button.textContent = "Camera";
    }
  }

  // --- edits

  /** Return the box that edits apply to: what is selected, or everything. */
  get target() {
    const { active } = this;
    if (!active?.grid) return null;
    return active.box && active.box.t0 < active.grid.t ? active.box : wholeBox(active.grid);
  }

  #watchEdits() {
    const edit = (make) => () => this.run(async () => this.target && this.active.edit(await make(this.active.grid, this.target)));
    element("erase").onclick = edit((grid, box) => fill(grid, box, erasedId(this.active.tokenizer.levels)));
    element("shuffle").onclick = edit((grid, box) => shuffle(grid, box));
    element("paste").onclick = edit(async (grid, box) => paste(grid, box, await this.gridOfSecond()));
    element("undo").onclick = () => this.run(() => this.active.undo());
    element("reset").onclick = () => this.run(() => this.active.edit(this.active.encoded));
    element("second").onclick = () => element("second-file").click();
    element("second-file").onchange = () => {
      const [chosen] = element("second-file").files;
      element("second-file").value = "";
      if (chosen) this.run(() => this.openSecond(chosen));
    };
    window.addEventListener("keydown", (event) => {
      if (event.target.closest?.("input:not([type=range]), select, textarea")) return;
      const key = event.key.toLowerCase();
      if ((event.ctrlKey || event.metaKey) && key === "z") {
        event.preventDefault();
        element("undo").click();
      } else if ((key === "delete" || key === "backspace") && event.target.classList?.contains("map")) {
        event.preventDefault();
        element("erase").click();
      } else if (key === " " && !event.target.closest("button, input")) {
        event.preventDefault();
        this.player.toggle();
      }
    });
  }

  async openSecond(file) {
    if (kindOf(file) !== "image") throw new Fault("the second image must be an image: its tokens are pasted into the first");
    const image = await readImage(file, this.side);
    this.second = image;
    this.secondIds.clear();
    const view = element("second-view");
    view.hidden = false;
    view.setAttribute("aria-label", `Second image: ${image.name}`);
    paintFrames(view, image, image.pixels, image.pixels, 0);
    this.refresh();
  }

  async gridOfSecond() {
    const { tokenizer } = this.active;
    if (!this.secondIds.has(tokenizer)) this.secondIds.set(tokenizer, (await tokenizer.encode(this.second)).grid);
    return this.secondIds.get(tokenizer);
  }

  // --- links and files

  #watchSaving() {
    element("link").onclick = () => this.run(() => this.copyLink());
    element("npy").onclick = () => this.save(`ids.npy`, new Blob([toNpy(this.active.grid, this.active.tokenizer.codebookSize)]));
    element("png").onclick = () => this.run(() => this.savePng());
    window.addEventListener("hashchange", () => this.run(() => this.openFragment(), true));
  }

  async copyLink() {
    const { tokenizer, grid, size } = this.active;
    const fragment = toFragment(tokenizer, grid, size);
    if (fragment.length > LONGEST_LINK) throw new Fault(`the link would have ${fragment.length.toLocaleString("en")} characters: take a smaller image or a shorter clip, or save the ids as .npy`);
    history.replaceState(null, "", fragment);
    const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
    const bytes = Math.ceil((grid.data.length * Math.ceil(Math.log2(tokenizer.codebookSize))) / 8);
    element("save-text").textContent = `${copied ? "Copied" : "It is in the address bar"}: ${grid.data.length.toLocaleString("en")} tokens are ${bytes.toLocaleString("en")} bytes, ${fragment.length.toLocaleString("en")} characters after the #.`;
  }

  /** Show what the address of the page carries; return whether it carries anything. */
  async openFragment() {
    const found = fromFragment(location.hash, this.tokenizers);
    if (found) await this.openIds(found.tokenizer, found.grid, found.size);
    return found !== null;
  }

  async savePng() {
    const { decoded, size, frame } = this.active;
    const canvas = new OffscreenCanvas(size.w, size.h);
    const pixels = frameOf(decoded.pixels, Math.min(frame, decoded.t - 1), size);
    sizeCanvas(canvas, size.w, size.h);
    paintFrames(canvas, size, pixels, pixels, 0);
    this.save("reconstruction.png", await canvas.convertToBlob({ type: "image/png" }));
  }

  save(name, blob) {
    const anchor = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
  }

  // --- token models, where the page is served by smalti serve

  #watchModels() {
    if (!this.models.length) return;
    element("generate").hidden = false;
    for (const model of this.models) element("model").add(new Option(model.name, model.name));
    const chosen = () => this.models.find((model) => model.name === element("model").value);
    element("model").onchange = () => {
      const { classes, continues } = chosen();
      element("class").replaceChildren(...classes.map((name, i) => new Option(name, i)));
      element("class-label").hidden = classes.length === 0;
      element("continue").hidden = !continues;
    };
    element("model").onchange();
    const sample = async (media) => {
      const model = chosen();
      const label = model.classes.length ? Number(element("class").value) : null;
      this.active.say("Generating");
      try {
        const { grid, size } = await generate(model, { label, seed: Number(element("seed").value) }, media);
        await this.openIds(this.tokenizers.find((one) => one.name === model.tokenizer), grid, size);
      } finally {
        this.active.say("");
      }
    };
    element("sample").onclick = () => this.run(() => sample(null));
    element("continue").onclick = () => this.run(() => {
      if (!this.media) throw new Fault("open an image or a clip first: the model continues it");
      return sample(this.media);
    });
  }

  // --- the page itself

  showFrame(frame) {
    for (const pane of this.panes) {
      const before = pane.latent;
      pane.frame = frame;
      pane.governed = null;
      if (pane.box && pane.latent !== before) pane.box = { ...pane.box, t0: pane.latent, t1: pane.latent };
      pane.draw();
    }
    this.inspector.show();
  }

  /** Do some work and show its fault, if any. `remember` does it again when the size is changed. */
  async run(work, remember = false) {
    this.say(null);
    if (remember) this.source = work;
    try {
      return await work();
    } catch (error) {
      this.say(error);
      return null;
    }
  }

  say(error) {
    const line = element("message");
    line.hidden = !error;
    line.textContent = error ? (error instanceof Fault ? error.message : `Something went wrong: ${error.message ?? error}`) : "";
    if (error && !(error instanceof Fault)) console.error(error);
  }

  refresh() {
    const { active } = this;
    const there = Boolean(active?.grid);
    for (const id of ["erase", "shuffle", "link", "npy"]) element(id).disabled = !there;
    element("png").disabled = !active?.decoded;
    element("paste").disabled = !(there && this.second);
    element("undo").disabled = !(there && active.history.length);
    element("reset").disabled = !(there && active.grid !== active.encoded);
    element("second").textContent = this.second ? "Another second image" : "Open a second image";
    this.inspector.show();
  }
}

async function start() {
  const place = element("place-text");
  let page = null;
  const progress = ({ what, done, total }) => {
    const size = total ? `${(done / 2 ** 20).toFixed(1)} of ${(total / 2 ** 20).toFixed(1)} MB` : `${(done / 2 ** 20).toFixed(1)} MB`;
    for (const pane of page?.panes ?? []) if (!pane.parts.busy.hidden) pane.say(done === total ? `Starting ${what}` : `Loading ${what}, ${size}`);
  };
  try {
    const opened = await openTokenizers(progress);
    if (!opened.tokenizers.length) throw new Fault("there is no tokenizer on this page");
    page = window.smalti = new Page(opened);
    const served = opened.tokenizers.some((one) => one.place === "server");
    place.textContent = served ? `Runs on the machine at ${location.host}` : "Runs in this page: no pixel leaves it";
    element("about").textContent = opened.facts.about;
    const carried = await page.run(() => page.openFragment(), true);
    if (carried === false && opened.samples.length) await page.run(() => page.openSample(opened.samples[0]), true);
  } catch (error) {
    place.textContent = "Not running";
    element("message").hidden = false;
    element("message").textContent = error.message;
  }
}

start();
