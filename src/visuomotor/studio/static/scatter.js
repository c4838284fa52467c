// The best coverage of each seed under both policies: above the diagonal B came closer.

import { ticks } from "./chart.js";
import { h, panel, s } from "./dom.js";
import { SUCCESS } from "./units.js";

const HEIGHT = 230;
const [LEFT, RIGHT, TOP, BOTTOM] = [44, 12, 8, 34];
const NEAR = 24; // pixels beside it at which a dot is still meant

export class Scatter {
  /** @param {(seed: number) => void} choose takes the seed of the dot that was pointed at */
  constructor(choose) {
    this.choose = choose;
    this.rows = [];
    this.drawing = s("svg", { role: "img", "aria-label": "Best coverage of each seed, A against B" });
    const chart = h("div", { class: "chart", onclick: (event) => this.point(event) }, this.drawing);
    this.element = panel("Best coverage", "solved: beyond the dashed lines", chart);
    this.element.classList.add("scatter");
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(chart);
  }

  show(rows, seed) {
    this.rows = rows;
    this.seed = seed;
    this.element.hidden = !rows.length;
    this.draw();
  }

  draw() {
    const width = this.drawing.parentElement.clientWidth;
    if (!width || !this.rows.length) return;
    const values = this.rows.flatMap(({ outcomes }) => outcomes.map((outcome) => outcome.max_coverage));
    const low = Math.min(0.9, Math.floor(Math.min(...values) * 20) / 20);
    const [wide, tall] = [width - LEFT - RIGHT, HEIGHT - TOP - BOTTOM];
    const x = (value) => LEFT + ((value - low) / (1 - low)) * wide;
    const y = (value) => TOP + tall - ((value - low) / (1 - low)) * tall;
    const line = (kind, x1, y1, x2, y2) => s("line", { class: kind, x1: x(x1), y1: y(y1), x2: x(x2), y2: y(y2) });
    const marks = ticks(low, 1, 4).flatMap((value) => [
      line("grid", low, value, 1, value),
      s("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, `${Math.round(100 * value)}`),
      s("text", { x: x(value), y: HEIGHT - 18, "text-anchor": "middle" }, `${Math.round(100 * value)}`),
    ]);
    const middle = LEFT + wide / 2;
    this.dots = this.rows.map(({ seed, kind, outcomes }) => {
      const [cx, cy] = [x(outcomes[0].max_coverage), y(outcomes[1].max_coverage)];
      const chosen = seed === this.seed;
      const about = { class: `seed ${kind}`, cx, cy, r: chosen ? 6 : 4, "data-seed": seed, "data-chosen": chosen };
      return { seed, cx, cy, dot: s("circle", about, s("title", {}, `seed ${seed}`)) };
    });
    const last = this.dots.toSorted((one, other) => (one.seed === this.seed) - (other.seed === this.seed));
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.drawing.setAttribute("height", HEIGHT);
    this.drawing.replaceChildren(...marks, line("diagonal", low, low, 1, 1),
      line("marker", SUCCESS, low, SUCCESS, 1), line("marker", low, SUCCESS, 1, SUCCESS),
      s("text", { x: middle, y: HEIGHT - 3, "text-anchor": "middle" }, "A, %"),
      s("text", { x: 4, y: TOP + tall / 2, "text-anchor": "start" }, "B"),
      ...last.map((one) => one.dot));
  }

  /** Chooses the dot nearest to the pointer, if one is near. */
  point(event) {
    const box = this.drawing.getBoundingClientRect();
    const away = ({ cx, cy }) => Math.hypot(event.clientX - box.left - cx, event.clientY - box.top - cy);
    const nearest = this.dots.reduce((one, other) => (away(other) < away(one) ? other : one));
    if (away(nearest) <= NEAR) this.choose(nearest.seed);
  }

  close() {
    this.watcher.disconnect();
  }
}
