// State and action over an episode, a small chart for each number; they are scrubbed like the frames.

import { Chart } from "./chart.js";
import { h, panel } from "./dom.js";

const MOST = 12; // dimensions with a chart of their own; of more, all are in one

export class Plots {
  /** @param {(frame: number) => void} go takes the frame that was pointed at */
  constructor(go) {
    this.go = go;
    this.charts = [];
    this.frame = 0;
    this.bands = [];
    this.element = h("div", { class: "plots" });
  }

  show(series, fps) {
    this.close();
    this.fps = fps;
    this.bands = [];
    this.charts = together(series).map((group) => this.chart(group));
    this.element.replaceChildren(...this.charts.map((chart) => chart.card));
  }

  chart({ title, lines }) {
    const chart = new Chart(title, { height: 130, x: "s" });
    const key = lines.filter((line) => line.name).map((line) => h("span", { class: `key ${line.kind}` }, line.name));
    const points = (values) => values.map((value, frame) => [frame / this.fps, value ?? NaN]);
    chart.lines = lines.map(({ values, kind }) => ({ points: points(values), kind }));
    chart.end = (Math.max(...lines.map((line) => line.values.length)) - 1) / this.fps;
    chart.card = panel(title, "", chart.element);
    chart.card.classList.add("plot");
    chart.card.querySelector(".aside").append(...key);
    const point = (event) => this.go(Math.round(chart.at(event) * this.fps));
    chart.element.addEventListener("pointerdown", (event) => {
      chart.element.setPointerCapture(event.pointerId);
      point(event);
    });
    chart.element.addEventListener("pointermove", (event) => event.buttons && point(event));
    return chart;
  }

  at(frame) {
    this.frame = frame;
    this.draw();
  }

  /** Marks what a training example at the frame sees. */
  window(found) {
    const at = (frame) => frame / this.fps;
    const span = ({ frames }, kind) => ({ from: at(Math.min(...frames)), to: at(Math.max(...frames)), kind });
    this.bands = [span(found.predicted, "predicted"), span(found.observed, "observed")];
    this.draw();
  }

  draw() {
    const cursor = this.frame / this.fps;
    for (const chart of this.charts) chart.show({ lines: chart.lines, cursor, bands: this.bands, end: chart.end });
  }

  close() {
    for (const chart of this.charts) chart.close();
  }
}

/** State and action of the same size beside each other, dimension by dimension; of other features all in one chart. */
function together(series) {
  const action = series.find((feature) => feature.name === "action");
  const state = series.find((feature) => feature.name === "observation.state");
  const groups = [];
  const paired = action && state && action.values.length === state.values.length && action.values.length <= MOST;
  if (paired) {
    state.names.forEach((name, index) => {
      const lines = [
        { name: "state", values: state.values[index], kind: "line" },
        { name: "action", values: action.values[index], kind: "second" },
      ];
      groups.push({ title: name === String(index) ? `dimension ${index}` : name, lines });
    });
  }
  for (const feature of series) {
    if (paired && (feature === action || feature === state)) continue;
    const kind = feature.values.length > 1 ? "many" : "line";
    groups.push({ title: feature.name, lines: feature.values.map((values) => ({ values, kind })) });
  }
  return groups;
}
