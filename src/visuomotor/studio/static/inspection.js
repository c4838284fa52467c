// What a data set is in numbers, and what may be wrong with it, as `visuomotor info` tells it.

import { ask, h, panel } from "./dom.js";

const MOST = 200; // findings
const KEYS = ["min", "max", "mean", "std"];

export class Inspection {
  /** @param {(error: Error) => void} trouble takes what went wrong */
  constructor(trouble) {
    this.trouble = trouble;
    this.told = document.createTextNode("");
    this.findings = h("div", {});
    this.statistics = h("div", { class: "scroll" });
    const look = () => this.show(this.source, true);
    this.button = h("button", { type: "button", onclick: look }, "Look at all frames too");
    this.element = h("div", { class: "inspection" },
      panel("What may be wrong", this.told, this.findings, h("div", { class: "row" }, this.button)),
      panel("Statistics", "", this.statistics));
  }

  async show(source, frames = false) {
    this.source = source;
    this.told.data = "looking …";
    this.button.disabled = true;
    if (!frames) this.findings.replaceChildren();
    try {
      const found = await ask(`/api/data/${source}/inspection?frames=${Number(frames)}`);
      if (this.source !== source) return;
      this.tell(found);
    } catch (error) {
      this.told.data = "";
      if (this.source === source) this.trouble(error);
    }
  }

  tell({ findings, features, frames_checked: checked, disk }) {
    const cameras = Object.values(features).some((feature) => feature.dtype === "image");
    this.button.hidden = checked || !cameras;
    this.button.disabled = false;
    this.told.data = findings.length === 1 ? "1 finding" : findings.length ? `${findings.length} findings` : "";
    const rows = findings.slice(0, MOST).map(({ kind, feature, episode, text }) => {
      const cells = [kind, feature ?? "", episode == null ? "" : `episode ${episode}`, text];
      return h("tr", {}, cells.map((cell) => h("td", {}, cell)));
    });
    if (findings.length > MOST) rows.push(h("tr", {}, h("td", { colspan: 4 }, `and ${findings.length - MOST} more`)));
    const unseen = checked || !cameras ? "" : " The cameras' frames were not looked at.";
    const found = rows.length
      ? h("div", { class: "scroll" }, h("table", {}, h("tbody", {}, rows)))
      : h("p", { class: "good" }, "Nothing wrong was found.");
    this.findings.replaceChildren(found, h("p", { class: "soft" }, unseen));
    const size = Object.values(disk).reduce((sum, bytes) => sum + bytes, 0);
    const onDisk = h("p", { class: "soft" }, `${(size / 1e6).toFixed(1)} MB on disk`);
    this.statistics.replaceChildren(table(features), onDisk);
  }
}

function table(features) {
  const head = ["feature", "dimension", ...KEYS].map((name) => h("th", {}, name));
  const rows = Object.entries(features).flatMap(([name, { dtype, shape, names, statistics }]) =>
    (statistics.min ?? []).map((_, index) => h("tr", {},
      h("th", { title: `${dtype}, ${shape.join(" x ") || "a number"}` }, index ? "" : name),
      h("td", {}, names[index] ?? (statistics.min.length > 1 ? String(index) : "")),
      KEYS.map((key) => h("td", { class: "figure" }, short(statistics[key][index]))))));
  return h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows));
}

function short(value) {
  return value == null ? "" : String(Number(value.toPrecision(4)));
}
