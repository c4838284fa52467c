// The table in large, with a hand: the T and the agent can be taken with mouse, finger or keys.

import { under } from "./geometry.js";
import { h } from "./dom.js";
import { Grip } from "./grip.js";
import { paintFutures, paintPlan } from "./plan.js";
import { Scene, paintTable, stroke } from "./scene.js";

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const NUDGE = 8; // pixels of the table
const TURN = Math.PI / 24;

export class Stage {
  /** @param {(type: string, content: object) => void} send tells the studio what the hand does */
  constructor(send) {
    this.hand = (content) => send("hand", content);
    const label = "Push-T: the table with the goal, the T, the agent and its plan";
    this.scene = new Scene(label, (pen, colours) => this.paint(pen, colours));
    this.seen = null;
    this.latest = null;
    const reach = (place) => this.seen && under(place, this.seen.state);
    this.grip = new Grip(this.scene, reach, this.hand);
    const canvas = this.scene.element;
    canvas.tabIndex = 0;
    canvas.id = "table";
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.pressed(event));
    const hint = "Drag the T or the agent; the wheel turns the T. Keys: arrows move the T, with Shift the agent; "
      + "[ and ] turn it.";
    this.element = h("div", { class: "card table" }, canvas, h("p", { class: "hint" }, legend(), h("span", {}, hint)));
  }

  begin() {
    this.latest = null;
  }

  plan(plan) {
    this.latest = plan;
  }

  frame(message) {
    this.seen = { ...message.episodes[0], held: message.held };
    this.scene.element.dataset.held = message.held ?? "";
    this.scene.draw();
  }

  paint(pen, colours) {
    const { seen, latest } = this;
    paintTable(pen, colours, seen?.state, seen?.held);
    if (!latest || !seen) return;
    const { scale } = this.scene;
    paintFutures(pen, colours, latest.futures, latest.now, scale);
    paintPlan(pen, colours, latest, seen.executed, scale);
    if (seen.action) cross(pen, colours, seen.action, scale);
  }

  wheel(event) {
    if (!this.grip.place && this.seen && under(this.scene.place(event), this.seen.state) !== "block") return;
    event.preventDefault();
    this.hand({ do: "turn", angle: Math.sign(event.deltaY) * TURN });
  }

  pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = KEYS[event.key];
    const turn = { "[": -TURN, "]": TURN }[event.key];
    const [thing, [x, y]] = [event.shiftKey ? "agent" : "block", step ?? [0, 0]];
    if (step) this.hand({ do: "nudge", thing, x: x * NUDGE, y: y * NUDGE });
    else if (turn) this.hand({ do: "turn", angle: turn });
    else return;
    event.preventDefault();
  }

  close() {
    this.scene.close();
  }
}

function legend() {
  const texts = ["executed", "to be executed", "only foreseen"];
  return texts.map((text, index) => h("span", { class: `key key${index}` }, text));
}

/** Where the agent is told to go. */
export function cross(pen, colours, [x, y], scale) {
  const arm = 5 * scale;
  stroke(pen, [[x - arm, y], [x + arm, y]], colours.ink, 1.5 * scale);
  stroke(pen, [[x, y - arm], [x, y + arm]], colours.ink, 1.5 * scale);
}
