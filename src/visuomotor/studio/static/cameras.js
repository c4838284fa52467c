// What an image policy was given: both observed frames, what the crop cuts off, and where its key points are.

import { h, panel, s } from "./dom.js";

export class Cameras {
  constructor() {
    this.said = document.createTextNode("");
    this.frames = h("div", { class: "frames" });
    this.element = panel("What it sees", this.said, this.frames);
    this.element.hidden = true;
  }

  /** @param {object | null} plan the plan whose observation is shown; null before the first one */
  show(plan, config) {
    this.element.hidden = !config.cameras.length;
    const views = Object.entries(plan?.views ?? {});
    const figures = ([name, view]) => view.images.map((image, index) => figure(name, view, image, index));
    this.frames.replaceChildren(...views.flatMap(figures));
    const [first] = views;
    this.said.data = first ? `${first[1].key_points[0].length} key points` : "";
  }
}

function figure(name, view, image, index) {
  const [height, width] = view.size;
  const [top, left, h_, w_] = view.crop;
  const outside = `M0,0H${width}V${height}H0ZM${left},${top}v${h_}h${w_}v${-h_}Z`;
  const points = view.key_points[index].map(([x, y]) => s("circle", { cx: x, cy: y, r: width / 64 }));
  const drawing = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${name} with key points` },
    s("image", { href: image, width, height }),
    s("path", { class: "cut", d: outside, "fill-rule": "evenodd" }),
    s("rect", { class: "crop", x: left, y: top, width: w_, height: h_ }),
    s("g", { class: "points" }, points));
  const ago = view.images.length - 1 - index;
  const when = ago ? `${ago} step${ago === 1 ? "" : "s"} before` : "when it planned";
  return h("figure", {}, drawing, h("figcaption", {}, when));
}
