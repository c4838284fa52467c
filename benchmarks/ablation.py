"""What each lever is worth: `pusht-keypoints-small` with one thing changed, in shortened trainings on the human data.

    .venv/bin/python benchmarks/ablation.py lerobot/pusht_keypoints --output outputs/ablation --threads 2

Every variant is measured on the same episodes, from tuning seeds (500000 on), and compared with the baseline episode by
episode. Each result is added to DIR/ablation.json as soon as it is there. What is in it is not done again, and a
training that was stopped goes on: the same command goes on with all of it.

The intervals are those of the episodes. What another training would give is seen in `another-seed`, which changes
nothing but the seed; and of twenty variants that change nothing, one lies outside its interval.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from results import FIRST_SEED, against, open_record, solved, success

from visuomotor.errors import LossError
from visuomotor.evaluation.evaluate import summary
from visuomotor.files import write_json
from visuomotor.policy.checkpoint import load_policy, read_tensors
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.presets import preset
from visuomotor.recipe import Recipe
from visuomotor.simulation.rollout import rollout
from visuomotor.training.lock import lock
from visuomotor.training.loop import train

BASELINE = "baseline"
TRANSFORMER = {"denoiser": "transformer", "transformer_dim": 128}  # of 256 a step takes several times the U-Net's


@dataclass(frozen=True)
class Variant:
    """What differs from the baseline; without `policy` and `training` its own checkpoint acts, otherwise."""

    policy: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    acting: dict[str, Any] = field(default_factory=dict)
    paced: bool = False
    """As many steps as the baseline's time allows."""
    averaged: bool = True
    """Whether the average of the weights acts, or the weights themselves."""

    @property
    def trained(self) -> bool:
        """Whether it has a training of its own."""
        return bool(self.policy or self.training)


VARIANTS = {
    BASELINE: Variant(),
    "another-seed": Variant(training={"seed": 1}),
    "no-mirror": Variant(training={"augmentation": "none"}),
    "no-loss-mask": Variant({"do_mask_loss_for_padding": False}),
    "drop-0": Variant({"drop_n_last_frames": 0}),
    "drop-14": Variant({"drop_n_last_frames": 14}),  # no window reaches beyond the end; the baseline drops 7
    "drop-0-no-loss-mask": Variant({"drop_n_last_frames": 0, "do_mask_loss_for_padding": False}),
    "sample": Variant({"prediction_type": "sample"}),
    "velocity": Variant({"prediction_type": "v_prediction"}),
    "one-observation": Variant({"n_obs_steps": 1}),
    "velocity-one-observation": Variant({"prediction_type": "v_prediction", "n_obs_steps": 1}),
    "flow": Variant({"prediction_type": "v_prediction", "noise_scheduler_type": "FlowMatchEuler"}),
    "transformer": Variant(TRANSFORMER),
    "transformer-lr-3e-4": Variant(TRANSFORMER, {"optimizer_lr": 3e-4}),
    "transformer-equal-time": Variant(TRANSFORMER, paced=True),
    "transformer-256-equal-time": Variant({"denoiser": "transformer"}, paced=True),
    "ema-power-0.6": Variant(training={"ema_power": 0.6}),
    "ema-power-0.9": Variant(training={"ema_power": 0.9}),
    "ema-max-decay-0.99": Variant(training={"ema_max_decay": 0.99}),
    "lr-half": Variant(training={"optimizer_lr": 5e-4}),
    "lr-double": Variant(training={"optimizer_lr": 2e-3}),
    "batch-128-equal-time": Variant(training={"batch_size": 128}, paced=True),
    "batch-512-equal-time": Variant(training={"batch_size": 512}, paced=True),
    "no-ema": Variant(averaged=False),
    **{f"ddim-{steps}": Variant(acting={"num_inference_steps": steps}) for steps in (4, 8, 32, 100)},
    **{
        f"ddpm-{steps}": Variant(acting={"noise_scheduler_type": "DDPM", "num_inference_steps": steps})
        for steps in (16, 100)
    },
    **{f"execute-{steps}": Variant(acting={"n_action_steps": steps}) for steps in (4, 6, 12)},
}


class Ablation:
    """The results so far, and how the next one is made."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.folder = options, Path(options.output)
        self.file = self.folder / "ablation.json"
        settings = {name: getattr(options, name) for name in ("data", "preset", "steps", "episodes", "threads")}
        self.record = open_record(self.file, settings, steps={}, results={})

    def measure(self, name: str) -> None:
        """Trains and evaluates a variant, and adds it to the file."""
        variant, changes = VARIANTS[name], {}
        for part in (variant.policy, variant.training, variant.acting):
            changes |= part
        result: dict[str, Any] = {"changes": changes}
        try:
            policy, result["steps"], result["training_seconds"] = self._policy(name)
            begun = time.perf_counter()
            seeds = range(FIRST_SEED, FIRST_SEED + self.options.episodes)
            figures = summary(rollout(policy, seeds, progress=True))
            result["evaluation_seconds"] = round(time.perf_counter() - begun, 1)
            result |= {key: value for key, value in figures.items() if key != "episodes"}
            result["solved"] = solved(figures["episodes"])
        except LossError as error:
            result["failed"] = str(error)  # a training that diverges is a result too
        self.record["results"][name] = result
        write_json(self.file, self.record)

    def _policy(self, name: str) -> tuple[DiffusionPolicy, int, float]:
        """What acts, and the steps and seconds that it was trained."""
        variant = VARIANTS[name]
        owner = name if variant.trained else BASELINE
        recipe = self._recipe(VARIANTS[owner])
        if variant.paced:
            if name not in self.record["steps"]:
                self.record["steps"][name] = self._paced_steps(recipe)
                write_json(self.file, self.record)  # before the training, so that it goes on with as many
            recipe = replace(recipe, training=replace(recipe.training, steps=self.record["steps"][name]))
        run = self.folder / owner
        checkpoint = train(recipe, self.options.data, run, resume=True)  # at once where it is done already
        policy = load_policy(checkpoint / "policy")
        if not variant.averaged:
            state = read_tensors(checkpoint / "training" / "state.safetensors")
            own = {key.removeprefix("weights."): value for key, value in state.items() if key.startswith("weights.")}
            policy.load_state_dict(own)
        return policy.with_sampler(**variant.acting), recipe.training.steps, round(_seconds(run, recipe), 1)

    def _recipe(self, variant: Variant) -> Recipe:
        recipe = preset(self.options.preset)
        # The warm-up is that of `demo`, as long a training: the preset's is meant for one seven times as long.
        changes = {"steps": self.options.steps, "scheduler_warmup_steps": 200, "threads": self.options.threads}
        changes |= {"device": "cpu"} | variant.training
        policy = replace(recipe.policy, **{"prediction_type": "epsilon"} | variant.policy)  # `demo` has another
        return Recipe(policy, replace(recipe.training, **changes))

    def _paced_steps(self, recipe: Recipe) -> int:
        """How many steps take the baseline's time, from short trials in turn."""
        rates: dict[str, list[float]] = {"baseline": [], "this": []}
        for _ in range(2):
            for who, trial in (("baseline", self._recipe(VARIANTS[BASELINE])), ("this", recipe)):
                short = replace(trial.training, steps=min(30, trial.training.steps), log_every=1)
                with tempfile.TemporaryDirectory() as folder:
                    train(replace(trial, training=short), self.options.data, folder)
                    rates[who] += [line["samples_per_second"] / short.batch_size for line in _lines(Path(folder))]
        per_second = {who: statistics.median(found) for who, found in rates.items()}
        return max(1, round(self.options.steps * per_second["this"] / per_second["baseline"]))

    def table(self) -> str:
        """Markdown: a line a variant, in the order in which they were measured."""
        rows = [
            "| variant | success (95 %) | mean max reward | against the baseline (95 %) | training |",
            "|---|---|---|---|---|",
        ]
        results = self.record["results"]
        for name, result in results.items():
            if "failed" in result:
                rows.append(f"| {name} | failed: {result['failed']} | | | |")
                continue
            compared = name != BASELINE and "solved" in results.get(BASELINE, {})
            difference = against(results[BASELINE], result) if compared else ""
            trained = VARIANTS[name].trained or name == BASELINE
            spent = f"{result['steps']} steps, {result['training_seconds']:.0f} s" if trained else "the baseline's"
            rows.append(f"| {name} | {success(result)} | {result['mean_max_reward']:.3f} | {difference} | {spent} |")
        return "\n".join(rows)


def _lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _seconds(run: Path, recipe: Recipe) -> float:
    """Of the training alone, however often it was stopped."""
    total, before = 0.0, 0.0
    for line in _lines(run):
        total += (line["step"] - before) * recipe.training.batch_size / line["samples_per_second"]
        before = line["step"]
    return total


def main() -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the human demonstrations with key points, as for `visuomotor train --data`")
    parser.add_argument("--output", required=True, help="folder for ablation.json and the trainings")
    parser.add_argument("--preset", default="pusht-keypoints-small")
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="NAME", help=f"of {', '.join(VARIANTS)}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with lock(Path(options.output)):
        ablation = Ablation(options)
        for name in options.only or VARIANTS:
            if name not in ablation.record["results"]:
                print(f"{name} ...", flush=True)
                ablation.measure(name)
                print(ablation.table().splitlines()[-1], flush=True)
        print(ablation.table())


if __name__ == "__main__":
    main()
