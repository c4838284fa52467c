// One seed under both policies, in step: one slider, one button, two scenes, and coverage over time.

import { Chart } from "./chart.js";
import { choice, h, panel } from "./dom.js";
import { Side } from "./side.js";
import { FPS, SUCCESS, percent } from "./units.js";

const SPEEDS = [[0.5, "½ ×"], [1, "real time"], [2, "2 ×"], [4, "4 ×"]];
const PATIENCE = 300; // milliseconds: who only passes by a seed has nothing rolled out

export class Pair {
  constructor() {
    this.step = 0;
    this.length = 1;
    this.speed = 1;
    this.sides = ["A", "B"].map((letter) => new Side(letter, () => this.changed()));
    const range = { type: "range", min: 0, max: 1, step: 1, value: 0, "aria-label": "Step" };
    this.slider = h("input", { ...range, oninput: () => this.seek(Number(this.slider.value)) });
    this.button = h("button", { type: "button", class: "main", title: "Space", onclick: () => this.toggle() }, "Play");
    const speed = choice(SPEEDS, this.speed, (value) => this.pace(Number(value)));
    speed.setAttribute("aria-label", "Speed");
    this.said = h("span", {});
    this.covered = [h("span", { class: "key line" }), h("span", { class: "key second" })];
    this.title = document.createTextNode("");
    this.chart = new Chart("Coverage over time, A and B", { height: 112, x: "s", low: 0, high: 1 });
    this.chart.element.addEventListener("pointerdown", (event) => this.seek(Math.round(this.chart.at(event) * FPS)));
    this.hint = h("p", { class: "soft hint-of-pair" });
    this.content = h("div", { class: "in-step" },
      h("div", { class: "two-sides" }, this.sides.map((side) => side.element)),
      h("div", { class: "row" }, this.button, speed, this.slider),
      h("h2", {}, "Coverage", h("span", { class: "aside" }, this.said, this.covered)),
      this.chart.element);
    this.element = panel("In step", this.title, this.hint, this.content);
    this.element.classList.add("pair");
  }

  /** @param {object[]} reports A and B; @param {number[]} numbers theirs in the studio's list */
  choose(reports, numbers) {
    this.sides.forEach((side, index) => side.choose(reports[index], numbers[index]));
  }

  /** Shows a row of `matched`; null shows none of so many. */
  show(row, many) {
    this.stop();
    clearTimeout(this.timer);
    for (const side of this.sides) side.leave();
    this.row = row;
    this.content.hidden = !row;
    this.hint.hidden = Boolean(row);
    this.title.data = row ? `seed ${row.seed}` : "";
    this.hint.textContent = many
      ? "Choose a seed, among the squares or the dots: its two episodes are then played side by side."
      : "Without a seed that both have, there is no pair to be played.";
    if (!row) return;
    this.sides.forEach((side, index) => side.show(row.outcomes[index]));
    this.timer = setTimeout(() => this.sides.forEach((side) => side.fetch()), PATIENCE);
    this.changed();
    this.go(0);
  }

  /** Another length or curve is known. */
  changed() {
    this.length = Math.max(...this.sides.map((side) => side.steps));
    this.slider.max = this.length;
    if (!this.playing) this.go(Math.min(this.step, this.length));
    else this.draw();
  }

  /** Goes to a step by hand; from there it plays on, if it played. */
  seek(step) {
    const playing = this.playing;
    this.stop();
    this.go(step);
    if (playing) this.play();
  }

  go(step) {
    this.step = Math.max(0, Math.min(step, this.length));
    this.slider.value = this.step;
    this.said.textContent = `step ${this.step} of ${this.length} · ${(this.step / FPS).toFixed(1)} s`;
    this.sides.forEach((side, index) => {
      const share = side.coverage(this.step);
      this.covered[index].textContent = "AB"[index] + (share == null ? "" : ` ${percent(share)}`);
      side.at(this.step);
    });
    this.draw();
  }

  draw() {
    const lines = this.sides.map((side, index) => ({ points: side.curve, kind: ["line", "second"][index] }));
    this.chart.show({ lines, levels: [SUCCESS], cursor: this.step / FPS, end: this.length / FPS });
  }

  toggle() {
    if (this.playing) this.stop();
    else this.play();
  }

  play() {
    if (this.step >= this.length) this.go(0);
    this.playing = { from: this.step, began: performance.now() };
    this.button.textContent = "Pause";
    for (const side of this.sides) side.play(this.speed);
    this.next(this.playing);
  }

  /** The step that the clock has come to; both sides follow it. */
  next(run) {
    requestAnimationFrame((now) => {
      if (this.playing !== run) return;
      const step = run.from + Math.floor((Math.max(0, now - run.began) / 1000) * FPS * this.speed);
      if (step !== this.step) this.go(step);
      if (this.step < this.length) this.next(run);
      else this.stop();
    });
  }

  stop() {
    if (!this.playing) return;
    this.playing = null;
    this.button.textContent = "Play";
    for (const side of this.sides) side.pause();
    this.go(this.step);
  }

  pace(speed) {
    const playing = this.playing;
    this.stop();
    this.speed = speed;
    if (playing) this.play();
  }

  /** Space plays and pauses; in fields and on buttons it is theirs. */
  pressed(event) {
    const meant = event.ctrlKey || event.metaKey || event.altKey
      || event.target.closest("select, button, a, summary, input:not([type=range])");
    if (event.key !== " " || meant || !this.row) return;
    event.preventDefault();
    this.toggle();
  }

  close() {
    this.playing = null;
    clearTimeout(this.timer);
    for (const side of this.sides) side.close();
    this.chart.close();
  }
}
