// The window that a training example sees at a frame: which frames are observed, which actions are to be predicted.

import { h, panel, s } from "./dom.js";

const CELL = 18;
const LABEL = 92;

export class Window {
  constructor() {
    this.said = document.createTextNode("");
    this.drawing = s("svg", { role: "img", "aria-label": "Frames of the window" });
    this.frames = h("div", { class: "frames" });
    const key = h("p", { class: "soft keys" }, h("span", { class: "cell" }, "a frame of the episode"),
      h("span", { class: "cell padding" }, "stands in for one beyond its ends"));
    this.element = panel("Training window", this.said, h("div", { class: "steps" }, this.drawing), key, this.frames);
  }

  /** @param {{observed: object, predicted: object, trained: boolean}} found as the studio tells it */
  show(found, frame, player) {
    this.said.data = found.trained ? "an example of training" : "no example: too near the end";
    this.element.dataset.trained = found.trained;
    const rows = [["observations", found.observed], ["actions", found.predicted]];
    const steps = rows.flatMap(([, row]) => row.steps);
    const first = Math.min(...steps);
    const left = (step) => LABEL + (step - first) * CELL;
    const size = { width: CELL - 3, height: CELL - 3, rx: 3 };
    const cells = rows.flatMap(([name, row], line) => [
      s("text", { x: 0, y: line * (CELL + 6) + CELL - 4 }, name),
      ...row.steps.map((step, index) => {
        const [kind, words] = row.padding[index] ? ["cell padding", ", in place of a missing one"] : ["cell", ""];
        return s("rect", { class: kind, x: left(step), y: line * (CELL + 6) + 1, ...size },
          s("title", {}, `step ${step}: frame ${row.frames[index]}${words}`));
      }),
    ]);
    const width = LABEL + (Math.max(...steps) - first + 1) * CELL;
    const height = 2 * (CELL + 6) + 16;
    const apart = (step) => step === 0 || Math.abs(step) > 2; // or their numbers would touch
    const marks = [...new Set([first, 0, Math.max(...steps)])].filter(apart).map((step) =>
      s("text", { x: left(step) + CELL / 2, y: height - 3, "text-anchor": "middle" }, step === 0 ? "now" : step));
    this.drawing.setAttribute("viewBox", `0 0 ${width + 10} ${height}`);
    this.drawing.setAttribute("width", width + 10);
    this.drawing.replaceChildren(...cells, ...marks);
    this.pictures(found.observed, player, frame);
  }

  /** The observed frames of the first camera. */
  pictures(observed, player, frame) {
    const [camera] = player.cameras;
    const shown = camera ? observed.frames.slice(-4) : [];
    if (this.frames.children.length !== shown.length) {
      const canvas = () => h("canvas", { role: "img", "aria-label": "An observed frame" });
      this.frames.replaceChildren(...shown.map(() => h("figure", {}, canvas(), h("figcaption", {}))));
    }
    shown.forEach((number, index) => {
      const [canvas, caption] = this.frames.children[index].children;
      caption.textContent = `frame ${number}`;
      player.draw(canvas, camera.name, number, () => (player.frame === frame ? number : null));
    });
  }
}
