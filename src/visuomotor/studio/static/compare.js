// Compare: two evaluations side by side, seed by seed, and the episodes of one seed in step.

import { ask, choice, field, h } from "./dom.js";
import { Pair } from "./pair.js";
import { Scatter } from "./scatter.js";
import { Seeds, matched } from "./seeds.js";
import { percent } from "./units.js";
import { Verdict } from "./verdict.js";

const EXAMPLE = `visuomotor eval pusht-keypoints-small --episodes 100 --output outputs/own-steps
visuomotor eval pusht-keypoints-small --episodes 100 --num-inference-steps 4 --output outputs/4-steps
visuomotor studio --reports outputs`;

/** Opens the page in an element; what it returns closes it. `path` is both reports and the seed. */
export function open(root, { tell, path }) {
  let chosen = [0, 0]; // numbers of the reports
  let rows = []; // the seeds that both have
  let closed = false;
  let asking = 0; // whoever asked last is answered

  const controls = h("form", { class: "controls compare-controls", onsubmit: (event) => event.preventDefault() });
  const damage = h("div", { class: "damage" });
  const verdict = new Verdict();
  const seeds = new Seeds((seed) => look(seed), () => scatter.show(seeds.shown, seeds.seed));
  const scatter = new Scatter((seed) => look(seed));
  const pair = new Pair();
  const body = h("div", { class: "compare" },
    h("div", { class: "side" }, verdict.element, seeds.element, scatter.element), pair.element);
  const empty = h("section", { class: "card empty", hidden: true });
  root.append(controls, damage, empty, body);
  body.hidden = true;

  /** Lists the reports, and opens two of them. */
  async function begin() {
    try {
      const { folders, reports } = await ask("/api/reports");
      if (closed) return;
      const whole = reports.filter((report) => !report.error);
      const damaged = reports.filter((report) => report.error);
      damage.replaceChildren(...damaged.map((report) => h("p", { class: "bad" }, report.error)));
      empty.hidden = whole.length > 0;
      controls.hidden = !whole.length;
      if (!whole.length) return nothing(folders);
      const known = (text) => whole.find((report) => text && report.number === Number(text))?.number;
      const first = known(path[0]) ?? whole[0].number;
      const next = whole.find((report) => report.number !== first) ?? whole[0];
      offer(whole, [first, known(path[1]) ?? next.number]);
      show(Number(path[2]) || null);
    } catch (error) {
      trouble(error);
    }
  }

  /** Says how reports come about. */
  function nothing(folders) {
    const none = `In ${folders.join(", ")} there is no evaluation yet.`;
    const where = folders.length ? none : "The studio was given none.";
    const again = h("button", { type: "button", onclick: begin }, "Look again");
    empty.replaceChildren(h("h1", {}, "No evaluations to compare"),
      h("p", { class: "soft" }, `${where} Two commands make two reports, of the same seeds; the third shows them here:`),
      h("pre", {}, EXAMPLE), h("div", { class: "row" }, again));
  }

  function offer(reports, numbers) {
    chosen = numbers;
    const name = ({ name, success_rate, episodes }) => `${name}, ${percent(success_rate)} of ${episodes}`;
    const options = reports.map((report) => [report.number, name(report)]);
    const control = (side) => choice(options, chosen[side], (value) => {
      chosen[side] = Number(value);
      show(seeds.seed);
    });
    const swap = h("button", { type: "button", onclick: () => {
      offer(reports, [chosen[1], chosen[0]]);
      show(seeds.seed);
    } }, "Swap");
    controls.replaceChildren(field("Report A", control(0)), field("Report B", control(1)), swap);
  }

  /** Opens the two reports that are chosen, and the seed if both have it. */
  async function show(seed) {
    const mine = ++asking;
    tell();
    try {
      const [first, second, compared] = await Promise.all([
        ask(`/api/reports/${chosen[0]}`), ask(`/api/reports/${chosen[1]}`),
        ask(`/api/reports/${chosen[0]}/against/${chosen[1]}`),
      ]);
      if (closed || mine !== asking) return;
      body.hidden = false;
      rows = compared.refused ? [] : matched(first, second);
      verdict.show(first, second, compared);
      pair.choose([first, second], chosen);
      seeds.show(rows);
      look(rows.some((row) => row.seed === seed) ? seed : null);
    } catch (error) {
      if (mine === asking) trouble(error);
    }
  }

  /** Looks at a seed, or at none. */
  function look(seed) {
    const place = [...chosen, seed ?? ""].join("/").replace(/\/$/, "");
    history.replaceState(null, "", `#/compare/${place}`);
    seeds.mark(seed);
    scatter.show(seeds.shown, seed);
    pair.show(rows.find((row) => row.seed === seed) ?? null, rows.length);
  }

  function trouble(error) {
    if (closed) return;
    body.hidden = true;
    tell(error.message);
  }

  const pressed = (event) => pair.pressed(event);
  addEventListener("keydown", pressed);
  begin();
  return () => {
    closed = true;
    removeEventListener("keydown", pressed);
    for (const part of [pair, scatter]) part.close();
  };
}
