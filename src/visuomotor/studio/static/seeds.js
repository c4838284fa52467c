// The seeds that two reports share, by who solved them: filtered, and one of them chosen.

import { h, panel } from "./dom.js";
import { percent } from "./units.js";

const KINDS = { all: "All", both: "Both", first: "Only A", second: "Only B", neither: "Neither" };
const LETTERS = { both: "", first: "A", second: "B", neither: "" };

/** The seeds of both, ascending: who solved each, and how it went. */
export function matched(first, second) {
  const others = new Map(second.episodes.map((episode) => [episode.seed, episode]));
  const rows = first.episodes.filter(({ seed }) => others.has(seed)).map((one) => {
    const outcomes = [one, others.get(one.seed)];
    const [a, b] = outcomes.map((outcome) => outcome.success);
    return { seed: one.seed, kind: a ? (b ? "both" : "first") : b ? "second" : "neither", outcomes };
  });
  return rows.sort((one, other) => one.seed - other.seed);
}

export class Seeds {
  /**
   * @param {(seed: number) => void} choose takes the seed that was chosen
   * @param {() => void} filtered is told when other seeds are shown
   */
  constructor(choose, filtered) {
    this.choose = choose;
    this.filtered = filtered;
    this.rows = [];
    this.kind = "all";
    this.seed = null;
    this.buttons = h("div", { class: "row filters", role: "group", "aria-label": "Who solved them" });
    this.cells = h("div", { class: "cells", role: "group", "aria-label": "Seeds", onkeydown: (e) => this.pressed(e) });
    this.said = document.createTextNode("");
    this.element = panel("Seeds", this.said, this.buttons, this.cells);
  }

  /** The rows of the kind that is looked at. */
  get shown() {
    return this.rows.filter(({ kind }) => this.kind === "all" || kind === this.kind);
  }

  show(rows) {
    this.rows = rows;
    this.element.hidden = !rows.length;
    this.draw();
  }

  draw() {
    const count = (kind) => (kind === "all" ? this.rows.length : this.rows.filter((row) => row.kind === kind).length);
    const button = ([kind, name]) => h("button", { type: "button", class: `filter ${kind}`, "data-kind": kind,
      "aria-pressed": String(kind === this.kind), onclick: () => this.filter(kind) }, `${name} ${count(kind)}`);
    const focused = this.buttons.contains(document.activeElement);
    this.buttons.replaceChildren(...Object.entries(KINDS).map(button));
    if (focused) this.buttons.querySelector('[aria-pressed="true"]').focus();
    this.cells.replaceChildren(...this.shown.map((row) => this.cell(row)));
    this.mark(this.seed);
  }

  filter(kind) {
    this.kind = kind;
    this.draw();
    this.filtered();
  }

  cell({ seed, kind, outcomes }) {
    const words = outcomes.map((outcome, side) => `${"AB"[side]} ${ended(outcome)}`).join("; ");
    const name = `Seed ${seed}: ${words}`;
    const about = { type: "button", class: `seed ${kind}`, "data-seed": seed, title: name, "aria-label": name };
    return h("button", { ...about, onclick: () => this.choose(seed) }, LETTERS[kind]);
  }

  /** Marks the chosen seed; it, or else the first, is where the keyboard comes in. */
  mark(seed) {
    this.seed = seed;
    this.said.data = seed == null ? "choose one" : `seed ${seed}`;
    const cells = [...this.cells.children];
    const current = cells.find((cell) => Number(cell.dataset.seed) === seed);
    for (const cell of cells) {
      cell.tabIndex = cell === (current ?? cells[0]) ? 0 : -1;
      if (cell === current) cell.setAttribute("aria-current", "true");
      else cell.removeAttribute("aria-current");
    }
  }

  /** Arrows go from cell to cell. */
  pressed(event) {
    const cells = [...this.cells.children];
    const here = cells.indexOf(event.target);
    const wide = cells.filter((cell) => cell.offsetTop === cells[0].offsetTop).length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide };
    const next = { Home: cells[0], End: cells.at(-1) }[event.key] ?? cells[here + steps[event.key]];
    if (here < 0 || !next) return;
    event.preventDefault();
    next.focus();
  }
}

/** How an episode ended, in words. */
export function ended({ success, steps, max_coverage: best }) {
  return success ? `solved in ${steps} steps` : `not solved, best ${percent(best)}`;
}
