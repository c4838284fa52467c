// Watch: a policy drives Push-T live, and shows what it has in mind.

import { Cameras } from "./cameras.js";
import { Connection } from "./connection.js";
import { Controls } from "./controls.js";
import { Curves } from "./curves.js";
import { Denoising } from "./denoising.js";
import { h } from "./dom.js";
import { Grid } from "./grid.js";
import { Stage } from "./stage.js";

/** Opens the page in an element; what it returns closes it. `path` may name the policy. */
export function open(root, { about, tell, connected, path }) {
  let config = null; // of the policy, as the studio told it
  let plan = null;
  let lost = false;
  let refused = false;
  // the settings in force, and those of a new connection
  let asked = { policy: path[0] || about.policies[0], seed: 300011 };

  const send = (type, content) => connection.send(type, content);
  const set = (changes) => send("settings", { ...asked, ...changes });
  const controls = new Controls(about, set, send);
  const stage = new Stage(send);
  const grid = new Grid((seed) => set({ seed, episodes: 1 }));
  const denoising = new Denoising();
  const cameras = new Cameras();
  const curves = new Curves();

  const hears = {
    settings(message) {
      const { type, policy_config, ...settings } = message;
      config = policy_config;
      asked = settings;
      if (refused) tell();
      refused = false;
      controls.show(settings, config);
      stage.element.hidden = asked.episodes > 1;
      grid.element.hidden = asked.episodes === 1;
    },
    begin() {
      plan = null;
      for (const part of [stage, denoising, curves, grid]) part.begin();
      cameras.show(null, config);
    },
    plan(message) {
      plan = { ...message, now: config.n_obs_steps - 1, executed: config.n_action_steps };
      stage.plan(plan);
      denoising.plan(plan);
      curves.plan(plan);
      cameras.show(plan, config);
    },
    frame(message) {
      if (!message.episodes.length) return; // no policy could be loaded yet
      controls.frame(message);
      if (asked.episodes === 1) stage.frame(message);
      else grid.frame(message);
      curves.frame(message);
    },
    error(message) {
      refused = true;
      tell(message.text);
      controls.show(asked, config); // what was refused is not in force
    },
  };

  root.classList.add("watch");
  root.append(
    controls.element,
    h("div", { class: "stage" }, controls.transport, stage.element, grid.element),
    h("div", { class: "side" }, denoising.element, cameras.element, curves.element),
  );

  const connection = new Connection("/api/watch", {
    message: (message) => hears[message.type](message),
    state(state) {
      connected(state);
      root.inert = state === "lost";
      if (state === "lost") {
        lost = true;
        tell("The connection to the studio is lost. It is tried again; a studio that was stopped has to be started.");
      }
      if (state === "open") {
        if (lost) tell("Connected again; the episode began anew.", "good");
        lost = false;
        send("settings", asked);
      }
    },
  });
  const pressed = (event) => controls.pressed(event);
  addEventListener("keydown", pressed);

  return () => {
    removeEventListener("keydown", pressed);
    connection.close();
    for (const part of [stage, grid, denoising, curves]) part.close();
  };
}
