"""Work in stages, each a training that begins from a policy that there is: what `improve` and `distill` share.

Their folder has one JSON file with what was asked and what came of each finished stage, so that a stopped one goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from visuomotor.data.dataset import load_dataset
from visuomotor.data.joined import source_names
from visuomotor.errors import ConfigError, mismatch
from visuomotor.evaluation.evaluate import evaluate
from visuomotor.files import sha256, write_json
from visuomotor.policy.checkpoint import find_policy, read_config, read_json
from visuomotor.presets import PRESET_OF, PRESETS, preset
from visuomotor.recipe import Recipe, TrainingConfig
from visuomotor.simulation.pusht import MAX_STEPS
from visuomotor.training.checkpoint import read_run
from visuomotor.training.loop import fill_features
from visuomotor.training.resume import columns_sha256

FORMAT_VERSION = 1
TUNING_SEED = 500_000
"""First seed of the evaluation after each stage; published figures count from 100,000."""


class Stages:
    """The finished ones, in their file.

    Args:
        file: Made if it is new.
        what: It holds, with its article, such as `an improvement`.
        name: Of the list of stages in it, such as `rounds`.
        settings: What shapes the result.
        resume: Go on with what is there.

    Attributes:
        finished: What came of each.

    Raises:
        ConfigError: The file is there and `resume` is False, or it was begun with other settings.
    """

    def __init__(self, file: Path, what: str, name: str, settings: dict[str, Any], resume: bool):
        self._file, self._name, self._settings = file, name, settings
        self.finished: list[dict[str, Any]] = []
        if not file.exists():
            self._write()
            return
        if not resume:
            advice = "pass --resume to go on with it, or choose another --output"
            raise ConfigError(mismatch(str(file.parent), f"a folder without {what}", "one", advice))
        content = read_json(file)
        if content.get("format_version") != FORMAT_VERSION:
            found = content.get("format_version")
            raise ConfigError(mismatch(f"{file}: format_version", FORMAT_VERSION, found, "use the same version"))
        before = content["settings"]
        changed = [name for name, value in settings.items() if before.get(name, value) != value]
        for place, content_hash in (("policy", "weights_sha256"), ("data", "data_sha256")):
            if place in changed and before.get(content_hash) == settings[content_hash]:
                changed.remove(place)  # it has moved, or goes by another name
        if changed:
            expected = ", ".join(f"{name} {before.get(name)}" for name in changed)
            found = ", ".join(f"{name} {settings[name]}" for name in changed)
            advice = "keep these, or begin in a new folder"
            raise ConfigError(mismatch(f"--resume of {file.parent}", expected, found, advice))
        self.finished = content[self._name]

    def add(self, stage: dict[str, Any]) -> None:
        """Notes that one is finished."""
        self.finished.append(stage)
        self._write()

    def _write(self) -> None:
        content = {"format_version": FORMAT_VERSION, "settings": self._settings, self._name: self.finished}
        write_json(self._file, content, durable=True)


def origin(policy_source: str | Path, sources: Sequence[str | Path]) -> dict[str, Any]:
    """Of the settings: the policy to begin with and its data, by name and by content.

    Raises:
        CheckpointError: The policy cannot be read.
        DatasetError: The demonstrations are damaged, or lack what the policy observes.
    """
    folder, dataset = find_policy(policy_source), load_dataset(sources)
    policy = read_config(folder)
    observed = TrainingConfig(observations=tuple(policy.input_features))
    return {
        "policy": str(policy_source),
        "weights_sha256": sha256(folder / "model.safetensors"),
        "data": source_names(sources),
        "data_sha256": columns_sha256(dataset, fill_features(Recipe(policy, observed), dataset)),
    }


def evaluate_stage(
    run: Path, place: Path, episodes: int, device: str, progress: bool, max_steps: int = MAX_STEPS
) -> dict[str, Any]:
    """Success of a stage's policy on seeds for tuning, measured once."""
    if (place / "eval.json").is_file():
        found = read_json(place / "eval.json")
    else:
        found = evaluate(
            run,
            output=place,
            episodes=episodes,
            seed=TUNING_SEED,
            max_steps=max_steps,
            videos=0,
            device=device,
            progress=progress,
        )
    return {name: found[name] for name in ("success_rate", "success_rate_interval", "mean_max_reward")}


def training_of(policy_source: str | Path, preset_name: str | None) -> TrainingConfig:
    """How a policy was trained: by its run, or its preset.

    Where that began, who taught it, and what hung on its machine (sharding, a CUDA graph) is left out.

    Raises:
        ConfigError: Neither is known, and `preset_name` is None.
    """
    if preset_name is not None:
        return preset(preset_name).training
    for parent in find_policy(policy_source).resolve().parents[:3]:
        if (parent / "metrics.jsonl").is_file():
            own = read_run(parent).recipe.training
            machine = {"sharding": "none", "sharded_checkpoints": False, "cuda_graph": False}
            return replace(own, initial_policy=None, teacher=None, **machine)
    name = PRESET_OF.get(str(policy_source), str(policy_source))
    if name in PRESETS:
        return preset(name).training
    advice = f"name the one whose batch size and augmentation to take, of {list(PRESETS)}"
    raise ConfigError(mismatch(f"{policy_source}: preset", "a training run or a shipped policy", "neither", advice))


def continued(training: TrainingConfig, steps: int, optimizer_lr: float, warmup: int) -> TrainingConfig:
    """The same training with a schedule for weights that are good already (`initial_policy`): short, lower, to zero."""
    return replace(
        training,
        steps=steps,
        optimizer_lr=optimizer_lr,
        scheduler_name="cosine",
        scheduler_warmup_steps=max(1, min(warmup, steps // 10)),
        scheduler_decay_steps=None,
    )


def training_seconds(run: Path) -> float:
    """What a training took, in all its sessions."""
    return round(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["seconds"], 1)


def percent(measured: Mapping[str, Any]) -> str:
    """A rate of success with its interval, for tables."""
    low, high = measured["success_rate_interval"]
    return f"{100 * measured['success_rate']:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"
