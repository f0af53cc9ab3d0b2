// One tokenizer at work: the original beside its reconstruction, and the map of its tokens.
import { bitsPerToken, erasedId, latentOf } from "./ids.js";
import { joinFrames } from "./media.js";
import { errorFrame, frameOf, governedFrame, paintFrames, paintMarks, paintMosaic, psnr } from "./drawing.js";

const MODES = { compare: "Compare", original: "Original", tokens: "From tokens", error: "Error" };
const MOST_UNDONE = 50;
let panes = 0;

export class Pane {
  /** `on` holds the page's own reactions: { active, edited, fault, tokenizer, add, close }. */
  constructor(tokenizers, tokenizer, on) {
    this.on = on;
    this.tokenizers = tokenizers;
    this.tokenizer = tokenizer;
    this.number = panes++;
    this.media = null; // the original; null where only ids are known
    this.size = null; // { t, h, w } in pixels
    this.grid = null; // ids as they are shown
    this.encoded = null; // ids as they were opened
    this.decoded = null; // { pixels, t, h, w }
    this.governed = null; // { frame, found } of the selected token, or null
    this.history = [];
    this.box = null; // tokens that are selected
    this.cursor = { y: 0, x: 0 };
    this.frame = 0;
    this.mode = "compare";
    this.by = "id";
    this.job = 0; // number of the newest work; older work is dropped
    this.#build();
  }

  #build() {
    this.root = document.getElementById("pane").content.firstElementChild.cloneNode(true);
    const part = (name) => this.root.querySelector(`.${name}`);
    this.parts = Object.fromEntries(
      ["image", "marks", "map", "slider", "split", "busy", "modes", "colour", "psnr", "bits", "count", "distinct", "seconds", "add", "close",
        "tokenizer", "left", "right"].map((name) => [name, part(name)]),
    );
    this.parts.stage = part("image-stage");
    this.parts.tokenStage = part("token-stage");
    this.parts.gridText = part("grid-text");
    const { tokenizer, slider, map, modes, colour, add, close } = this.parts;
    for (const one of this.tokenizers) tokenizer.add(new Option(one.title, one.name));
    tokenizer.value = this.tokenizer.name;
    tokenizer.onchange = () => {
      this.tokenizer = this.tokenizers.find((one) => one.name === tokenizer.value);
      this.refreshColours();
      this.on.tokenizer(this);
    };
    slider.oninput = () => this.draw();
    for (const [mode, text] of Object.entries(MODES)) {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: `mode-${this.number}`, value: mode });
      input.checked = mode === this.mode;
      input.onchange = () => {
        this.mode = mode;
        this.draw();
      };
      label.append(input, Object.assign(document.createElement("span"), { textContent: text }));
      modes.append(label);
    }
    colour.onchange = () => {
      this.by = colour.value.startsWith("digit ") ? Number(colour.value.slice(6)) : colour.value;
      this.draw();
    };
    add.onclick = () => this.on.add();
    close.onclick = () => this.on.close(this);
    this.root.addEventListener("focusin", () => this.on.active(this));
    this.refreshColours();
    this.#watchMap(map);
    new ResizeObserver(() => this.draw()).observe(this.parts.tokenStage);
  }

  refreshColours() {
    const { colour } = this.parts;
    const before = colour.value;
    colour.replaceChildren(new Option("id", "id"), new Option("the pixels it gave", "pixels"));
    this.tokenizer.levels.slice(0, 32).forEach((level, j) => colour.add(new Option(`digit ${j} (0 to ${level - 1})`, `digit ${j}`)));
    colour.value = [...colour.options].some((option) => option.value === before) ? before : "id";
    colour.onchange?.();
  }

  #watchMap(map) {
    let from = null;
    const place = (event) => {
      const area = map.getBoundingClientRect();
      const x = Math.floor(((event.clientX - area.left) / area.width) * this.grid.w);
      const y = Math.floor(((event.clientY - area.top) / area.height) * this.grid.h);
      return { x: Math.min(this.grid.w - 1, Math.max(0, x)), y: Math.min(this.grid.h - 1, Math.max(0, y)) };
    };
    map.onpointerdown = (event) => {
      if (!this.grid || event.button) return;
      map.setPointerCapture(event.pointerId);
      from = place(event);
      this.select(from, event.shiftKey ? this.cursor : from);
    };
    map.onpointermove = (event) => from && this.select(place(event), from);
    map.onpointerup = map.onpointercancel = () => (from = null);
    let anchor = null;
    map.onkeydown = (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!this.grid) return;
      if (step) {
        event.preventDefault();
        anchor = event.shiftKey ? (anchor ?? this.cursor) : null;
        const fresh = !this.box;
        const y = Math.min(this.grid.h - 1, Math.max(0, this.cursor.y + (fresh ? 0 : step[0])));
        const x = Math.min(this.grid.w - 1, Math.max(0, this.cursor.x + (fresh ? 0 : step[1])));
        this.select({ y, x }, anchor ?? { y, x });
      } else if (event.key === "Escape") {
        this.select(null);
      }
    };
  }

  get latent() {
    return Math.min((this.grid?.t ?? 1) - 1, latentOf(this.frame, this.tokenizer.strides[0]));
  }

  /** Select the tokens between two corners of the shown latent frame, or none. */
  select(corner, other = corner) {
    if (corner === null) this.box = null;
    else {
      this.cursor = corner;
      const [y0, y1] = [Math.min(corner.y, other.y), Math.max(corner.y, other.y)];
      const [x0, x1] = [Math.min(corner.x, other.x), Math.max(corner.x, other.x)];
      this.box = { t0: this.latent, t1: this.latent, y0, y1, x0, x1 };
    }
    this.governed = null;
    this.on.active(this);
    this.draw();
  }

  /** Return the id of the selected token; null where none or several are. */
  get selected() {
    const box = this.box;
    if (!this.grid || !box || box.y0 !== box.y1 || box.x0 !== box.x1) return null;
    return this.grid.data[(this.latent * this.grid.h + box.y0) * this.grid.w + box.x0];
  }

  /** Return where an id is: how many places of the shown latent frame, and of all. */
  placesOf(id) {
    const count = this.grid.h * this.grid.w;
    const here = this.grid.data.subarray(this.latent * count, (this.latent + 1) * count);
    const among = (ids) => ids.reduce((sum, one) => sum + (one === id), 0);
    return { here: among(here), all: among(this.grid.data) };
  }

  say(text) {
    this.parts.busy.hidden = !text;
    this.parts.busy.textContent = text;
  }

  /** Show a new original beside what was decoded last. */
  showOriginal(media) {
    if (!this.size || this.size.t !== 1 || this.size.h !== media.h || this.size.w !== media.w || this.encoded) this.preview(media);
    this.media = media;
    this.draw();
  }

  /** Show frames whose tokens are not there yet. */
  preview(media) {
    const { t, h, w } = media;
    Object.assign(this, { media, size: { t, h, w }, grid: null, encoded: null, decoded: null, governed: null, box: null, history: [] });
    for (const name of ["psnr", "bits", "count", "distinct", "seconds"]) this.parts[name].textContent = "–";
    this.parts.gridText.textContent = "";
    this.#shape();
    this.draw();
  }

  /** Encode and decode a media; a newer call ends this one. */
  async open(media) {
    this.job += 1;
    this.preview(media);
    await this.#work(`Encoding with ${this.tokenizer.name}`, async (current) => {
      const { grid, seconds } = await this.tokenizer.encode(media);
      if (!current()) return;
      this.grid = this.encoded = grid;
      this.#shape();
      this.draw();
      this.say("Decoding");
      await this.#decode(current, seconds);
    });
  }

  /** Begin to take frames one by one, as they come; they are shown when their tokens are there, or all at the end. */
  startStream() {
    this.job += 1;
    this.streamed = { stream: this.tokenizer.stream(), job: this.job, grids: [], frames: [], seconds: 0 };
  }

  /** Take the next frame of a stream, or its end; return whether this pane goes on with it. */
  async push(frame, size, last) {
    const { streamed } = this;
    if (!streamed?.stream || streamed.job !== this.job) return false;
    const found = await streamed.stream.push(frame, size, last);
    if (streamed.job !== this.job) return false;
    streamed.seconds += found.seconds;
    if (found.grid) streamed.grids.push(found.grid);
    if (found.pixels) streamed.frames.push(found.pixels);
    if (found.grid && found.pixels && !last) this.#showNewest(found, size);
    return true;
  }

  /** Show the newest frames of a stream and their tokens. */
  #showNewest({ grid, pixels, t }, { h, w }) {
    const one = grid.h * grid.w;
    const fresh = !this.grid;
    this.grid = { ...grid, data: grid.data.slice(-one), t: 1 };
    this.decoded = { pixels: pixels.subarray((t - 1) * h * w * 3), t: 1, h, w };
    if (fresh) this.#shape();
    this.draw();
  }

  /** Show a whole video whose tokens came as a stream; encode it now where they did not. */
  async finish(media) {
    const { streamed } = this;
    if (!(await this.push(null, media, true))) return this.open(media);
    this.streamed = null;
    this.preview(media);
    const [{ h, w }] = streamed.grids;
    const data = Float64Array.from(streamed.grids.flatMap((grid) => [...grid.data]));
    this.grid = this.encoded = { data, t: data.length / (h * w), h, w };
    this.decoded = { ...joinFrames(streamed.frames, media), t: media.t };
    this.seconds = streamed.seconds;
    this.#shape();
    this.draw();
    this.#figures();
    this.say("");
    this.on.edited(this);
    return null;
  }

  /** Show ids without their original. */
  async openIds(grid, size) {
    Object.assign(this, { media: null, size, grid, encoded: grid, decoded: null, governed: null, box: null, history: [] });
    this.#shape();
    await this.#work("Decoding", (current) => this.#decode(current, null));
  }

  /** Replace the ids by edited ones and decode them. */
  async edit(grid, { record = true } = {}) {
    if (record) this.history = [...this.history.slice(-MOST_UNDONE), this.grid];
    this.grid = grid;
    this.governed = null;
    this.on.edited(this);
    this.draw();
    await this.#work("Decoding", (current) => this.#decode(current, null));
  }

  async undo() {
    const before = this.history.pop();
    if (before) await this.edit(before, { record: false });
  }

  /** Decode once more with another token in place of the selected one; what changes is what it governs. */
  async findGoverned() {
    if (this.selected === null || !this.decoded) return;
    const erased = erasedId(this.tokenizer.levels);
    const data = this.grid.data.slice();
    const place = (this.latent * this.grid.h + this.box.y0) * this.grid.w + this.box.x0;
    data[place] = data[place] === erased ? (erased + 1) % this.tokenizer.codebookSize : erased;
    await this.#work("Decoding without it", async (current) => {
      const { pixels } = await this.tokenizer.decode({ ...this.grid, data }, this.size);
      if (!current() || !this.decoded) return;
      const shown = frameOf(this.decoded.pixels, this.frame, this.size);
      this.governed = governedFrame(shown, frameOf(pixels, this.frame, this.size), this.size.w);
      this.draw();
      this.on.active(this);
    });
  }

  async #decode(current, encodeSeconds) {
    const { pixels, seconds } = await this.tokenizer.decode(this.grid, this.size);
    if (!current()) return;
    this.decoded = { pixels, ...this.size };
    this.seconds = encodeSeconds === null ? this.seconds : encodeSeconds + seconds;
    this.draw();
    this.#figures();
  }

  async #work(text, work) {
    const job = ++this.job;
    const current = () => job === this.job;
    this.say(text);
    this.root.setAttribute("aria-busy", "true");
    try {
      await work(current);
    } catch (error) {
      if (current()) this.on.fault(error);
    } finally {
      if (current()) {
        this.say("");
        this.root.removeAttribute("aria-busy");
        this.on.edited(this);
      }
    }
  }

  #shape() {
    const { h, w } = this.size;
    const { stage, tokenStage } = this.parts;
    stage.style.aspectRatio = `${w} / ${h}`;
    const [, sh, sw] = this.tokenizer.strides;
    const [gh, gw] = [Math.ceil(h / sh) * sh, Math.ceil(w / sw) * sw];
    tokenStage.style.aspectRatio = `${gw} / ${gh}`;
    for (const one of [stage, tokenStage]) one.style.maxWidth = `calc(78vh * ${(w / h).toFixed(4)})`;
    this.frame = Math.min(this.frame, this.size.t - 1);
  }

  #figures() {
    const { grid, size, decoded, media, tokenizer } = this;
    const bits = (grid.data.length * bitsPerToken(tokenizer.codebookSize)) / (size.t * size.h * size.w);
    const db = media && decoded ? psnr(media.pixels, decoded.pixels) : null;
    this.parts.psnr.textContent = db === null ? "–" : db === Infinity ? "equal" : `${db.toFixed(2)} dB`;
    this.parts.bits.textContent = bits.toFixed(3);
    this.parts.count.textContent = grid.data.length.toLocaleString("en");
    this.parts.distinct.textContent = new Set(grid.data).size.toLocaleString("en");
    this.parts.seconds.textContent = this.seconds === undefined || !media ? "–" : `${this.seconds.toFixed(2)} s`;
    this.parts.gridText.textContent = `${grid.t > 1 ? `${grid.t} x ` : ""}${grid.h} x ${grid.w}`;
  }

  /** Draw everything as it is. */
  draw() {
    if (!this.size) return;
    const { image, marks, map, slider, split, left, right } = this.parts;
    const { media, decoded, size, frame } = this;
    const original = media && frame < media.t ? frameOf(media.pixels, frame, size) : null;
    const made = decoded && frame < decoded.t ? frameOf(decoded.pixels, frame, size) : null;
    const mode = this.governed ? "governs" : original && made ? this.mode : made ? "tokens" : "original";
    const at = (Number(slider.value) / 1000) * size.w;
    const shown = original ?? made;
    if (!shown) paintFrames(image, size, new Uint8Array(size.h * size.w * 3), new Uint8Array(size.h * size.w * 3), 0);
    else if (mode === "compare") paintFrames(image, size, original, made, at);
    else if (mode === "error") paintFrames(image, size, shown, errorFrame(original, made), 0);
    else if (mode === "governs") paintFrames(image, size, shown, this.governed.frame, 0);
    else paintFrames(image, size, shown, mode === "tokens" ? made : original, 0);
    for (const one of [slider, split, left, right]) one.hidden = mode !== "compare";
    split.style.left = `${Number(slider.value) / 10}%`;
    slider.setAttribute("aria-valuetext", `${Math.round(Number(slider.value) / 10)} percent`);
    image.setAttribute("aria-label", `${MODES[mode] ?? "What the token governs"}: ${media?.name ?? "decoded from ids"}`);
    this.#drawTokens(marks, map);
  }

  #drawTokens(marks, map) {
    if (!this.grid) {
      map.getContext("2d").clearRect(0, 0, map.width, map.height);
      marks.getContext("2d").clearRect(0, 0, marks.width, marks.height);
      return;
    }
    const box = this.box && this.box.t0 === this.latent ? this.box : null;
    const same = box ? this.selected : null;
    paintMosaic(map, this.grid, this.latent, this.tokenizer, { by: this.by, decoded: this.decoded, same, box });
    paintMarks(marks, this.grid, this.latent, this.tokenizer, this.size, { same, box: this.governed ? null : box });
    const where = same === null ? "" : `; row ${box.y0 + 1}, column ${box.x0 + 1}: id ${same}`;
    map.setAttribute("aria-label", `${this.grid.h} rows of ${this.grid.w} tokens of ${this.tokenizer.name}${where}. Arrow keys walk, Shift selects a rectangle.`);
  }
}
