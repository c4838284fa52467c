// An episode of one report: the video that the evaluation wrote, or else the episode rolled out again.

import { ask, h } from "./dom.js";
import { Scene, dot, paintTable } from "./scene.js";
import { ended } from "./seeds.js";
import { FPS, SUCCESS, percent } from "./units.js";

const DRIFT = 0.25; // seconds that a video may be away from the clock before it is set right
const OTHERWISE = "Another machine, or another version of torch, rounds differently.";

export class Side {
  /** @param {string} letter A or B; @param {() => void} changed is told when more is known of the episode */
  constructor(letter, changed) {
    this.changed = changed;
    this.outcome = { steps: 1 };
    this.scene = new Scene(`Episode of ${letter}`, (pen, colours) => this.paint(pen, colours));
    this.covered = h("i", {});
    this.strip = h("p", { class: "strip" }, this.covered);
    this.words = h("span", {});
    this.strip.append(this.words);
    this.film = h("div", { class: "film" });
    this.title = h("span", {});
    this.note = h("p", { class: "soft note" });
    this.element = h("figure", { class: `of-${letter}`, "data-side": letter },
      h("figcaption", {}, h("span", { class: "badge" }, letter), this.title), this.film, this.note);
  }

  choose(report, number) {
    Object.assign(this, { report, number });
  }

  /** Steps of the episode. */
  get steps() {
    return this.replay && !this.video ? this.replay.steps : this.outcome.steps;
  }

  /** Coverage over time, as far as it is known. */
  get curve() {
    return (this.replay?.coverages ?? []).map((share, index) => [(index + 1) / FPS, share]);
  }

  coverage(step) {
    return this.replay?.coverages[Math.min(step, this.replay.steps) - 1];
  }

  /** @param {object} outcome the episode as the report tells it */
  show(outcome) {
    this.outcome = outcome;
    this.replay = this.refused = this.video = null;
    this.step = 0;
    this.title.textContent = ended(outcome);
    this.title.title = this.report.name;
    this.title.className = outcome.success ? "good" : "bad";
    if (outcome.video) this.record();
    this.tell();
  }

  /** The evaluation's own video. */
  record() {
    const source = `/api/reports/${this.number}/videos/${this.outcome.seed}`;
    const video = h("video", { src: source, muted: true, playsinline: true, preload: "auto", "aria-label": "Episode" });
    video.muted = true; // the attribute alone counts only in HTML
    video.addEventListener("seeked", () => this.seen());
    video.addEventListener("loadeddata", () => this.at(this.step));
    video.addEventListener("error", () => {
      if (this.video !== video) return;
      this.video = null;
      this.tell();
      this.changed();
    });
    this.video = video;
  }

  /** Has the episode rolled out again, for what no video tells. */
  async fetch() {
    const abort = new AbortController();
    this.abort = abort;
    try {
      const found = await ask(`/api/reports/${this.number}/replays/${this.outcome.seed}`, abort.signal);
      if (this.abort !== abort) return;
      if (found.refused) this.refused = found;
      else this.replay = found;
    } catch (error) {
      if (this.abort !== abort) return;
      this.refused = { refused: error.message };
    }
    this.tell();
    this.changed();
  }

  /** Says where the picture comes from, and shows what there is. */
  tell() {
    const { video, replay, refused } = this;
    this.element.dataset.source = video ? "video" : replay ? "replay" : refused ? "none" : "waiting";
    if (video) this.film.replaceChildren(video);
    else if (replay) this.film.replaceChildren(this.strip, this.scene.element);
    else {
      const words = refused ? missing(refused) : "Rolling the episode out again …";
      this.film.replaceChildren(h("div", { class: "none" }, words));
    }
    this.note.className = replay && !replay.as_reported ? "bad note" : "soft note";
    this.note.textContent = [video ? "Filmed by the evaluation." : "", this.source()].join(" ").trim();
    this.at(this.step);
  }

  source() {
    const { replay, refused, video } = this;
    if (refused) return video ? `No curve: ${refused.refused}` : "";
    if (!replay) return video ? "Rolling it out again for its curve …" : "";
    if (replay.as_reported) return video ? "" : "Rolled out again: ends as reported.";
    const thing = video ? "The curve is of another rollout, which ends" : "Rolled out again it ends";
    return `${thing} otherwise than reported: ${ended(replay)}. ${OTHERWISE}`;
  }

  at(step) {
    this.step = step;
    if (this.video) return this.wind(step);
    if (!this.replay) return;
    const share = this.coverage(step) ?? 0;
    const solved = share > SUCCESS;
    this.strip.dataset.solved = solved;
    this.strip.style.setProperty("--share", Math.min(1, share));
    const now = `step ${Math.min(step, this.replay.steps)} · ${percent(share)}`;
    this.words.textContent = solved ? `${now} solved` : now;
    this.scene.draw();
    this.seen();
  }

  /** Frame n of a video shows the state after step n + 1. */
  wind(step) {
    const wanted = (Math.min(Math.max(step, 1), this.outcome.steps) - 0.5) / FPS;
    const off = Math.abs(this.video.currentTime - wanted);
    if (this.playing && step >= this.outcome.steps) this.video.pause();
    if (off > (this.playing ? DRIFT : 0.001)) this.video.currentTime = wanted;
    else this.seen();
  }

  /** Notes the step whose picture is there. */
  seen() {
    const { video } = this;
    if (video && (video.readyState < 2 || video.seeking)) return;
    const frame = video ? Math.floor(video.currentTime * FPS + 1e-6) + 1 : Math.min(this.step, this.replay.steps);
    this.element.dataset.frame = frame;
  }

  play(speed) {
    this.playing = true;
    if (!this.video || this.step >= this.outcome.steps) return;
    this.video.playbackRate = speed;
    this.video.play().catch((error) => {
      if (error.name !== "AbortError") throw error; // that one is a pause that came first
    });
  }

  pause() {
    this.playing = false;
    this.video?.pause();
  }

  paint(pen, colours) {
    const { replay, step } = this;
    paintTable(pen, colours, replay?.states[Math.min(step, replay.steps)]);
    if (!replay) return;
    const end = replay.chunk_starts.find((start) => start > step) ?? replay.steps;
    for (const action of replay.actions.slice(step, end)) dot(pen, action, 5, colours.accent);
  }

  /** Nobody waits for the episode any more. */
  leave() {
    this.abort?.abort();
    this.abort = null;
    this.pause();
    delete this.element.dataset.frame;
  }

  close() {
    this.leave();
    this.scene.close();
  }
}

/** Why there is nothing to be seen, and what to do. */
function missing({ refused, command }) {
  const parts = [h("p", {}, `The evaluation did not film this seed, and it cannot be rolled out again: ${refused}`)];
  if (command) parts.push(h("p", {}, "This films it:"), h("code", {}, command));
  return h("div", {}, parts);
}
