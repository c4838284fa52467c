// Two success rates with their intervals, and how far apart they are.

import { h } from "./dom.js";
import { SAMPLERS, percent } from "./units.js";

const CHANCE = 0.05; // a p value from which on nobody is better, as the interval is of 95 %

export class Verdict {
  constructor() {
    this.element = h("section", { class: "card verdict", "aria-label": "Success" });
  }

  /** @param {object} compared both reports seed by seed, or why that cannot be (`refused`) */
  show(first, second, compared) {
    const apart = compared.refused
      ? [h("p", { class: "bad refused" }, compared.refused)]
      : [...difference(compared), unlike(compared.differences)];
    this.element.replaceChildren(bar("A", first), bar("B", second), h("div", { class: "apart" }, apart));
  }
}

function bar(letter, report) {
  const { success_rate: rate, success_rate_interval: [low, high], episodes, settings } = report;
  const solved = episodes.filter((episode) => episode.success).length;
  const seeds = episodes.map((episode) => episode.seed);
  const sampler = SAMPLERS[settings.noise_scheduler_type] ?? settings.noise_scheduler_type;
  const acts = `${sampler}, ${settings.num_inference_steps} steps, ${settings.n_action_steps} actions a plan`;
  return h("div", { class: `of-${letter}`, "data-report": letter },
    h("p", { class: "rate" }, h("span", { class: "badge" }, letter), h("b", {}, percent(rate)),
      h("span", {}, "success"), h("span", { class: "soft" }, `${percent(low)} to ${percent(high)}`)),
    track(rate, low, high),
    h("p", {}, `${solved} of ${episodes.length} solved from seed ${Math.min(...seeds)} on, mean max reward `
      + `${report.mean_max_reward.toFixed(3)}`),
    h("p", { class: "soft" }, `${settings.policy ?? settings.server ?? "a policy without a name"}: ${acts}`));
}

/** How far B is from A. */
function difference({ difference: apart, interval: [low, high], gained, lost, shared, p_value: chance }) {
  const [points, from, to] = [apart, low, high].map(signed);
  const sentence = `B solves ${gained.length} more, loses ${lost.length}: ${points} points (${from} to ${to})`;
  const seeds = `the ${shared} seed${shared === 1 ? "" : "s"} of both`;
  const better = chance >= CHANCE ? null : low > 0 ? "B" : high < 0 ? "A" : null;
  const said = better ? `Over ${seeds} ${better} is better` : `Not enough to tell them apart: ${seeds}`;
  const share = chance < 0.0001 ? "less than 0.01\u00a0%" : `${Number((100 * chance).toPrecision(2))}\u00a0%`;
  return [
    h("p", { class: "sentence" }, h("b", {}, sentence)),
    track((apart + 1) / 2, (low + 1) / 2, (high + 1) / 2, true),
    h("p", { class: "soft" }, `${said}; equally good policies would differ as much in ${share} of comparisons.`),
  ];
}

/** What else was not the same. */
function unlike(rows) {
  if (!rows.length) return h("p", { class: "soft" }, "Settings and versions are the same.");
  const cells = ([name, ...values]) => h("tr", {}, h("td", {}, name), values.map((value) => h("td", {}, short(value))));
  return h("details", {}, h("summary", {}, `Measured otherwise: ${rows.map(([name]) => name).join(", ")}`),
    h("div", { class: "scroll" }, h("table", {}, h("tbody", {}, rows.map(cells)))));
}

/** A share with its interval on a line from 0 to 1; `middle` marks one half. */
function track(share, low, high, middle = false) {
  const line = h("div", { class: middle ? "track middle" : "track", "aria-hidden": "true" }, h("i", {}), h("b", {}));
  for (const [name, value] of Object.entries({ share, low, high })) line.style.setProperty(`--${name}`, value);
  return line;
}

function signed(share) {
  const points = (100 * share).toFixed(1);
  return share < 0 ? `−${points.slice(1)}` : `+${points}`;
}

function short(text) {
  return /^[0-9a-f]{64}$/.test(text) ? `${text.slice(0, 12)}…` : text;
}
