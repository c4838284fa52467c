"""Success against the number of denoising steps, for every sampler that fits a policy.

    .venv/bin/python benchmarks/sampling.py pusht-keypoints-small --output outputs/sampling --threads 2
    .venv/bin/python benchmarks/sampling.py pusht-keypoints-small --output outputs/sampling --threads 2 \\
        --only DDIM-warm-0.25 DDIM-warm-0.5 DDIM-warm-0.75 --steps 2 4 8 16

All points are measured on the same episodes, from tuning seeds (500000 on), and compared with the policy's own sampler
and steps episode by episode. Each is added to DIR/sampling.json as soon as it is there, and what is in it is not
measured again: the same command goes on, another adds to it. DIR/sampling.md has the table, DIR/sampling.svg the
picture, DIR/warm_start.svg that of warm starts.

The milliseconds are those of one chunk for one episode, encoding included: the median of 30, on `--threads` threads,
with whatever else runs on the machine. With a warm start, calls and milliseconds are those of all chunks but the first.
"""

import argparse
import math
import statistics
import time
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import FIRST_SEED, against, open_record, solved, success

from visuomotor.config import DPM, FLOW
from visuomotor.errors import VisuomotorError
from visuomotor.evaluation.evaluate import summary
from visuomotor.files import write_bytes, write_json
from visuomotor.policy.checkpoint import find_policy, load_policy, weights_sha256
from visuomotor.policy.diffusion import DiffusionPolicy, moved_on
from visuomotor.simulation.pusht import PushT, observe
from visuomotor.simulation.rollout import rollout

STEPS = (1, 2, 3, 4, 6, 8, 10, 16, 32)
MOST_STEPS = 100
"""Of DDPM alone, whose recipe it is."""
SAMPLERS = ("DDPM", "DDIM", DPM, FLOW)
CURVES: dict[str, dict[str, Any]] = {
    **{name: {"noise_scheduler_type": name} for name in SAMPLERS},
    **{f"DDIM-eta-{eta:g}": {"noise_scheduler_type": "DDIM", "ddim_eta": eta} for eta in (0.5, 1.0)},
    **{
        f"{name}-warm-{share:g}": {"noise_scheduler_type": name, "warm_start": share}
        for name in ("DDIM", DPM, FLOW)
        for share in (0.25, 0.5, 0.75)
    },
}
PLAIN: dict[str, Any] = {"ddim_eta": 0.0, "warm_start": 1.0}
COLOURS = ("#2563eb", "#b45309", "#178048", "#9333ea", "#be123c", "#0891b2", "#64748b", "#a16207", "#4d7c0f", "#c026d3")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 56, 16, 16, 44


class Sampling:
    """The points so far, and how the next one is measured."""

    def __init__(self, options: argparse.Namespace):
        folder = find_policy(options.policy)
        self.options, self.folder, self.policy = options, Path(options.output), load_policy(folder)
        self.file = self.folder / "sampling.json"
        settings = {name: getattr(options, name) for name in ("policy", "episodes", "max_steps", "threads")}
        settings |= {"weights_sha256": weights_sha256(folder)}
        self.record = open_record(self.file, settings, points={})
        config = self.policy.config
        own = config.num_inference_steps or config.num_train_timesteps
        self.baseline: tuple[str, int] = (config.noise_scheduler_type, own)

    def plan(self) -> list[tuple[str, int]]:
        """What to measure: the policy's own sampler and steps first, then each curve that fits, step by step."""
        flow = self.policy.config.noise_scheduler_type == FLOW
        most = self.policy.config.num_train_timesteps
        points: list[tuple[str, int]] = [self.baseline]
        for name in self.options.only or SAMPLERS:
            if (CURVES[name]["noise_scheduler_type"] == FLOW) == flow:
                further = (MOST_STEPS,) if name == "DDPM" and not self.options.steps else ()
                points += [(name, steps) for steps in (*(self.options.steps or STEPS), *further) if steps <= most]
        return list(dict.fromkeys(points))

    def measure(self, name: str, steps: int) -> None:
        """Evaluates one point, and adds it to the file."""
        policy = self.policy.with_sampler(**(PLAIN | CURVES[name]), num_inference_steps=steps)
        point: dict[str, Any] = {"network_calls": len(policy.denoising_steps(warm=policy.config.warm_start < 1))}
        point["milliseconds"] = round(1000 * _seconds_a_chunk(policy), 2)
        begun = time.perf_counter()
        seeds = range(FIRST_SEED, FIRST_SEED + self.options.episodes)
        try:
            figures = summary(rollout(policy, seeds, max_steps=self.options.max_steps, progress=True))
            point |= {key: value for key, value in figures.items() if key != "episodes"}
            point["solved"] = solved(figures["episodes"])
        except VisuomotorError as error:  # such as actions that are no numbers: a result too
            point["failed"] = str(error)
        point["evaluation_seconds"] = round(time.perf_counter() - begun, 1)
        self.record["points"].setdefault(name, {})[str(steps)] = point
        write_json(self.file, self.record)
        write_bytes(self.folder / "sampling.md", (self.table() + "\n").encode())
        points = self.record["points"]
        plain = {key: curve for key, curve in points.items() if "warm" not in key}
        warm = {key: curve for key, curve in points.items() if any(f"{key}-warm" in other for other in points)}
        warm |= {key: curve for key, curve in points.items() if "warm" in key}
        for file, curves in (("sampling.svg", plain), ("warm_start.svg", warm)):
            if curves:
                write_bytes(self.folder / file, picture(curves).encode())

    def table(self) -> str:
        """Markdown: a line a point, each curve in the order of its steps."""
        own = f"{self.baseline[0]} {self.baseline[1]}"
        rows = [
            f"| sampler | steps | calls | ms a chunk | success (95 %) | mean max reward | against {own} (95 %) |",
            "|---|---|---|---|---|---|---|",
        ]
        points = self.record["points"]
        reference = points.get(self.baseline[0], {}).get(str(self.baseline[1]), {})
        for name, curve in points.items():
            for steps, point in sorted(curve.items(), key=lambda item: int(item[0])):
                cells = [name, steps, str(point["network_calls"]), f"{point['milliseconds']:.1f}"]
                if "failed" in point:
                    cells += [f"failed: {point['failed']}", "", ""]
                else:
                    compared = point is not reference and "solved" in reference
                    difference = against(reference, point) if compared else ""
                    cells += [success(point), f"{point['mean_max_reward']:.3f}", difference]
                rows.append(f"| {' | '.join(cells)} |")
        return "\n".join(rows)


def picture(points: dict[str, Any]) -> str:
    """Success over network calls a chunk, on a logarithmic axis, as an SVG of its own; bands are 95 % intervals."""
    curves = {}
    for name, curve in points.items():
        ordered = [point for _, point in sorted(curve.items(), key=lambda item: int(item[0]))]
        curves[name] = [point for point in ordered if "failed" not in point]
    calls = sorted({point["network_calls"] for curve in curves.values() for point in curve}) or [1]
    most = max(calls[-1], 2)
    body = ""
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
        y = _y(share)
        body += f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        body += f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>'
    told = math.inf
    for number in reversed(calls):
        x = _x(number, most)
        if told - x > 18:  # numbers that would touch are left out
            body += f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number}</text>'
            told = x
    for row, (name, curve) in enumerate(curves.items()):
        colour, height = COLOURS[row % len(COLOURS)], HEIGHT - BOTTOM - 14 - 16 * (len(curves) - 1 - row)
        body += _curve(name, curve, most, colour)
        body += f'<rect x="{WIDTH - 220}" y="{height - 5}" width="18" height="3" fill="{colour}"/>'
        body += f'<text x="{WIDTH - 196}" y="{height}">{escape(name)}</text>'
    across, up = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="success over calls of the network"><style>text { fill: #6b7686; font: 12px system-ui, '
        "sans-serif; } .grid { stroke: #8a94a3; stroke-opacity: 0.3; }</style>"
        f'{body}<text x="{across}" y="{HEIGHT - 8}" text-anchor="middle">calls of the network a chunk</text>'
        f'<text transform="translate(14,{up}) rotate(-90)" text-anchor="middle">success</text></svg>\n'
    )


def _curve(name: str, points: list[dict[str, Any]], most: int, colour: str) -> str:
    """A line, its band, and a dot a point that tells its figures."""
    across = [_x(point["network_calls"], most) for point in points]
    middle = [_y(point["success_rate"]) for point in points]
    low, high = ([_y(point["success_rate_interval"][end]) for point in points] for end in (0, 1))
    band = _places(across + across[::-1], low + high[::-1])
    body = f'<polygon points="{band}" fill="{colour}" opacity="0.12"/>'
    body += f'<polyline points="{_places(across, middle)}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for x, y, point in zip(across, middle, points, strict=True):
        said = f"{escape(name)}, {point['network_calls']} calls: {point['success_rate']:.1%}"
        body += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{said}</title></circle>'
    return body


def _places(xs: list[float], ys: list[float]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))


def _x(calls: int, most: int) -> float:
    return LEFT + math.log(calls) / math.log(most) * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _seconds_a_chunk(policy: DiffusionPolicy) -> float:
    """The median of 30 plans for one episode, after three that warm up."""
    state = PushT().reset(FIRST_SEED)
    observed = observe(np.stack([[state] * policy.config.n_obs_steps]), policy.config.input_features)
    observation = {name: torch.from_numpy(values) for name, values in observed.items()}
    previous, seconds = None, []
    for _ in range(33):
        begun = time.perf_counter()
        plan = policy.plan(observation, previous=previous)
        seconds.append(time.perf_counter() - begun)
        previous = moved_on(plan, policy.config.n_action_steps)
    return statistics.median(seconds[3:])


def main() -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="as for `visuomotor eval`")
    parser.add_argument("--output", required=True, help="folder for sampling.json, sampling.md and sampling.svg")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--max-steps", type=int, default=300, help="after which an episode has failed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="+", metavar="N", help=f"in place of {STEPS}")
    parser.add_argument(
        "--only", nargs="+", choices=CURVES, metavar="CURVE", help=f"of {', '.join(CURVES)}; else those without -"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sampling = Sampling(options)
    sampling.folder.mkdir(parents=True, exist_ok=True)
    for name, steps in sampling.plan():
        if str(steps) not in sampling.record["points"].get(name, {}):
            print(f"{name}, {steps} steps ...", flush=True)
            sampling.measure(name, steps)
    print(sampling.table())


if __name__ == "__main__":
    main()
