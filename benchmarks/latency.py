"""Milliseconds of one chunk with encoding, batch 1: LeRobot and each of our engines, in turn.

    make benchmarks DATA=PUSHT.zarr.zip  # makes LeRobot's environment, and runs this and the others
    .venv/bin/python benchmarks/latency.py --lerobot .venv-lerobot/bin/python --threads 2

The first two cases are the published recipe and the small U-Net with the same random weights for everybody
(`save_lerobot`), and 10 steps of DDIM. The third sets the shipped image policy as it acts by default against LeRobot's
small U-Net as that acts by default, with 100 steps of DDPM. Observations are those of two steps at 96 x 96, as floats,
both encoded. Every measurement is a process of its own, of so many seconds after three uncounted chunks; a round
takes each once, and the medians of the rounds' medians are printed.

int8 is calibrated on random observations, which changes no time. What it costs in success is measured by

    visuomotor export pusht-image-small --format openvino --output outputs/float32
    visuomotor export pusht-image-small --format openvino --int8 --data lerobot/pusht --output outputs/int8
    visuomotor eval outputs/float32 --episodes 500 --output outputs/float32-eval
    visuomotor eval outputs/int8 --episodes 500 --output outputs/int8-eval

and `visuomotor.evaluation.intervals.compare` of the two `eval.json`.
"""

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from visuomotor import load_policy, preset, save_policy
from visuomotor.config import Feature
from visuomotor.deployment.export import PACKAGES, export_policy
from visuomotor.evaluation.evaluate import versions
from visuomotor.files import write_json
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.lerobot_export import save_lerobot

CASES = {"published recipe, 263M": (512, 1024, 2048), "U-Net 128-256-512": (128, 256, 512)}
SHIPPED = "pusht-image-small"
ENGINES = ("torch", "onnx", "openvino", "int8")
SHAPES = {"observation.image": (3, 96, 96), "observation.state": (2,)}
MEASURE = """
import json, sys, time
import torch
who, source, threads, seconds, shapes = sys.argv[1:]
torch.set_num_threads(int(threads))
if who == "LeRobot":
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    policy = DiffusionPolicy.from_pretrained(source).eval()
else:
    from visuomotor import load_policy
    policy = load_policy(source)
policy.reset()
random = torch.Generator().manual_seed(0)
seen = {name: torch.rand(1, 2, *shape, generator=random) for name, shape in json.loads(shapes).items()}
times, end = [], None
while end is None or time.perf_counter() < end or len(times) < 8:
    began = time.perf_counter()
    policy.predict_action_chunk(dict(seen))
    times.append(time.perf_counter() - began)
    if len(times) == 3:
        end = time.perf_counter() + float(seconds)
print("measured", json.dumps(times[3:]))
"""


def main() -> None:
    """Prints a table of medians and ratios, and writes JSON beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lerobot", required=True, help="the Python of LeRobot's environment")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, SHIPPED], default=[*CASES, SHIPPED])
    parser.add_argument("--work", type=Path, help="keeps the exported policies, and takes those that are there")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("latency.json"))
    options = parser.parse_args()
    freeze = subprocess.run([options.lerobot, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    theirs = dict(line.split("==", 1) for line in freeze.splitlines() if re.match(r"(lerobot|torch|numpy)==", line))
    results = {"threads": options.threads, "cases": {}, "versions": versions() | engines(), "lerobot versions": theirs}
    print(f"{'ms a chunk':24}" + "".join(f"{who:>18}" for who in ("LeRobot", *ENGINES)))
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases:
            sources = prepare(case, options.work or Path(folder))
            runs: dict[str, list[float]] = {who: [] for who in sources}
            for _ in range(options.rounds):
                for who, source in sources.items():
                    runs[who].append(measure(who, source, options))
            medians = {who: statistics.median(found) for who, found in runs.items()}
            results["cases"][case] = {"rounds": runs, "medians": medians}
            ratios = {who: medians["LeRobot"] / found for who, found in medians.items()}
            told = (f"{1000 * medians[who]:.1f} ({ratios[who]:.2f} x)" for who in sources)
            print(f"{case:24}" + "".join(f"{words:>18}" for words in told), flush=True)
            write_json(options.output, results)


def prepare(case: str, work: Path) -> dict[str, Path]:
    """Who is measured with the policy in which folder; those that are there already are taken."""
    folder = work / case.replace(" ", "-").replace(",", "")
    if case == SHIPPED:
        ours, theirs = load_policy(SHIPPED), random_policy(CASES["U-Net 128-256-512"]).with_sampler("DDPM", 100)
    else:
        ours = theirs = random_policy(CASES[case]).with_sampler("DDIM", 10)
    sources = {who: folder / who for who in ("LeRobot", *ENGINES)}
    if not sources["LeRobot"].exists():
        save_lerobot(theirs, sources["LeRobot"])
    if not sources["torch"].exists():
        save_policy(ours, sources["torch"])
    for who in ("onnx", "openvino"):
        if not sources[who].exists():
            export_policy(ours, sources[who], who)
    if not sources["int8"].exists():
        batch = {name: torch.rand(64, 2, *shape) for name, shape in SHAPES.items()} | {"action": torch.rand(64, 16, 2)}
        export_policy(ours, sources["int8"], "openvino", batch)
    return sources


def random_policy(dims: tuple[int, ...]) -> DiffusionPolicy:
    """The published recipe with such a U-Net and random weights, for observations and actions from 0 to 1."""
    config = dataclasses.replace(
        preset("pusht-image").policy,
        down_dims=dims,
        input_features={
            name: Feature("VISUAL" if len(shape) == 3 else "STATE", shape) for name, shape in SHAPES.items()
        },
        output_features={"action": Feature("ACTION", (2,))},
    )
    torch.manual_seed(0)
    features = config.input_features | config.output_features
    numbers = {"min": 0.0, "max": 1.0, "mean": 0.5, "std": 0.25}
    stored = {
        name: {kind: np.full((*one.shape[:1], 1, 1)[: len(one.shape)], value) for kind, value in numbers.items()}
        for name, one in features.items()
    }
    return DiffusionPolicy(config, stored, pretrained=False).eval()


def measure(who: str, source: Path, options: argparse.Namespace) -> float:
    """Median seconds of a chunk, in a process of its own."""
    python = options.lerobot if who == "LeRobot" else sys.executable
    command = [python, "-c", MEASURE, who, str(source), str(options.threads), str(options.seconds), json.dumps(SHAPES)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = re.findall(r"^measured (.*)$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise SystemExit(
            f"{who}, after {time.monotonic() - began:.0f} s:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        )
    return statistics.median(json.loads(found[0]))


def engines() -> dict[str, str]:
    """The versions of the engines."""
    from importlib.metadata import version

    return {package: version(package) for package in ("nncf", *PACKAGES["onnx"], *PACKAGES["openvino"])}


if __name__ == "__main__":
    main()
