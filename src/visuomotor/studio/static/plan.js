// A plan over the scene: what is executed already, what will be, and what is only foreseen.

import { dot, ring, stroke } from "./scene.js";

/**
 * @param {{actions: number[][], now: number, executed: number}} plan its actions; which one is the present step's; how
 *   many of them are executed before the next plan
 * @param {number} done how many have been executed already
 * @param {number} scale pixels of the table to one of the screen
 */
export function paintPlan(pen, colours, plan, done, scale) {
  const { actions, now, executed } = plan;
  const wide = 2 * scale;
  const reached = now + done;
  const last = now + executed;
  stroke(pen, actions.slice(last - 1), colours.soft, wide * 0.75, [4 * scale, 5 * scale]);
  stroke(pen, actions.slice(Math.max(reached - 1, now), last), colours.accent, wide);
  stroke(pen, actions.slice(now, reached), colours.accent, wide * 1.5);
  actions.forEach((place, index) => {
    if (index < now) return;
    if (index < reached) dot(pen, place, 4 * scale, colours.accent);
    else if (index < last) {
      dot(pen, place, 4 * scale, colours.table);
      ring(pen, place, 4 * scale, colours.accent, wide * 0.9);
    } else dot(pen, place, 2 * scale, colours.soft);
  });
}

/** Other plans from the same observation, faint. */
export function paintFutures(pen, colours, futures, now, scale) {
  pen.globalAlpha = Math.max(0.18, 0.6 / Math.sqrt(futures.length || 1));
  futures.forEach((actions) => stroke(pen, actions.slice(now), colours.accent, 1.5 * scale));
  pen.globalAlpha = 1;
}

/** A whole horizon on its way from noise to actions. */
export function paintNoisy(pen, colours, actions, now, scale) {
  pen.globalAlpha = 0.45;
  stroke(pen, actions, colours.accent, 1.25 * scale);
  pen.globalAlpha = 1;
  actions.forEach((place, index) => dot(pen, place, 2.5 * scale, index < now ? colours.soft : colours.accent));
}
