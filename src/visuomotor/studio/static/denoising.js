// How a plan came about: noise at the first step, actions at the last. Follows the rollout until it is scrubbed.

import { h, panel } from "./dom.js";
import { paintNoisy } from "./plan.js";
import { Scene, paintTable } from "./scene.js";

const SPAN = [-104, 616]; // noise reaches beyond the table
const FEW = 6; // small pictures
const EVERY = 160; // milliseconds from step to step when it is played

export class Denoising {
  constructor() {
    this.shown = null; // the plan whose steps are looked at
    this.latest = null;
    this.at = 0;
    this.following = true;
    const paint = (pen, colours) => this.paint(pen, colours, this.at, this.scene);
    this.scene = new Scene("The plan at the chosen step of its denoising", paint, SPAN);
    const range = { type: "range", min: 0, max: 1, step: 1, value: 1, "aria-label": "Denoising step" };
    this.slider = h("input", { ...range, oninput: () => this.scrub(Number(this.slider.value)) });
    this.player = h("button", { type: "button", onclick: () => this.play() }, "Play");
    this.back = h("button", { type: "button", class: "quiet", onclick: () => this.follow() }, "Follow");
    this.said = h("p", { class: "soft" });
    this.aside = document.createTextNode("");
    this.small = h("div", { class: "multiples" });
    this.pictures = [];
    this.element = panel("Denoising", this.aside,
      h("div", { class: "denoising" }, this.scene.element,
        h("div", { class: "process" }, this.said, this.slider,
          h("div", { class: "row" }, this.player, this.back), this.small)));
    this.show();
  }

  begin() {
    this.stop();
    this.following = true;
    this.shown = this.latest = null;
    this.show();
  }

  plan(plan) {
    this.latest = plan;
    if (this.following) this.take(plan);
    else this.show();
  }

  take(plan) {
    this.shown = plan;
    this.at = plan.steps.length;
    this.show();
  }

  follow() {
    this.stop();
    this.following = true;
    if (this.latest) this.take(this.latest);
  }

  scrub(at) {
    this.stop();
    this.following = false;
    this.at = at;
    this.show();
  }

  play() {
    if (!this.shown) return;
    if (this.timer) return this.stop();
    this.following = false;
    if (this.at >= this.shown.steps.length) this.at = 0;
    this.timer = setInterval(() => {
      this.at += 1;
      if (this.at >= this.shown.steps.length) this.stop();
      this.show();
    }, Math.max(EVERY / Math.max(this.shown.steps.length / 20, 1), 40));
    this.show();
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.player.textContent = "Play";
  }

  show() {
    const { shown } = this;
    const count = shown ? shown.steps.length : 1;
    this.element.dataset.at = this.at;
    this.slider.max = count;
    this.slider.value = shown ? this.at : count;
    this.slider.disabled = this.player.disabled = !shown;
    this.player.textContent = this.timer ? "Stop" : "Play";
    this.back.hidden = this.following;
    this.aside.data = shown ? `plan of step ${shown.step}${this.following ? "" : ", held"}` : "";
    this.said.textContent = !shown
      ? "The first plan comes with the first step."
      : this.at < count
        ? `Before step ${this.at + 1} of ${count}, noise level t = ${Number(shown.steps[this.at].toFixed(1))}`
        : `After ${count} step${count === 1 ? "" : "s"}: the plan`;
    this.scene.draw();
    this.multiples(count);
  }

  /** Small pictures from noise to plan, evenly spaced. */
  multiples(count) {
    const few = Math.min(FEW, count + 1);
    if (this.pictures.length !== few) {
      for (const picture of this.pictures) picture.scene.close();
      this.pictures = Array.from({ length: few }, (_, index) => this.picture(index));
      this.small.replaceChildren(...this.pictures.map((picture) => picture.element));
    }
    this.pictures.forEach((picture, index) => {
      picture.at = few > 1 ? Math.round((index * count) / (few - 1)) : count;
      picture.element.setAttribute("aria-current", this.shown != null && picture.at === this.at);
      picture.element.disabled = !this.shown;
      picture.scene.draw();
    });
  }

  picture(index) {
    const picture = { at: index };
    picture.scene = new Scene("", (pen, colours) => this.paint(pen, colours, picture.at, picture.scene), SPAN);
    const properties = { type: "button", title: "Look at this step", onclick: () => this.scrub(picture.at) };
    picture.element = h("button", properties, picture.scene.element);
    return picture;
  }

  paint(pen, colours, at, scene) {
    paintTable(pen, colours, this.shown?.state);
    if (!this.shown) return;
    const { scale } = scene;
    const small = scene === this.scene ? scale : scale * 0.7;
    if (scene === this.scene && at < this.shown.steps.length) {
      pen.globalAlpha = 0.5;
      this.shown.clean[at].slice(this.shown.now).forEach(([x, y]) => {
        pen.strokeStyle = colours.ink;
        pen.lineWidth = scale;
        pen.strokeRect(x - 2 * scale, y - 2 * scale, 4 * scale, 4 * scale);
      });
      pen.globalAlpha = 1;
    }
    paintNoisy(pen, colours, this.shown.noisy[at], this.shown.now, small);
  }

  close() {
    this.stop();
    this.scene.close();
    for (const picture of this.pictures) picture.scene.close();
  }
}
