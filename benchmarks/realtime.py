"""Push-T in real time, under a virtual clock: three ways of joining chunks, with injected latencies and jitter.

    .venv/bin/python benchmarks/realtime.py --output outputs/realtime --threads 1

The agent is commanded ten times a second while planning takes the latency, with jitter between half and one and a half
of it. Every setting is measured on the same episodes, from tuning seeds (500000 on), with the same latencies. Each
result is added to DIR/realtime.json as soon as it is there, and what is in it is not done again; then DIR/realtime.md
and DIR/realtime.svg are written.

Jerk is the length of the third difference of the actions sent, times 10 Hz cubed: pixels per second cubed. At a seam
are the three of them that span the step from one chunk to the next, where the new one is joined; away from seams are
all others. Where a plan comes earlier than reckoned with, the first actions of `rtc` are still those of the old chunk,
and the step comes after the seam: the figure over all actions holds it too. Until the first plan is there the agent is
told to stay where it is; these actions do not count.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import FIRST_SEED, against, open_record, solved, success

from visuomotor.deployment.guidance import plan
from visuomotor.deployment.joining import Course, RealtimeConfig, Request
from visuomotor.evaluation.charts import HEIGHT, WIDTH, Line, chart
from visuomotor.evaluation.evaluate import summary
from visuomotor.evaluation.page import STYLE
from visuomotor.files import write_bytes, write_json
from visuomotor.policy.checkpoint import find_policy, load_policy, weights_sha256
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.simulation.pusht import FPS, MAX_STEPS, PushT, observe
from visuomotor.simulation.rollout import Episode, chunk_noise

LATENCIES = (0, 100, 200, 400)
"""Milliseconds."""
JITTERS = (0.0, 0.5)
"""Largest part by which a latency is more or less than its mean."""
WAYS = ("switch", "blend", "rtc")
KINDS = {"switch": "second", "blend": "truth", "rtc": "line"}
"""Colours in the picture."""
JERKS = ("jerk_at_seams", "jerk_away", "jerk")
SIDE = 3
"""Third differences that span a seam."""


@dataclass
class Trial:
    """One episode, as it goes."""

    episode: Episode
    course: Course
    environment: PushT = field(default_factory=PushT)
    seams: list[int] = field(default_factory=list)
    """Steps whose action is the first of a chunk that follows another."""
    coming: tuple[float, float, Request, np.ndarray] | None = None
    """The plan under way: the tick at which it is there, the seconds it takes, what was asked, and what it will be."""

    def collect(self) -> None:
        """Joins the plan if it is there by now."""
        if self.coming is not None and self.coming[0] <= self.course.tick + 1e-9:
            _, seconds, request, actions = self.coming
            self.coming = None
            self.course.deliver(request, actions, seconds)

    def step(self) -> None:
        """Sends this tick's action."""
        sent = self.course.act()
        action = self.episode.states[-1][:2].astype(np.float32) if sent.action is None else sent.action
        if sent.joined:
            self.seams.append(self.episode.steps)
        state, coverage = self.environment.step(action)
        self.episode.states.append(state)
        self.episode.actions.append(action)
        self.episode.coverages.append(coverage)


def run(
    policy: DiffusionPolicy,
    seeds: Sequence[int],
    config: RealtimeConfig,
    latency: float,
    jitter: float,
    *,
    max_steps: int = MAX_STEPS,
    batch: int = 32,
) -> list[Trial]:
    """One episode a seed, all under one virtual clock: requests of the same tick are planned together.

    Args:
        policy: For Push-T.
        seeds: Decide initial states, noise and latencies.
        config: How to act.
        latency: Seconds from an observation to the plan that follows from it.
        jitter: Largest part by which it is more or less, uniformly.
        max_steps: Of an episode that is not solved before.
        batch: Plans a call; the shape never changes.
    """
    shape = policy.config
    sizes = {"horizon": shape.horizon, "n_obs_steps": shape.n_obs_steps, "n_action_steps": shape.n_action_steps}
    trials = [Trial(Episode(int(seed)), Course(config, **sizes)) for seed in seeds]
    for trial in trials:
        trial.episode.states.append(trial.environment.reset(trial.episode.seed))
    running = list(trials)
    while running:
        asked = []
        for trial in running:
            trial.collect()
            request = trial.course.request()
            if request is not None:
                asked.append((trial, request))
        for first in range(0, len(asked), batch):
            group = asked[first : first + batch]
            for (trial, request), actions in zip(group, _plan(policy, group, config, batch), strict=True):
                drawn = np.random.default_rng((trial.episode.seed, request.number, 1)).uniform(-jitter, jitter)
                seconds = latency * (1 + drawn)
                trial.coming = request.tick + seconds * FPS, seconds, request, actions
                trial.collect()
        for trial in running:
            trial.step()
        running = [one for one in running if not one.episode.success and one.episode.steps < max_steps]
    return trials


def _plan(
    policy: DiffusionPolicy, group: list[tuple[Trial, Request]], config: RealtimeConfig, batch: int
) -> np.ndarray:
    """(len(group), Tp, 2)."""
    shape = (policy.noise_draws(), policy.config.horizon, 2)
    states, noise = [], []
    for trial, request in group:
        past = [max(0, request.tick + step) for step in policy.config.observation_steps]
        states.append([trial.episode.states[tick] for tick in past])
        noise.append(chunk_noise(trial.episode.seed, request.number, shape))
    rows = np.minimum(np.arange(batch), len(group) - 1)  # the last one again and again fills the batch
    seen = observe(np.array(states), policy.config.input_features)
    observation = {name: torch.from_numpy(values[rows]) for name, values in seen.items()}
    priors = [group[row][1].prior for row in rows]
    return plan(policy, observation, priors, config, torch.from_numpy(np.stack(noise, 1)[:, rows]))[: len(group)]


def figures(trials: Sequence[Trial]) -> dict[str, Any]:
    """Success, deadlines and jerk of some episodes."""
    found = summary([trial.episode for trial in trials])
    seams, away = [], []
    for trial in trials:
        waited = trial.course.counts.waited
        jerk = np.linalg.norm(np.diff(np.array(trial.episode.actions[waited:], np.float64), 3, axis=0), axis=1) * FPS**3
        # Difference i spans actions i to i + 3: the last of those that span the step to action j is i = j - 1.
        spans = np.zeros(len(jerk), bool)
        for seam in trial.seams:
            last = seam - waited - 1
            spans[max(0, last - SIDE + 1) : last + 1] = True
        seams.append(jerk[spans])
        away.append(jerk[~spans])
    counts = [trial.course.counts for trial in trials]
    return {
        "success_rate": found["success_rate"],
        "success_rate_interval": found["success_rate_interval"],
        "mean_max_reward": found["mean_max_reward"],
        "solved": solved(found["episodes"]),
        "ticks": sum(count.ticks for count in counts),
        "plans": sum(count.joined for count in counts),
        "missed": sum(count.missed for count in counts),
        "late_ticks": sum(count.late for count in counts),
        "held_ticks": sum(count.held for count in counts),
        "jerk_at_seams": _spread(np.concatenate(seams)),
        "jerk_away": _spread(np.concatenate(away)),
        "jerk": _spread(np.concatenate([*seams, *away])),
    }


def _spread(values: np.ndarray) -> list[float] | None:
    """Median and 95th percentile."""
    return [round(float(value), 1) for value in np.quantile(values, (0.5, 0.95))] if len(values) else None


def name(way: str, latency: int, jitter: float) -> str:
    """Of a setting."""
    return f"{way}, {latency} ms" + (f" +-{jitter:.0%}" if jitter else "")


SETTINGS = {
    name(way, latency, jitter): (way, latency, jitter)
    for jitter in JITTERS
    for latency in LATENCIES
    for way in WAYS
    if latency or not jitter
}


def table(results: dict[str, Any]) -> str:
    """Markdown: a line a setting. Success is compared with plain switching at the same latency."""
    rows = [
        "| latency | joining | success (95 %) | against switch (95 %) | missed deadlines, of chunks | "
        "jerk at seams, median (95th) | away from seams | of all actions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, (way, latency, jitter) in SETTINGS.items():
        if key not in results:
            continue
        result, plain = results[key], results.get(name("switch", latency, jitter))
        difference = "" if way == "switch" or plain is None else against(plain, result)
        jerks = [f"{pair[0]:,.0f} ({pair[1]:,.0f})" if pair else "" for pair in (result[which] for which in JERKS)]
        spread = f" ± {jitter:.0%}" if jitter else ""
        rows.append(
            f"| {latency} ms{spread} | {way} | {success(result)} | {difference} | "
            f"{result['missed']} of {result['plans']} | {' | '.join(jerks)} |"
        )
    return "\n".join(rows)


def picture(results: dict[str, Any]) -> str:
    """Success and jerk at the seams over latency, with and without jitter: an SVG that stands by itself."""
    panels = []
    for jitter in JITTERS:
        suffix = f" ms ± {jitter:.0%}" if jitter else " ms"
        for key, label in (("success_rate", "success, %"), ("jerk_at_seams", "median jerk at seams, kpx/s³")):
            lines = []
            for way in WAYS:
                points = []
                for latency in LATENCIES:
                    found = results.get(name(way, latency, jitter if latency else 0.0), {}).get(key)
                    if found is not None:
                        points.append((latency, 100 * found if key == "success_rate" else found[0] / 1000))
                lines.append(Line([points], KINDS[way]))
            panels.append(chart(lines, f"latency,{suffix}", label) or "<svg/>")
    placed = ""
    for index, panel in enumerate(panels):
        x, y = index % 2 * WIDTH, 24 + index // 2 * HEIGHT
        size = f'x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}"'
        placed += panel.replace("<svg", f"<svg {size}", 1)
    key = "".join(
        f'<path class="{KINDS[way]}" d="M{x},12h18"/><text x="{x + 24}" y="16">{escape(way)}</text>'
        for x, way in zip((20, 110, 200), WAYS, strict=True)
    )
    width, height = 2 * WIDTH, 24 + 2 * HEIGHT
    style = f"{STYLE.partition('* {')[0]}{STYLE[STYLE.index('svg text') :].partition('.key')[0]}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif">'
        f'<style>{style}</style><rect width="{width}" height="{height}" fill="var(--card)"/>{key}{placed}</svg>\n'
    )


def _open(options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """What has been measured so far."""
    settings = {key: getattr(options, key) for key in ("policy", "late", "episodes", "threads", "batch")}
    settings |= {"max_guidance": options.max_guidance, "plan_spread": options.plan_spread}
    settings |= {"weights_sha256": weights_sha256(find_policy(options.policy))}
    return open_record(file, settings, results={})


def main() -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder for realtime.json, realtime.md and realtime.svg")
    parser.add_argument("--policy", default="pusht-keypoints-small")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--late", default="continue", choices=("continue", "hold"))
    parser.add_argument("--max-guidance", type=float, default=RealtimeConfig.max_guidance)
    parser.add_argument("--plan-spread", type=float, default=RealtimeConfig.plan_spread)
    parser.add_argument("--batch", type=int, default=32, help="plans a call")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, metavar="NAME", help=f"of {'; '.join(SETTINGS)}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = Path(options.output)
    record = _open(options, folder / "realtime.json")
    policy = load_policy(options.policy)
    for key in options.only or SETTINGS:
        if key in record["results"]:
            continue
        way, latency, jitter = SETTINGS[key]
        guidance = {"max_guidance": options.max_guidance, "plan_spread": options.plan_spread}
        config = RealtimeConfig(FPS, joining=way, late=options.late, **guidance)
        begun = time.perf_counter()
        seeds = range(FIRST_SEED, FIRST_SEED + options.episodes)
        found = figures(run(policy, seeds, config, latency / 1000, jitter, batch=options.batch))
        record["results"][key] = found | {"seconds": round(time.perf_counter() - begun, 1)}
        write_json(folder / "realtime.json", record)
        print(f"{key}: {found['success_rate']:.1%}, {record['results'][key]['seconds']} s", flush=True)
    print(table(record["results"]))
    write_bytes(folder / "realtime.md", (table(record["results"]) + "\n").encode())
    write_bytes(folder / "realtime.svg", picture(record["results"]).encode())


if __name__ == "__main__":
    main()
