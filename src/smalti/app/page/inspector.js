// The selected token: its id, its digits, its places, and what it governs.
import { digitsOf, fill, idOf } from "./ids.js";

const element = (id) => document.getElementById(id);
const MOST_SLIDERS = 32; // digits that are shown

export class Inspector {
  constructor(page) {
    this.page = page;
    this.levels = null;
    element("governs").onclick = () => {
      const pane = page.active;
      if (pane.governed) {
        pane.governed = null;
        pane.draw();
        page.refresh();
      } else page.run(() => pane.findGoverned());
    };
  }

  /** Show what the active pane has selected. */
  show() {
    const pane = this.page.active;
    const id = pane?.selected ?? null;
    element("token").hidden = id === null;
    element("token-none").hidden = id !== null;
    const box = pane?.grid ? pane.box : null;
    const count = box ? (box.y1 - box.y0 + 1) * (box.x1 - box.x0 + 1) : 0;
    element("selection").textContent = !box ? "Applies to all tokens until some are selected."
      : count === 1 ? "Applies to the selected token." : `Applies to the ${count} selected tokens.`;
    if (id === null) {
      element("governs").setAttribute("aria-pressed", "false");
      return;
    }
    const { levels } = pane.tokenizer;
    const size = pane.tokenizer.codebookSize.toLocaleString("en");
    element("token-id").replaceChildren(id.toLocaleString("en"), Object.assign(document.createElement("small"), { textContent: `of ${size}` }));
    element("token-where").textContent = this.#where(pane, id, box);
    this.#fillDigits(levels);
    digitsOf(id, levels).slice(0, MOST_SLIDERS).forEach((digit, j) => {
      const [input, output] = this.rows[j];
      if (document.activeElement !== input || Number(input.value) !== digit) input.value = digit;
      output.textContent = `${digit} / ${levels[j] - 1}`;
    });
    element("governs").setAttribute("aria-pressed", String(Boolean(pane.governed)));
  }

  #where(pane, id, box) {
    const { here, all } = pane.placesOf(id);
    const frame = pane.grid.t > 1 ? `latent frame ${pane.latent}, ` : "";
    const times = here === 1 ? "only here" : `at ${here} places`;
    const others = pane.grid.t > 1 && all > here ? ` (${all} in the clip)` : "";
    const where = `${frame}row ${box.y0 + 1}, column ${box.x0 + 1}; ${times}${others}.`;
    if (!pane.governed) return where;
    const { pixels, x0, x1, y0, y1 } = pane.governed.found;
    return pixels ? `${where} It moves ${pixels.toLocaleString("en")} pixels, within ${x1 - x0 + 1} x ${y1 - y0 + 1}.` : `${where} It moves no pixel of this frame.`;
  }

  #fillDigits(levels) {
    if (this.levels === levels) return;
    this.levels = levels;
    this.rows = levels.slice(0, MOST_SLIDERS).map((level, j) => {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "range", min: 0, max: level - 1, step: 1 });
      const output = document.createElement("output");
      input.oninput = () => this.page.run(() => this.#change(j, Number(input.value)));
      label.append(`digit ${j}`, input, output);
      return [input, output, label];
    });
    element("digits").replaceChildren(...this.rows.map((row) => row[2]));
  }

  /** Give the selected token another digit, and decode. */
  async #change(j, digit) {
    const pane = this.page.active;
    if (pane.selected === null) return;
    const { levels } = pane.tokenizer;
    const digits = digitsOf(pane.selected, levels);
    if (digits[j] === digit) return;
    digits[j] = digit;
    await pane.edit(fill(pane.grid, pane.box, idOf(digits, levels)));
  }
}
