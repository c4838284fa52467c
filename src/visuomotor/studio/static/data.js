// Data: episodes of a data set, scrubbed; what a training example sees of them; what may be wrong.

import { ask, choice, field, h, number } from "./dom.js";
import { Episodes } from "./episodes.js";
import { Inspection } from "./inspection.js";
import { Player } from "./player.js";
import { Plots } from "./plots.js";
import { Window } from "./window.js";

/** Opens the page in an element; what it returns closes it. `path` is source, episode and frame. */
export function open(root, { about, tell, path }) {
  let source = Math.max(0, Math.min(Number(path[0]) || 0, about.sources.length - 1));
  let overview = null;
  let position = 0;
  let closed = false;
  let asking = 0; // whoever asked last is answered

  const title = h("h1", {});
  const facts = h("p", { class: "soft" });
  const settings = { n_obs_steps: 2, horizon: 16, drop_n_last_frames: 7 };
  const setting = (name, most) =>
    number(settings[name], name === "drop_n_last_frames" ? 0 : 1, most, (value) => {
      settings[name] = value;
      look(player.frame);
    });
  const names = about.sources.map((name, index) => [index, name]);
  const chosen = choice(names, source, (value) => show(Number(value), 0, 0));
  const controls = h("form", { class: "controls data-controls", onsubmit: (event) => event.preventDefault() },
    field("Data set", chosen), field("Observed steps", setting("n_obs_steps", 64)),
    field("Horizon", setting("horizon", 256)), field("Frames dropped at the end", setting("drop_n_last_frames", 256)));
  const episodes = new Episodes((chosen) => turn(chosen, 0));
  const player = new Player((frame) => look(frame), trouble);
  const training = new Window();
  const plots = new Plots((frame) => player.go(frame));
  const inspection = new Inspection(trouble);
  const body = h("div", { class: "browse" }, episodes.element,
    h("div", { class: "side" },
      h("div", { class: "viewer" }, player.element, training.element), plots.element, inspection.element));
  root.append(controls, h("div", { class: "heading" }, title, facts), body);

  function trouble(error) {
    if (!closed) tell(error.message);
  }

  /** Opens another data set. */
  async function show(next, episode, frame) {
    const mine = ++asking;
    source = next;
    body.hidden = true;
    title.textContent = about.sources[source];
    facts.textContent = "opening …";
    tell();
    try {
      const found = await ask(`/api/data/${source}`);
      if (closed || mine !== asking) return;
      overview = found;
    } catch (error) {
      facts.textContent = "";
      if (mine === asking) trouble(error);
      return;
    }
    const seconds = overview.frames / overview.fps;
    const lasting = seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
    facts.textContent = [overview.version, `${overview.episodes.length} episodes`,
      `${overview.frames} frames at ${overview.fps} a second`, lasting].filter(Boolean).join(" · ");
    body.hidden = false;
    episodes.show(overview.episodes);
    inspection.show(source);
    if (overview.episodes.length) await turn(Math.min(episode, overview.episodes.length - 1), frame);
  }

  /** Opens another episode. */
  async function turn(next, frame) {
    const mine = ++asking;
    position = next;
    episodes.mark(position);
    try {
      const series = await ask(`/api/data/${source}/episodes/${position}`);
      if (closed || mine !== asking) return;
      plots.show(series, overview.fps);
      player.show(source, position, overview, frame);
    } catch (error) {
      if (mine === asking) trouble(error);
    }
  }

  /** Looks at a frame: everything on the page is in step with it. */
  async function look(frame) {
    history.replaceState(null, "", `#/data/${source}/${position}/${frame}`);
    plots.at(frame);
    const query = new URLSearchParams({ frame, ...settings });
    const [of, where] = [source, position];
    try {
      const found = await ask(`/api/data/${source}/episodes/${position}/window?${query}`);
      if (closed || of !== source || where !== position || frame !== player.frame) return;
      training.show(found, frame, player);
      plots.window(found);
    } catch (error) {
      trouble(error);
    }
  }

  show(source, Number(path[1]) || 0, Number(path[2]) || 0);
  return () => {
    closed = true;
    player.close();
    plots.close();
  };
}
