// Record: a hand drives the agent; episodes that are kept go into a data set.

import { Chart } from "./chart.js";
import { Connection } from "./connection.js";
import { field, h, number } from "./dom.js";
import { Driving } from "./driving.js";
import { Kept } from "./kept.js";
import { Training } from "./training.js";
import { FPS, SUCCESS, percent } from "./units.js";

const SEEDS = [1_000_000, 2 ** 31 - 1]; // smaller ones are for evaluation
const AGAIN = 3000; // milliseconds after which a folder that was refused is asked for again
const KEYS = { k: "keep", enter: "keep", r: "retry", x: "discard", delete: "discard" };
const LOST = "The connection to the studio is lost, and with it the episode under way. It is tried again; a studio "
  + "that was stopped has to be started.";

/** Opens the page in an element; what it returns closes it. */
export function open(root, { tell, connected }) {
  let begun = {}; // what a new connection begins with
  let next = null; // the seed of the episode after the one that is driven, where somebody has chosen it
  let steps = 0;
  let line = []; // coverage over time
  let lost = false;
  let refused = null; // the line that says why, while it is shown
  let timer = 0;

  const send = (type, content) => connection.send(type, content);
  const seed = number(SEEDS[0], ...SEEDS, choose);
  const driving = new Driving(send);
  const kept = new Kept(field("Seed", seed));
  const chart = new Chart("Coverage of the goal over time", { x: "s", low: 0, high: 1 });
  const training = new Training({ tell });
  const covered = h("span", { class: "aside" });
  const said = h("p", { class: "said" });
  const button = (text, action, keys, kind = "") => {
    const properties = { type: "button", class: kind, title: keys, onclick: () => end(action) };
    return h("button", properties, text, h("kbd", {}, keys[0]));
  };
  const keep = button("Keep", "keep", "K or Enter", "main");
  const retry = button("Retry", "retry", "R: the same seed again");
  const discard = button("Discard", "discard", "X or Delete: the next seed");
  const transport = h("div", { class: "transport" }, keep, retry, discard, said);
  const stage = h("div", { class: "stage" }, transport, driving.element);

  /** Only while the folder is this page's. */
  function enable(yes) {
    stage.inert = kept.element.inert = !yes;
  }

  /** A seed never ends an episode that is driven. */
  function choose(value) {
    next = steps ? value : null;
    if (steps) tell(`The episode under way goes on; seed ${value} is for the next one.`, "good");
    else send("begin", { seed: value });
  }

  function end(action) {
    if (stage.inert || transport.ariaBusy || (action !== "discard" && !steps)) return;
    transport.ariaBusy = "true";
    send(action);
  }

  const hears = {
    recordings(message) {
      kept.count(message);
      if (message.episodes) training.recorded(message.name, message.episodes, message.frames);
    },
    kept: (message) => kept.add(message),
    begin(message) {
      clearTimeout(timer);
      const another = next != null && message.seed !== begun.seed; // and not the same one again
      if (refused || another) tell();
      refused = transport.ariaBusy = null;
      begun = { seed: message.seed };
      seed.value = seed.defaultValue = next ?? message.seed;
      if (another) {
        send("begin", { seed: next });
        next = null;
      }
      line = [];
      driving.begin();
    },
    frame(message) {
      const [episode] = message.episodes;
      if (!episode) return; // the folder was refused
      enable(true);
      driving.frame(message);
      if (!line.length || episode.steps > steps) line.push([episode.steps / FPS, episode.coverage]);
      steps = episode.steps;
      chart.show({ lines: [{ points: line, kind: "line" }], levels: [SUCCESS], end: Math.max(10, steps / FPS) });
      covered.textContent = percent(episode.coverage);
      keep.disabled = retry.disabled = !steps;
      const state = episode.solved ? "solved" : message.running ? "recording" : steps ? "paused" : "ready";
      const kind = { solved: "good", recording: "accent" }[state] ?? "";
      const tail = ` · ${(steps / FPS).toFixed(1)} s · best ${percent(episode.best)}`;
      said.replaceChildren(h("b", { class: kind }, state), tail);
      Object.assign(transport.dataset, { state, steps, seed: episode.seed });
    },
    error({ text }) {
      transport.ariaBusy = null;
      if (text !== refused) tell(text);
      refused = text;
    },
  };

  root.classList.add("watch", "record");
  root.append(
    stage,
    h("div", { class: "side" }, kept.element,
      h("section", { class: "card" }, h("h2", {}, "Coverage", covered), chart.element), training.element),
  );
  enable(false);

  const connection = new Connection("/api/record", {
    message(message) {
      hears[message.type](message);
      const waits = message.type === "frame" && !message.episodes.length;
      if (!waits) return;
      clearTimeout(timer);
      timer = setTimeout(() => send("begin", begun), AGAIN);
    },
    state(state) {
      clearTimeout(timer); // or it would begin anew under the hand
      connected(state);
      if (state === "lost") {
        lost = true;
        enable(false);
        driving.release();
        tell(LOST);
      }
      if (state === "open") {
        if (lost) tell("Connected again; the episode began anew.", "good");
        lost = false;
        send("begin", begun);
      }
    },
  });
  const pressed = (event) => {
    const key = event.key.toLowerCase();
    const fields = "input, select, textarea";
    const own = event.target.closest(key === "enter" ? `${fields}, button, a, summary` : fields);
    if (!KEYS[key] || own || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    end(KEYS[key]);
  };
  addEventListener("keydown", pressed);

  return () => {
    removeEventListener("keydown", pressed);
    clearTimeout(timer);
    connection.close();
    for (const part of [driving, chart, training]) part.close();
  };
}
