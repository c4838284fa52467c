// Many seeds at once, as small multiples; one that is chosen is looked at alone.

import { h } from "./dom.js";
import { Scene, paintTable } from "./scene.js";

export class Grid {
  /** @param {(seed: number) => void} choose takes the seed of the cell that was chosen */
  constructor(choose) {
    this.choose = choose;
    this.cells = [];
    this.element = h("div", { class: "grid-of-seeds", hidden: true });
  }

  begin() {
    this.close();
    this.cells = [];
    this.element.replaceChildren();
  }

  frame({ episodes }) {
    if (this.cells.length !== episodes.length) {
      this.begin();
      this.cells = episodes.map((episode) => this.cell(episode.seed));
      this.element.style.setProperty("--columns", Math.ceil(Math.sqrt(episodes.length)));
      this.element.append(...this.cells.map((cell) => cell.element));
    }
    episodes.forEach((episode, index) => this.cells[index].show(episode));
  }

  cell(seed) {
    let state = null;
    const scene = new Scene(`Push-T from seed ${seed}`, (pen, colours) => paintTable(pen, colours, state));
    const said = h("span", {});
    const alone = { title: `Look at seed ${seed} alone`, onclick: () => this.choose(seed) };
    const element = h("button", { type: "button", class: "card cell", ...alone }, scene.element,
      h("span", { class: "under" }, h("span", {}, String(seed)), said));
    const show = (episode) => {
      state = episode.state;
      said.textContent = episode.solved ? `solved in ${episode.steps}` : `${(100 * episode.coverage).toFixed(0)} %`;
      said.className = episode.solved ? "good" : "";
      element.dataset.solved = episode.solved;
      scene.draw();
    };
    return { element, show, close: () => scene.close() };
  }

  close() {
    for (const cell of this.cells) cell.close();
  }
}
