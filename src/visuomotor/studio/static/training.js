// Training: a policy learns from what was recorded, with live curves, and then is watched.

import { Chart } from "./chart.js";
import { Connection } from "./connection.js";
import { choice, field, h, number } from "./dom.js";

const USUAL = ["pusht-keypoints-small", "pusht-image-small"]; // presets for a machine like this, the first that fits
const TUNING_STEPS = 1000; // proposed where a policy is trained further
const MOST_STEPS = 1_000_000;
const HELD_OUT = 1 / 20; // of the episodes, proposed
const STATES = { none: "ready", running: "training", stopping: "saving a checkpoint", stopped: "stopped",
  failed: "failed", done: "done" };
const KINDS = { running: "accent", stopping: "accent", failed: "bad", done: "good" };

export class Training {
  /** @param {{tell: (text?: string) => void}} page shows one line of trouble, or takes it away */
  constructor({ tell }) {
    this.tell = tell;
    this.troubled = false;
    this.status = { state: "none", sources: [] };
    this.lines = []; // of metrics.jsonl
    this.options = null; // what fits the data, once it is known
    this.data = []; // names of the sources to learn from; none is the studio's first
    this.chosen = false; // whether somebody has chosen them
    this.recording = null; // the source that is recorded into
    this.heldOut = false; // whether somebody has chosen how many of them are held out
    this.wanted = { preset: "", initial_policy: "", steps: 0, held_out: 0 };

    const button = (text, action) => h("button", { type: "button", onclick: () => this.do(action) }, text);
    this.buttons = { start: button("Start", "start"), stop: button("Stop", "stop"), resume: button("Go on", "resume") };
    this.buttons.start.classList.add("main");
    this.watch = h("a", { class: "button" }, "Watch it");
    this.said = h("p", { class: "said" });
    this.form = h("fieldset", { class: "controls" });
    this.about = h("p", { class: "soft about" });
    this.trouble = h("p", { class: "bad" });
    this.chart = new Chart("Loss over steps", { x: "steps", height: 190, label: loss });
    this.keys = h("span", { class: "aside" }, h("span", { class: "key line" }, "loss"),
      h("span", { class: "key second" }, "held out"));
    this.element = h("section", { class: "card training", "aria-label": "Train" },
      h("h2", {}, "Train", this.keys), this.form, this.about,
      h("div", { class: "row" }, Object.values(this.buttons), this.watch), this.said, this.trouble, this.chart.element);
    this.connection = new Connection("/api/train", {
      message: (message) => this[`hear_${message.type}`](message),
      state: (state) => {
        this.element.inert = state !== "open";
        if (state === "open") this.ask();
      },
    });
    this.showForm();
    this.show();
  }

  /** Proposes a data set that has been recorded, unless somebody has chosen another one. */
  recorded(source) {
    this.recording = source;
    this.propose();
    if (this.data.includes(source)) this.ask();
  }

  /** Whether the recordings are now to be learned from; while a training is under way, its own data are shown. */
  propose() {
    const { recording } = this;
    if (!recording || this.chosen || this.underWay || this.data.includes(recording)) return false;
    this.data = [recording, ...this.data.slice(1)];
    return true;
  }

  close() {
    this.connection.close();
    this.chart.close();
  }

  /** Asks what fits the data. */
  ask() {
    this.form.setAttribute("aria-busy", "true");
    this.buttons.start.disabled = true;
    this.connection.send("options", { data: this.data });
  }

  do(action) {
    this.connection.send(action, action === "start" ? { data: this.data, ...this.wanted } : {});
  }

  hear_options({ data, presets, episodes, frames }) {
    const others = String(this.options?.data) !== String(data);
    const same = !others && this.options.episodes === episodes;
    this.heldOut &&= !others;
    this.options = { data, presets, episodes, frames };
    this.data = data;
    if (!same && !this.heldOut && !this.underWay) this.wanted.held_out = Math.floor(episodes * HELD_OUT);
    this.well();
    this.form.removeAttribute("aria-busy");
    this.choosePreset(presets.some(({ name }) => name === this.wanted.preset) ? this.wanted.preset : this.usual());
  }

  hear_training({ type, first, lines, ...status }) {
    const changed = this.status.state !== status.state;
    this.lines = first ? [...this.lines, ...lines] : lines;
    const others = String(status.sources) !== String(this.status.sources);
    this.status = status;
    if (others) this.showForm();
    this.show();
    if (!changed) return;
    if (this.underWay) this.adopt(status.asked);
    if (this.propose() || this.underWay || status.policy) this.ask(); // its policy can be trained further
  }

  /** Shows what is being trained, whoever has started it. */
  adopt({ data, ...wanted }) {
    this.well();
    this.data = data;
    this.wanted = wanted;
  }

  hear_error({ text }) {
    this.troubled = true;
    this.tell(text);
    if (this.form.hasAttribute("aria-busy")) this.options = null;
    this.form.removeAttribute("aria-busy");
    this.showForm();
  }

  /** Takes its own line of trouble away. */
  well() {
    if (this.troubled) this.tell();
    this.troubled = false;
  }

  get underWay() {
    return ["running", "stopping"].includes(this.status.state);
  }

  usual() {
    const names = this.options.presets.map(({ name }) => name);
    return USUAL.find((name) => names.includes(name)) ?? names[0] ?? "";
  }

  choosePreset(name) {
    const policies = this.options.presets.find((preset) => preset.name === name)?.policies ?? [];
    const same = this.wanted.preset === name && ["", ...policies].includes(this.wanted.initial_policy);
    this.wanted.preset = name;
    if (same) this.showForm();
    else this.choosePolicy(policies[0] ?? "");
  }

  choosePolicy(name) {
    const preset = this.options.presets.find((known) => known.name === this.wanted.preset);
    this.wanted.initial_policy = name;
    this.wanted.steps = name ? Math.min(TUNING_STEPS, preset.steps) : preset?.steps ?? 1;
    this.showForm();
  }

  hold(episodes) {
    this.heldOut = true;
    this.wanted.held_out = episodes;
  }

  chooseData(data) {
    this.chosen = true;
    this.data = data;
    this.ask();
  }

  show() {
    const { state, policy, error } = this.status;
    const { underWay } = this;
    this.element.dataset.state = state;
    this.form.disabled = underWay;
    this.buttons.start.hidden = underWay;
    this.buttons.stop.hidden = !underWay;
    this.buttons.stop.disabled = state === "stopping";
    this.buttons.resume.hidden = state !== "stopped" && state !== "failed";
    this.watch.hidden = !policy;
    if (policy) this.watch.href = `#/watch/${encodeURIComponent(policy)}`;
    this.trouble.textContent = error ?? "";
    this.trouble.hidden = !error;
    this.said.replaceChildren(h("b", { class: KINDS[state] ?? "" }, STATES[state]), ...this.figures());
    this.showChart();
  }

  /** What can be chosen, and what is. */
  showForm() {
    const { sources } = this.status;
    const focused = this.form.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    const [data = sources[0] ?? "", other = ""] = this.data;
    const others = sources.filter((name) => name !== data).map((name) => [name, name]);
    const controls = {
      "Data set": choice(sources.map((name) => [name, name]), data,
        (name) => this.chooseData([name, ...this.data.slice(1).filter((one) => one !== name)])),
      "Together with": choice([["", "nothing else"], ...others], other,
        (name) => this.chooseData(name ? [data, name] : [data])),
    };
    if (this.options) {
      const { presets, episodes, frames } = this.options;
      const { preset, initial_policy, steps, held_out } = this.wanted;
      const chosen = presets.find(({ name }) => name === preset);
      const policies = (chosen?.policies ?? []).map((name) => [name, name]);
      Object.assign(controls, {
        Preset: choice(presets.map(({ name }) => [name, name]), preset, (name) => this.choosePreset(name)),
        "Begin with": choice([["", "random weights"], ...policies], initial_policy, (name) => this.choosePolicy(name)),
        Steps: number(steps, 1, MOST_STEPS, (value) => (this.wanted.steps = value)),
        "Held out": number(held_out, 0, Math.max(0, episodes - 1), (value) => this.hold(value)),
      });
      const what = chosen ? chosen.about : "No preset fits what these data hold.";
      this.about.textContent = `${episodes} episodes, ${frames} frames. ${what}`;
    } else this.about.textContent = "";
    for (const [name, control] of Object.entries(controls)) control.dataset.name = name;
    this.form.replaceChildren(...Object.entries(controls).map(([name, control]) => field(name, control)));
    if (focused) controls[focused]?.focus();
    this.buttons.start.disabled = !this.options || !this.wanted.preset;
  }

  /** What stands beside the buttons. */
  figures() {
    const { state, asked, left, run } = this.status;
    if (!asked) return [];
    const last = this.lines.at(-1);
    const heldOut = this.lines.findLast((line) => line.validation_loss != null)?.validation_loss;
    const parts = [last && `step ${last.step} of ${asked.steps}`,
      last?.loss != null && `loss ${last.loss.toPrecision(3)}`, heldOut && `held out ${heldOut.toPrecision(3)}`,
      last && state === "running" && `${Math.round(last.samples_per_second)} samples/s`,
      last && state === "running" && `rate ${Number(last.learning_rate.toPrecision(2))}`,
      left != null && `${duration(left)} left`, run];
    return parts.filter(Boolean).map((part) => ` · ${part}`);
  }

  showChart() {
    const curve = (name, kind) => ({ kind, points: this.lines.filter((line) => line[name] != null)
      .map((line) => [line.step, Math.log10(line[name])]) });
    const lines = [curve("loss", "line"), curve("validation_loss", "second")];
    this.chart.element.hidden = this.keys.hidden = !this.status.asked;
    this.chart.show({ lines, end: this.status.asked?.steps ?? 1 });
  }
}

/** A loss whose logarithm is on the axis. */
function loss(logarithm) {
  return String(Number((10 ** logarithm).toPrecision(2)));
}

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
