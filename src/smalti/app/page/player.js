// The clip's time line: play, pause, step.
const element = (id) => document.getElementById(id);

export class Player {
  constructor(page) {
    this.page = page;
    this.timer = null;
    this.media = null;
    element("time").oninput = () => this.at(Number(element("time").value));
    element("play").onclick = () => this.toggle();
  }

  /** Show the time line of a clip; hide it for an image. */
  show(media) {
    this.pause();
    this.media = media;
    element("player").hidden = media.t < 2;
    element("time").max = media.t - 1;
    this.at(0);
  }

  at(wanted) {
    const frame = Math.min(Math.max(0, wanted), this.media.t - 1);
    element("time").value = frame;
    this.page.showFrame(frame);
    const latent = this.page.active?.latent ?? 0;
    element("time-text").textContent = `frame ${frame + 1} of ${this.media.t}, latent ${latent}`;
  }

  toggle() {
    if (this.timer) this.pause();
    else if (this.media?.t > 1) this.play();
  }

  play() {
    const step = () => this.at((Number(element("time").value) + 1) % this.media.t);
    this.timer = setInterval(step, 1000 / (this.media.fps ?? 12));
    element("play").textContent = "❚❚";
    element("play").setAttribute("aria-label", "Pause");
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    element("play").textContent = "▶";
    element("play").setAttribute("aria-label", "Play");
  }
}
