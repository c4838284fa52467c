// The episodes of a data set, as a list to choose from.

import { field, h, number } from "./dom.js";

const MOST = 1000; // rows; further episodes are reached by their number

export class Episodes {
  /** @param {(position: number) => void} choose takes the position of the episode that was chosen */
  constructor(choose) {
    this.choose = choose;
    this.rows = h("tbody", {});
    this.head = h("tr", {});
    this.more = h("div", {});
    const table = h("table", {}, h("thead", {}, this.head), this.rows);
    this.element = h("section", { class: "card episodes", "aria-label": "Episodes" },
      this.more, h("div", { class: "scroll" }, table));
    this.rows.addEventListener("keydown", (event) => this.pressed(event));
  }

  show(episodes) {
    const tasks = new Set(episodes.flatMap((episode) => episode.tasks)).size > 1;
    const success = episodes.some((episode) => episode.success != null);
    const titles = ["Episode", "Frames", success && "Success", tasks && "Task"].filter(Boolean);
    this.head.replaceChildren(...titles.map((name) => h("th", {}, name)));
    const shown = episodes.slice(0, MOST);
    this.rows.replaceChildren(...shown.map((episode, position) => this.row(episode, position, success, tasks)));
    const jump = () => field(`Position, 0 to ${episodes.length - 1}`, number(0, 0, episodes.length - 1, this.choose));
    this.more.replaceChildren(...(episodes.length > MOST ? [jump()] : []));
  }

  row(episode, position, success, tasks) {
    const outcome = { true: ["yes", "good"], false: ["no", "bad"], null: ["", ""] }[episode.success];
    const button = h("button", { type: "button", class: "quiet" }, String(episode.episode));
    const cells = [h("td", {}, button), h("td", {}, String(episode.length))];
    if (success) cells.push(h("td", { class: outcome[1] }, outcome[0]));
    if (tasks) cells.push(h("td", { class: "task", title: episode.tasks.join("; ") }, episode.tasks.join("; ")));
    return h("tr", { onclick: () => this.choose(position) }, cells);
  }

  mark(position) {
    for (const row of this.rows.children) row.removeAttribute("aria-current");
    const row = this.rows.children[position];
    row?.setAttribute("aria-current", "true");
    row?.scrollIntoView({ block: "nearest" });
  }

  /** Up and down go from episode to episode. */
  pressed(event) {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const rows = [...this.rows.children];
    const next = rows[rows.indexOf(event.target.closest("tr")) + step];
    if (!step || !next) return;
    event.preventDefault();
    next.querySelector("button").focus();
    next.click();
  }
}
