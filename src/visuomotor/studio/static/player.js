// An episode's frames, scrubbed or played.

import { h } from "./dom.js";
import { drawFrame, fetchFrame } from "./strips.js";

export class Player {
  /**
   * @param {(frame: number) => void} look takes the frame that is looked at
   * @param {(error: Error) => void} trouble takes what went wrong
   */
  constructor(look, trouble) {
    this.look = look;
    this.trouble = trouble;
    this.frame = 0;
    this.length = 1;
    this.cameras = [];
    this.pictures = h("div", { class: "pictures" });
    const range = { type: "range", min: 0, step: 1, value: 0, "aria-label": "Frame" };
    this.slider = h("input", { ...range, oninput: () => this.go(Number(this.slider.value)) });
    this.button = h("button", { type: "button", onclick: () => this.play() }, "Play");
    this.said = h("p", { class: "said" });
    this.element = h("section", { class: "card player", "aria-label": "Frames" },
      this.pictures, this.slider, h("div", { class: "row" }, this.button, this.said));
  }

  show(source, episode, overview, frame) {
    this.stop();
    Object.assign(this, { source, episode, fps: overview.fps, length: overview.episodes[episode].length });
    this.tasks = overview.episodes[episode].tasks.join("; ");
    if (this.cameras.map((camera) => camera.name).join() !== overview.cameras.join()) {
      const canvas = (name) => h("canvas", { role: "img", "aria-label": name });
      this.cameras = overview.cameras.map((name) => ({ name, canvas: canvas(name) }));
      const figures = this.cameras.map((camera) => h("figure", {}, camera.canvas, h("figcaption", {}, camera.name)));
      this.pictures.replaceChildren(...figures);
    }
    this.pictures.hidden = !this.cameras.length;
    this.slider.max = this.length - 1;
    this.go(Math.min(frame, this.length - 1));
  }

  go(frame) {
    this.frame = Math.max(0, Math.min(Math.round(frame), this.length - 1));
    this.slider.value = this.frame;
    const seconds = (this.frame / this.fps).toFixed(2);
    this.said.textContent = `frame ${this.frame} of ${this.length} · ${seconds} s · ${this.tasks}`;
    this.said.title = this.tasks;
    this.look(this.frame);
    const wanted = () => this.frame;
    return Promise.all(this.cameras.map(({ canvas, name }) => this.draw(canvas, name, this.frame, wanted)));
  }

  /** Draws a frame into a canvas, unless another is wanted by the time it is there. */
  async draw(canvas, camera, frame, wanted = () => frame) {
    const { source, episode } = this;
    try {
      const found = await fetchFrame(source, episode, camera, frame, this.length);
      if (this.source !== source || this.episode !== episode || wanted() !== frame) return;
      drawFrame(canvas, found);
      canvas.dataset.frame = frame;
    } catch (error) {
      this.stop();
      this.trouble(error);
    }
  }

  play() {
    if (this.playing) return this.stop();
    if (this.frame >= this.length - 1) this.frame = 0;
    this.playing = true;
    this.button.textContent = "Pause";
    this.next();
  }

  /** The next frame when its time has come and the one before is drawn. */
  async next() {
    const due = new Promise((resolve) => setTimeout(resolve, 1000 / this.fps));
    await Promise.all([due, this.go(this.frame + 1)]);
    if (!this.playing) return;
    if (this.frame < this.length - 1) this.next();
    else this.stop();
  }

  stop() {
    this.playing = false;
    this.button.textContent = "Play";
  }

  close() {
    this.stop();
    this.source = null;
  }
}
