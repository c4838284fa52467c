// Lines over time as SVG; colours are classes of the page, so that they follow its theme.

import { h, s } from "./dom.js";

const LEFT = 40;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 24;

/** About `count` round numbers between two. */
export function ticks(low, high, count = 4) {
  const span = high - low || 1;
  let step = 10 ** Math.floor(Math.log10(span / count));
  step *= [1, 2, 5, 10].find((factor) => span / (step * factor) <= count + 1);
  const first = Math.ceil(low / step - 1e-9);
  const many = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: Math.max(many, 1) }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

export class Chart {
  /**
   * @param {string} label what it shows, for those who do not see it
   * @param {{height?: number, x?: string, low?: number, high?: number, label?: (value: number) => string}} settings its
   *   height, what stands below its axis, what the vertical axis reaches in any case, and how its numbers are written
   */
  constructor(label, settings = {}) {
    this.settings = { height: 150, x: "", label: short, ...settings };
    this.drawing = s("svg", { role: "img", "aria-label": label });
    this.element = h("div", { class: "chart" }, this.drawing);
    this.content = { lines: [] };
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(this.element);
  }

  /**
   * @param {{lines: {points: number[][], kind: string}[], levels?: number[], cursor?: number, bands?: object[],
   *   end?: number}} content lines of (x, y); horizontal levels; where the cursor is; bands {from, to, kind}; the least
   *   end of the horizontal axis
   */
  show(content) {
    this.content = content;
    this.draw();
  }

  /** The x that lies under a pointer. */
  at(event) {
    const box = this.drawing.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / (this.width - LEFT - RIGHT);
    return this.ends[0] + Math.min(1, Math.max(0, share)) * (this.ends[1] - this.ends[0]);
  }

  draw() {
    this.width = this.element.clientWidth;
    if (!this.width) return;
    const { height } = this.settings;
    const { lines, levels = [], bands = [], cursor, begin = 0, end = 1 } = this.content;
    const points = lines.flatMap((line) => line.points).filter(([, y]) => Number.isFinite(y));
    this.ends = [begin, Math.max(end, ...points.map(([x]) => x))];
    const ys = points.map(([, y]) => y);
    const { low: least = Infinity, high: most = -Infinity } = this.settings;
    const rows = ticks(Math.min(least, ...ys, ...levels), Math.max(most, ...ys, ...levels), 3);
    const low = Math.min(rows[0], ...ys, ...levels);
    const high = Math.max(rows.at(-1), ...ys, ...levels);
    const [wide, tall] = [this.width - LEFT - RIGHT, height - TOP - BOTTOM];
    const [begins, ends] = this.ends;
    const x = (value) => LEFT + ((value - begins) / (ends - begins || 1)) * wide;
    const y = (value) => TOP + tall - ((value - low) / (high - low || 1)) * tall;
    const across = (kind, value) => s("line", { class: kind, x1: LEFT, x2: LEFT + wide, y1: y(value), y2: y(value) });
    const parts = [];
    for (const { from, to, kind } of bands) {
      const width = Math.max(x(to) - x(from), 0);
      parts.push(s("rect", { class: `band ${kind}`, x: x(from), y: TOP, width, height: tall }));
    }
    for (const value of rows) {
      const beside = { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" };
      parts.push(across("grid", value), s("text", beside, this.settings.label(value)));
    }
    const below = ticks(...this.ends, Math.max(2, Math.floor(this.width / 90)));
    for (const value of below) {
      const unit = value === below.at(-1) && this.settings.x ? ` ${this.settings.x}` : "";
      const anchor = unit ? "end" : "middle";
      parts.push(s("text", { x: x(value), y: height - 6, "text-anchor": anchor }, `${short(value)}${unit}`));
    }
    for (const level of levels) parts.push(across("marker", level));
    for (const { points: line, kind } of lines) {
      if (kind === "dots") {
        parts.push(...line.map(([u, v]) => s("circle", { class: kind, cx: x(u), cy: y(v), r: 2.5 })));
      } else {
        const place = ([u, v]) => `${x(u).toFixed(1)},${y(v).toFixed(1)}`;
        const d = stretches(line).map((stretch) => `M${stretch.map(place).join("L")}`).join("");
        parts.push(s("path", { class: kind, d }));
      }
    }
    if (cursor != null) {
      parts.push(s("line", { class: "cursor", x1: x(cursor), x2: x(cursor), y1: TOP, y2: TOP + tall }));
    }
    this.drawing.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.drawing.setAttribute("height", height);
    this.drawing.replaceChildren(...parts);
  }

  close() {
    this.watcher.disconnect();
  }
}

/** The parts of a line between the points that are no numbers. */
function stretches(line) {
  const parts = [[]];
  for (const point of line) {
    if (Number.isFinite(point[1])) parts.at(-1).push(point);
    else if (parts.at(-1).length) parts.push([]);
  }
  return parts.filter((part) => part.length);
}

function short(value) {
  if (Math.abs(value) >= 10000) return `${Number((value / 1000).toPrecision(4))}k`;
  return String(Number(value.toPrecision(4)));
}
