// The table under a hand that drives: the agent is taken and goes where the pointer is.

import { h } from "./dom.js";
import { Grip } from "./grip.js";
import { Scene, paintTable, ring, stroke } from "./scene.js";
import { cross } from "./stage.js";

const REACH = 30; // pixels of the table from the agent's centre at which a hand takes hold

export class Driving {
  /** @param {(type: string, content: object) => void} send tells the studio what the hand does */
  constructor(send) {
    const label = "Push-T: the table with the goal, the T and the agent that is driven";
    this.scene = new Scene(label, (pen, colours) => this.paint(pen, colours));
    const reach = (place) => this.near(place) && "agent";
    this.grip = new Grip(this.scene, reach, (content) => {
      send("hand", content);
      this.scene.draw();
    });
    this.scene.element.id = "table";
    this.begin();
    this.away = () => this.release();
    addEventListener("blur", this.away);
    this.said = h("p", { class: "hint" });
    this.element = h("div", { class: "card table" }, this.scene.element, this.said);
  }

  begin() {
    this.seen = null;
    this.path = []; // where the agent has been
    this.grip.drop();
  }

  frame({ episodes: [episode], held, running, over }) {
    if (episode.steps > (this.seen?.steps ?? -1)) this.path.push(episode.state.slice(0, 2));
    this.seen = { ...episode, held, over };
    this.scene.element.dataset.held = held ?? "";
    if (over) this.grip.drop();
    this.said.textContent = hint(episode, running, over);
    this.scene.draw();
  }

  paint(pen, colours) {
    const { seen, path } = this;
    const { scale } = this.scene;
    paintTable(pen, colours, seen?.state, seen?.held);
    if (!seen) return;
    if (path.length > 1) {
      pen.globalAlpha = 0.5;
      stroke(pen, path, colours.accent, 2 * scale);
      pen.globalAlpha = 1;
    }
    if (!seen.held && !seen.over) {
      pen.globalAlpha = 0.5;
      ring(pen, seen.state, REACH, colours.accent, 1.5 * scale);
      pen.globalAlpha = 1;
    }
    const aim = this.grip.place ?? seen.action;
    if (aim) cross(pen, colours, aim, scale);
  }

  near([x, y]) {
    return this.seen && !this.seen.over && Math.hypot(x - this.seen.state[0], y - this.seen.state[1]) <= REACH;
  }

  release() {
    this.grip.release();
  }

  close() {
    removeEventListener("blur", this.away);
    this.scene.close();
  }
}

function hint({ steps, solved }, running, over) {
  if (solved) return "Solved. Keep the episode, retry it, or discard it.";
  if (over) return "That is long enough. Keep the episode, retry it, or discard it.";
  if (running) return "The agent follows you; ten times a second, what it sees and where it is told to go is recorded.";
  if (steps) return "Time stands still. Take the agent again to go on, or end the episode: keep, retry or discard.";
  return "Take the agent, the blue disc, with mouse or finger, and push the T onto the green one. Time runs from your "
    + "first movement until you let go.";
}
