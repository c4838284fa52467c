// The data set that is recorded into: where it is, how much it holds, and what was kept on this page.

import { h, panel } from "./dom.js";
import { FPS, percent } from "./units.js";

export class Kept {
  /** @param {HTMLElement} seed from which the next episode begins */
  constructor(seed) {
    this.folder = h("p", { class: "soft folder" });
    this.counts = document.createTextNode("");
    this.rows = h("tbody", {});
    const head = ["Episode", "Seed", "Seconds", "Coverage"].map((name) => h("th", {}, name));
    const table = h("table", {}, h("thead", {}, h("tr", {}, head)), this.rows);
    this.table = h("div", { class: "scroll", hidden: true }, table);
    this.element = panel("Data set", h("span", { role: "status" }, this.counts),
      h("div", { class: "row" }, this.folder, seed), this.table);
    this.element.classList.add("kept");
  }

  /** @param {{folder: string, source: number | null, episodes: number, frames: number}} found as the studio tells it */
  count({ folder, source, episodes, frames }) {
    const there = episodes ? "" : " (made with the first episode that is kept)";
    this.folder.replaceChildren(h("code", {}, folder), there);
    this.counts.data = `${episodes} episode${episodes === 1 ? "" : "s"} · ${frames} frames`;
    for (const link of this.rows.querySelectorAll("a")) link.href = `#/data/${source}/${link.dataset.episode}`;
  }

  add({ episode, seed, frames, coverage, solved }) {
    const link = h("a", { "data-episode": episode }, String(episode));
    const covered = h("td", { class: solved ? "good" : "" }, percent(coverage));
    const cells = [link, seed, (frames / FPS).toFixed(1)].map((content) => h("td", {}, content));
    this.rows.prepend(h("tr", {}, cells, covered));
    this.table.hidden = false;
  }
}
