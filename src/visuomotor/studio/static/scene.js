// A canvas that shows a part of the table, crisp at any size, in the colours of the page.

import { GOAL, RADIUS, SIZE, WALLS, outline } from "./geometry.js";
import { h } from "./dom.js";

const NAMES = ["card", "table", "wall", "goal", "block", "agent", "accent", "soft", "line", "ink", "good"];
const dark = matchMedia("(prefers-color-scheme: dark)");

/** The colours of the page as they are now. */
export function palette() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

export class Scene {
  /**
   * @param {string} label what it shows, for those who do not see it
   * @param {(pen: CanvasRenderingContext2D, colours: object) => void} paint draws, in pixels of the table
   * @param {[number, number]} span the first and last coordinate that is seen, on both axes
   */
  constructor(label, paint, span = [0, SIZE]) {
    this.element = h("canvas", { class: "scene", role: "img", "aria-label": label });
    this.paint = paint;
    this.span = span;
    this.repaint = () => this.draw();
    this.watcher = new ResizeObserver(this.repaint);
    this.watcher.observe(this.element);
    dark.addEventListener("change", this.repaint);
  }

  /** Pixels of the table to one of the screen. */
  get scale() {
    return (this.span[1] - this.span[0]) / Math.max(this.element.clientWidth, 1);
  }

  /** Where a pointer is on the table. */
  place(event) {
    const box = this.element.getBoundingClientRect();
    const on = (pixels) => this.span[0] + pixels * this.scale;
    return [on(event.clientX - box.left), on(event.clientY - box.top)];
  }

  draw() {
    const size = this.element.clientWidth;
    if (!size) return;
    const pixels = Math.round(size * devicePixelRatio);
    if (this.element.width !== pixels) this.element.width = pixels;
    if (this.element.height !== pixels) this.element.height = pixels;
    const pen = this.element.getContext("2d");
    const [first, wide] = [this.span[0], this.span[1] - this.span[0]];
    const zoom = pixels / wide;
    pen.setTransform(zoom, 0, 0, zoom, -first * zoom, -first * zoom);
    pen.lineJoin = pen.lineCap = "round";
    const colours = palette();
    pen.fillStyle = colours.card;
    pen.fillRect(first, first, wide, wide);
    this.paint(pen, colours);
  }

  close() {
    this.watcher.disconnect();
    dark.removeEventListener("change", this.repaint);
  }
}

/** The table with the goal, the T and the agent. `held` is what a hand has. */
export function paintTable(pen, colours, state, held = null) {
  pen.fillStyle = colours.table;
  pen.fillRect(0, 0, SIZE, SIZE);
  pen.strokeStyle = colours.wall;
  pen.lineWidth = 4;
  pen.strokeRect(WALLS[0], WALLS[0], WALLS[1] - WALLS[0], WALLS[1] - WALLS[0]);
  fill(pen, outline(GOAL), colours.goal);
  if (!state) return;
  fill(pen, outline(state.slice(2)), colours.block);
  if (held === "block") stroke(pen, [...outline(state.slice(2)), outline(state.slice(2))[0]], colours.accent, 3);
  dot(pen, state, RADIUS, colours.agent);
  if (held === "agent") ring(pen, state, RADIUS + 5, colours.accent, 3);
}

export function fill(pen, points, colour) {
  pen.beginPath();
  points.forEach(([x, y]) => pen.lineTo(x, y));
  pen.closePath();
  pen.fillStyle = colour;
  pen.fill();
}

export function stroke(pen, points, colour, width, dash = []) {
  pen.beginPath();
  points.forEach(([x, y]) => pen.lineTo(x, y));
  pen.setLineDash(dash);
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.stroke();
  pen.setLineDash([]);
}

export function dot(pen, [x, y], radius, colour) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = colour;
  pen.fill();
}

export function ring(pen, [x, y], radius, colour, width) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.stroke();
}
