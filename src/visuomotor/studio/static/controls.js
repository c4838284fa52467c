// What can be chosen, and the buttons that start, stop and step.

import { choice, field, h, number } from "./dom.js";
import { FPS, SAMPLERS, percent } from "./units.js";

const SPEEDS = { 0.25: "¼ ×", 0.5: "½ ×", 1: "real time", 2: "2 ×", 0: "fastest" };
const FLOW = "FlowMatchEuler";
const KEYS = { " ": "toggle", ".": "step", r: "reset" };

export class Controls {
  /**
   * @param {object} about what the studio has: policies, samplers, limits
   * @param {(changes: object) => void} set takes settings that have changed
   * @param {(type: string, content?: object) => void} send tells the studio what to do
   */
  constructor(about, set, send) {
    this.about = about;
    this.set = (changes) => {
      this.element.setAttribute("aria-busy", "asked");
      set(changes);
    };
    this.send = send;
    this.element = h("form", { class: "controls", onsubmit: (event) => event.preventDefault() });
    const button = (text, action, key) =>
      h("button", { type: "button", title: key, onclick: () => this.do(action) }, text);
    this.toggle = button("Run", "toggle", "Space");
    this.toggle.classList.add("main");
    this.said = h("p", { class: "said" });
    const others = [button("Step", "step", "Full stop"), button("Reset", "reset", "R")];
    this.transport = h("div", { class: "transport" }, this.toggle, others, this.said);
  }

  /** The settings in force; where none is made, the policy's own. Only the policies before one could be loaded. */
  show(settings, config) {
    const focused = this.element.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    const own = { noise_scheduler_type: null, num_inference_steps: null, n_action_steps: null };
    const controls = {
      Policy: choice(pairs(this.about.policies), settings.policy, (policy) => this.set({ policy, ...own })),
      ...(config ? this.controls(settings, config) : {}),
    };
    for (const [name, control] of Object.entries(controls)) control.dataset.name = name;
    const many = settings.episodes > 1;
    const title = (name) => (name === "Seed" && many ? "First seed" : name);
    this.element.replaceChildren(...Object.entries(controls).map(([name, control]) => field(title(name), control)));
    if (focused) controls[focused]?.focus();
    if (this.element.hasAttribute("aria-busy")) this.element.setAttribute("aria-busy", "told");
  }

  controls(settings, config) {
    const flow = config.noise_scheduler_type === FLOW;
    const samplers = this.about.samplers.filter((name) => (name === FLOW) === flow);
    const set = (name, convert = (value) => value) => (value) => this.set({ [name]: convert(value) });
    return {
      Seed: number(settings.seed, 0, 2 ** 32 - 1, set("seed")),
      Episodes: choice(pairs([1, 4, 9, 16, 25], (count) => (count === 1 ? "1" : `${count} seeds`)), settings.episodes,
        set("episodes", Number)),
      Sampler: choice(pairs(samplers, (name) => SAMPLERS[name] ?? name), config.noise_scheduler_type,
        set("noise_scheduler_type")),
      "Denoising steps": number(config.num_inference_steps, 1, config.num_train_timesteps, set("num_inference_steps")),
      "Actions a plan": number(config.n_action_steps, 1, config.horizon - config.n_obs_steps + 1,
        set("n_action_steps")),
      Futures: choice(pairs([1, 4, 8, 16, 32]), settings.futures, set("futures", Number)),
      Speed: choice(pairs([0.25, 0.5, 1, 2, 0], (speed) => SPEEDS[speed]), settings.speed, set("speed", Number)),
    };
  }

  frame({ running, over, episodes }) {
    if (this.element.getAttribute("aria-busy") === "told") this.element.removeAttribute("aria-busy");
    this.running = running;
    this.toggle.textContent = running ? "Pause" : "Run";
    this.toggle.setAttribute("aria-pressed", running);
    const state = over ? "solved" : running ? "running" : "paused";
    const steps = Math.max(...episodes.map((episode) => episode.steps));
    const solved = episodes.filter((episode) => episode.solved).length;
    const [first] = episodes;
    const tail = episodes.length > 1 ? `${solved} of ${episodes.length} solved` : `best ${percent(first.best)}`;
    this.said.replaceChildren(
      h("b", { class: over ? "good" : running ? "accent" : "" }, state),
      ` · step ${steps} · ${(steps / FPS).toFixed(1)} s · ${tail}`,
    );
    this.transport.dataset.state = state;
  }

  /** A key anywhere on the page; those of fields and buttons are theirs. */
  pressed(event) {
    const action = KEYS[event.key.toLowerCase()];
    const meant = event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, button, a");
    if (!action || meant) return;
    event.preventDefault();
    this.do(action);
  }

  do(action) {
    this.send(action === "toggle" ? (this.running ? "pause" : "run") : action);
  }
}

function pairs(values, text = (value) => value) {
  return values.map((value) => [value, text(value)]);
}
