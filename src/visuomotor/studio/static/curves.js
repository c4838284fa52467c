// Coverage over time, and how long the plans took.

import { Chart } from "./chart.js";
import { h } from "./dom.js";
import { FPS, SUCCESS, percent } from "./units.js";

export class Curves {
  constructor() {
    this.coverage = new Chart("Coverage of the goal over time", { x: "s", low: 0, high: 1 });
    this.latency = new Chart("Time that each plan took", { x: "s", low: 0 });
    this.now = h("span", { class: "aside" });
    this.median = h("span", { class: "aside" });
    this.element = h("div", { class: "two" },
      h("section", { class: "card" }, h("h2", {}, "Coverage", this.now), this.coverage.element),
      h("section", { class: "card" }, h("h2", {}, "Planning", this.median), this.latency.element));
    this.begin();
  }

  begin() {
    this.lines = [];
    this.taken = [];
    this.now.textContent = this.median.textContent = "";
    this.draw();
  }

  frame({ episodes }) {
    episodes.forEach((episode, index) => {
      const line = (this.lines[index] ??= []);
      const point = [episode.steps / FPS, episode.coverage];
      if (line.length && line.at(-1)[0] === point[0]) line[line.length - 1] = point; // a hand has moved something
      else line.push(point);
    });
    const alone = episodes.length === 1;
    this.now.textContent = alone ? percent(episodes[0].coverage) : `${episodes.length} episodes`;
    this.draw();
  }

  plan(plan) {
    this.taken.push([plan.step / FPS, 1000 * plan.seconds]);
    const sorted = this.taken.map(([, time]) => time).sort((a, b) => a - b);
    this.median.textContent = `median ${sorted[Math.floor(sorted.length / 2)].toFixed(0)} ms`;
  }

  draw() {
    const kind = this.lines.length > 1 ? "many" : "line";
    const end = Math.max(10, ...this.lines.map((line) => line.at(-1)[0]));
    this.coverage.show({ lines: this.lines.map((points) => ({ points, kind })), levels: [SUCCESS], end });
    this.latency.show({ lines: [{ points: this.taken, kind: "dots" }], end });
  }

  close() {
    this.coverage.close();
    this.latency.close();
  }
}
