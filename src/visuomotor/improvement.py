"""Self-improvement: a policy learns from its own successes, round after round.

DIR/improvement.json         what was asked, and what came of each finished round
DIR/round_001/rollouts/      waves of episodes, deleted when the choice is made
DIR/round_001/rollouts.json  how every first attempt ended: a measurement of the policy that the round began with
DIR/round_001/episodes.npz   the episodes to learn from, demonstrations like any other
DIR/round_001/run/           a training run on the human and on all kept episodes so far
DIR/round_001/evaluation/    the round's policy on seeds for tuning

It joins training, simulation and evaluation, none of which knows of it.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from visuomotor.data.joined import source_names
from visuomotor.errors import ConfigError, mismatch
from visuomotor.evaluation.evaluate import evaluate, summary
from visuomotor.files import sha256, write_json
from visuomotor.policy.checkpoint import find_policy, load_policy, newest_checkpoint, read_json
from visuomotor.policy.device import choose_device
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.presets import PRESETS, preset
from visuomotor.recipe import Recipe, TrainingConfig
from visuomotor.simulation.demonstrations import FIRST_SEED, write_demonstrations
from visuomotor.simulation.gathering import gather, select, until_success
from visuomotor.simulation.pusht import MAX_STEPS
from visuomotor.training.average import WeightAverage
from visuomotor.training.checkpoint import Run, read_run, save_checkpoint, write_run
from visuomotor.training.loop import train

FORMAT_VERSION = 1
SEEDS_PER_ROUND = 100_000
TUNING_SEED = 500_000
"""First seed of the evaluation after each round; published figures count from 100,000."""
STEPS, LEARNING_RATE, WARMUP = 4_000, 3e-4, 200  # of a round that goes on from the present weights


def improve(
    policy_source: str | Path,
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    rounds: int = 4,
    episodes_per_round: int = 400,
    attempts: int = 3,
    keep: float = 0.8,
    from_scratch: bool = False,
    steps: int | None = None,
    optimizer_lr: float | None = None,
    preset_name: str | None = None,
    seed: int = 2 * FIRST_SEED,
    evaluation_episodes: int = 200,
    max_steps: int = MAX_STEPS,
    resume: bool = False,
    threads: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Rolls a policy out, keeps what succeeded quickly, trains on that and on `data`, and does it again.

    A run that was killed at any moment goes on with `resume`, and ends with the same bits as one that was not.

    Args:
        policy_source: The policy to begin with, as for `load_policy`.
        data: What it was trained on, one source or several, as for `load_dataset`.
        output: The folder to write.
        rounds: How many in all; a resumed run may have more than it began with.
        episodes_per_round: Initial states a round, from seeds that no other round has.
        attempts: Episodes from each of them, with other noise; the shortest success counts.
        keep: The share of the solved initial states whose episode is kept, the shortest first.
        from_scratch: Train each round's policy from random weights, and not from those of the round before.
        steps: Optimizer steps a round; None takes 4,000, and from scratch the recipe's.
        optimizer_lr: Highest learning rate; None takes 3e-4, and from scratch the recipe's.
        preset_name: Whose batch size, augmentation and so on are taken; None takes those of the policy's own run, or of
            the preset with its name.
        seed: The first of round 1, 1,000,000 or more; each round begins 100,000 further on.
        evaluation_episodes: Of the round's policy, from seed 500,000 on; 0 leaves it out.
        max_steps: Steps after which an episode has failed.
        resume: Go on with what `output` holds; begin if it holds nothing.
        threads: Of torch; 0 leaves its choice. Results are equal for an equal number only.
        device: As for `train`.
        progress: Show bars, and a line for each round.

    Returns:
        `rounds` of improvement.json, in their order.

    Raises:
        ConfigError: A setting is out of range, `output` holds another improvement, or nothing ever succeeds.
        CheckpointError: The policy cannot be loaded.
        DatasetError: The demonstrations are damaged, or lack what the policy observes.
    """
    _check(rounds, episodes_per_round, attempts, keep, seed, evaluation_episodes)
    folder, sources = Path(output), [data] if isinstance(data, str | Path) else list(data)
    if threads:
        torch.set_num_threads(threads)
    base = _training(policy_source, preset_name)
    if not from_scratch:
        base = _continued(base, steps or STEPS)
    asked = {"steps": steps, "optimizer_lr": optimizer_lr, "threads": threads or None, "device": device}
    base = replace(base, **{name: value for name, value in asked.items() if value is not None})
    settings = {
        "policy": str(policy_source),
        "weights_sha256": sha256(find_policy(policy_source) / "model.safetensors"),
        "data": source_names(sources),
        "seed": seed,
        "episodes_per_round": episodes_per_round,
        "attempts": attempts,
        "keep": keep,
        "from_scratch": from_scratch,
        "steps": base.steps,
        "optimizer_lr": base.optimizer_lr,
        "evaluation_episodes": evaluation_episodes,
        "max_steps": max_steps,
    }
    finished = _open(folder, settings, resume)
    kept = [_round(folder, number) / "episodes.npz" for number in range(1, rounds + 1)]
    for number in range(len(finished) + 1, rounds + 1):
        place, run = _round(folder, number), _round(folder, number) / "run"
        policy = load_policy(_round(folder, number - 1) / "run" if number > 1 else policy_source, choose_device(device))
        first = seed + (number - 1) * SEEDS_PER_ROUND
        found = _roll_out(policy, place, range(first, first + episodes_per_round), attempts, keep, max_steps, progress)
        observations = tuple(policy.config.input_features)
        recipe = Recipe(policy.config, replace(base, seed=base.seed + number, observations=observations))
        if not from_scratch:
            _begin_from(policy, run, Run(recipe, source_names(sources)))
        train(recipe, [*sources, *kept[:number]], run, resume=True)
        found |= {"steps": base.steps, "training_seconds": _seconds(run / "metrics.jsonl")}
        if evaluation_episodes:
            found["evaluation"] = _evaluate(run, place / "evaluation", evaluation_episodes, max_steps, device, progress)
        finished.append({"round": number, **found})
        write_json(folder / "improvement.json", _content(settings, finished))
        if progress:
            print(table(finished).splitlines()[-1], file=sys.stderr, flush=True)
    return finished


def table(rounds: Sequence[dict[str, Any]]) -> str:
    """The rounds as lines of text. `before`: the rollouts of the policy that the round began with; `after`: the tuning
    seeds."""
    form = "{:>5}  {:>28}  {:>4}  {:>6}  {:>6}  {:>6}  {:>26}  {:>11}"
    heads = (
        "round",
        "success before, on new seeds",
        "kept",
        "length",
        "frames",
        "steps",
        "after, tuning seeds",
        "seconds",
    )
    lines = [form.format(*heads)]
    for line in rounds:
        after = _percent(line["evaluation"]) if "evaluation" in line else "not measured"
        seconds = f"{line['rollout_seconds']:.0f} + {line['training_seconds']:.0f}"
        numbers = (line["kept"], f"{line['mean_length']:.0f}", line["frames"], line["steps"])
        lines.append(form.format(line["round"], _percent(line), *numbers, after, seconds))
    return "\n".join(lines)


def _percent(measured: dict[str, Any]) -> str:
    low, high = measured["success_rate_interval"]
    return f"{100 * measured['success_rate']:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"


def _roll_out(
    policy: DiffusionPolicy,
    place: Path,
    seeds: range,
    attempts: int,
    keep: float,
    max_steps: int,
    progress: bool,
) -> dict[str, Any]:
    """Makes the round's episodes if they are not there yet, and returns what came of them."""
    outcome, episodes = place / "rollouts.json", place / "episodes.npz"
    if not episodes.exists():
        # With so many frames after the success, the last frame that a window starts from is the last one before it:
        # every state on the way is learned from, and no window's executed actions stand still at the end.
        after = policy.config.drop_n_last_frames
        tried, seconds = gather(
            policy, seeds, attempts, place / "rollouts", steps_after=after, max_steps=max_steps, progress=progress
        )
        chosen = select(tried, keep)
        if not chosen:
            advice = "begin from a better policy"
            found = f"none in {attempts * len(seeds)} episodes"
            raise ConfigError(mismatch("policy", "a success", found, advice))
        found = summary([until_success(episode) for episode in tried[0]])
        kept = {
            "kept": len(chosen),
            "mean_length": sum(episode.solved_in for episode in chosen) / len(chosen),
            "frames": sum(episode.steps for episode in chosen),
            "rollout_seconds": round(seconds, 1),
        }
        write_json(outcome, kept | found)
        write_demonstrations(episodes, chosen)
    shutil.rmtree(place / "rollouts", ignore_errors=True)
    content = read_json(outcome)
    first, last = content["episodes"][0]["seed"], content["episodes"][-1]["seed"]
    return {"seeds": [first, last], **{name: content[name] for name in content if name != "episodes"}}


def _begin_from(policy: DiffusionPolicy, run: Path, told: Run) -> None:
    """Lays a checkpoint after 0 steps, so that `train` goes on from the policy's weights."""
    if newest_checkpoint(run) is None:
        run.mkdir(parents=True, exist_ok=True)
        write_run(run, told)
        config = told.recipe.training
        average, optimizer = WeightAverage(policy, config), torch.optim.AdamW(policy.parameters())
        save_checkpoint(run, 0, policy, average, optimizer, losses={}, config=config)


def _evaluate(run: Path, place: Path, episodes: int, max_steps: int, device: str, progress: bool) -> dict[str, Any]:
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


def _training(policy_source: str | Path, preset_name: str | None) -> TrainingConfig:
    if preset_name is not None:
        return preset(preset_name).training
    for parent in find_policy(policy_source).resolve().parents[:3]:
        if (parent / "metrics.jsonl").is_file():
            return read_run(parent).recipe.training
    if str(policy_source) in PRESETS:
        return preset(str(policy_source)).training
    advice = f"name the one whose batch size and augmentation to take, of {list(PRESETS)}"
    raise ConfigError(mismatch(f"{policy_source}: preset", "a training run or a shipped policy", "neither", advice))


def _continued(training: TrainingConfig, steps: int) -> TrainingConfig:
    """The same training with a schedule for weights that are good already: short, lower, down to zero."""
    warmup = max(1, min(WARMUP, steps // 10))
    return replace(
        training,
        steps=steps,
        optimizer_lr=LEARNING_RATE,
        scheduler_name="cosine",
        scheduler_warmup_steps=warmup,
        scheduler_decay_steps=None,
    )


def _open(folder: Path, settings: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
    """The finished rounds; makes the folder if it is new."""
    file = folder / "improvement.json"
    if not file.exists():
        write_json(file, _content(settings, []))
        return []
    if not resume:
        advice = "pass --resume to go on with it, or choose another --output"
        raise ConfigError(mismatch(str(folder), "a folder without an improvement", "one", advice))
    content = read_json(file)
    if content.get("format_version") != FORMAT_VERSION:
        found = content.get("format_version")
        raise ConfigError(mismatch(f"{file}: format_version", FORMAT_VERSION, found, "use the same version"))
    before = content["settings"]
    changed = [name for name, value in settings.items() if before.get(name) != value]
    if changed:
        expected = ", ".join(f"{name} {before.get(name)}" for name in changed)
        found = ", ".join(f"{name} {settings[name]}" for name in changed)
        raise ConfigError(mismatch(f"--resume of {folder}", expected, found, "keep these, or begin in a new folder"))
    return content["rounds"]


def _content(settings: dict[str, Any], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, "settings": settings, "rounds": rounds}


def _round(folder: Path, number: int) -> Path:
    return folder / f"round_{number:03d}"


def _seconds(metrics: Path) -> float:
    """What the training took, over all its starts; each counts from 0 again."""
    counts = [json.loads(line)["seconds"] for line in metrics.read_text().splitlines()]
    ends = [now for now, later in pairwise(counts) if later < now]
    return round(sum(ends) + counts[-1], 1)


def _check(rounds: int, episodes: int, attempts: int, keep: float, seed: int, evaluation_episodes: int) -> None:
    rules = [
        (rounds >= 1, "rounds", "1 or more", rounds, "ask for some"),
        (1 <= episodes <= SEEDS_PER_ROUND, "episodes_per_round", f"1 to {SEEDS_PER_ROUND}", episodes, "400 is usual"),
        (attempts >= 1, "attempts", "1 or more", attempts, "ask for some"),
        (0 < keep <= 1, "keep", "a share in (0, 1]", keep, "1 keeps a success of every initial state"),
        (
            seed >= FIRST_SEED,
            "seed",
            f"{FIRST_SEED} or more",
            seed,
            "those below are for evaluation: a policy must not be taught from what it is measured on",
        ),
        (evaluation_episodes >= 0, "evaluation_episodes", "0 or more", evaluation_episodes, "0 leaves it out"),
    ]
    for holds, name, expected, found, advice in rules:
        if not holds:
            raise ConfigError(mismatch(name, expected, found, advice))
