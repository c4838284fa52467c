// The table under a hand that drives: the agent is taken and goes where the pointer is.

import { h } from "./dom.js";
import { Scene, paintTable, ring, stroke } from "./scene.js";
import { cross } from "./stage.js";

const REACH = 30; // pixels of the table from the agent's centre at which a hand takes hold

export class Driving {
  /** @param {(type: string, content: object) => void} send tells the studio what the hand does */
  constructor(send) {
    this.hand = (content) => send("hand", content);
    const label = "Push-T: the table with the goal, the T and the agent that is driven";
    this.scene = new Scene(label, (pen, colours) => this.paint(pen, colours));
    this.begin();
    this.waiting = false; // whether the hand has moved since the last picture
    const canvas = this.scene.element;
    canvas.id = "table";
    canvas.addEventListener("pointerdown", (event) => this.take(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(end, () => this.release());
    }
    canvas.addEventListener("touchstart", (event) => this.touched(event), { passive: false });
    this.away = () => this.release();
    addEventListener("blur", this.away);
    this.said = h("p", { class: "hint" });
    this.element = h("div", { class: "card table" }, canvas, this.said);
  }

  begin() {
    this.seen = null;
    this.path = []; // where the agent has been
    this.place = null; // the hand's, while it holds
  }

  frame({ episodes: [episode], held, running, over }) {
    if (episode.steps > (this.seen?.steps ?? -1)) this.path.push(episode.state.slice(0, 2));
    this.seen = { ...episode, held, over };
    this.scene.element.dataset.held = held ?? "";
    if (over) this.place = null;
    this.said.textContent = hint(episode, running, over);
    this.scene.draw();
  }

  paint(pen, colours) {
    const { seen, place, path } = this;
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
    if (place ?? seen.action) cross(pen, colours, place ?? seen.action, scale);
  }

  near([x, y]) {
    return this.seen && !this.seen.over && Math.hypot(x - this.seen.state[0], y - this.seen.state[1]) <= REACH;
  }

  take(event) {
    const place = this.scene.place(event);
    if (!event.isPrimary || event.button !== 0 || !this.near(place)) return;
    event.preventDefault();
    this.scene.element.setPointerCapture(event.pointerId);
    this.place = place;
    this.hand({ do: "take", thing: "agent", x: place[0], y: place[1] });
  }

  /** A finger beside the agent scrolls the page. */
  touched(event) {
    if (event.touches.length === 1 && this.near(this.scene.place(event.touches[0]))) event.preventDefault();
  }

  move(event) {
    const place = this.scene.place(event);
    if (!this.place) {
      this.scene.element.style.cursor = this.near(place) ? "grab" : "";
      return;
    }
    this.place = place;
    if (!this.waiting) requestAnimationFrame(() => this.drag());
    this.waiting = true;
  }

  /** Once a picture is enough: a mouse may report a thousand times a second. */
  drag() {
    if (this.waiting && this.place) {
      this.hand({ do: "drag", x: this.place[0], y: this.place[1] });
      this.scene.draw();
    }
    this.waiting = false;
  }

  release() {
    if (!this.place) return;
    this.drag();
    this.place = null;
    this.hand({ do: "release" });
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
