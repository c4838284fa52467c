"""Self-improvement: a policy learns from its own successes, round after round.

DIR/improvement.json         what was asked, and what came of each finished round
DIR/round_001/rollouts/      waves of episodes, deleted when the choice is made
DIR/round_001/rollouts.json  how every first attempt ended: a measurement of the policy that the round began with
DIR/round_001/episodes.npz   the episodes to learn from, demonstrations like any other
DIR/round_001/run/           a training run on the human and on all kept episodes so far
DIR/round_001/evaluation/    the round's policy on seeds for tuning

It joins training, simulation and evaluation, none of which knows of it.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from visuomotor.errors import ConfigError, mismatch
from visuomotor.evaluation.evaluate import summary
from visuomotor.files import write_json
from visuomotor.policy.checkpoint import load_policy, read_json
from visuomotor.policy.device import choose_device
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.recipe import Recipe
from visuomotor.simulation.demonstrations import FIRST_SEED, write_demonstrations
from visuomotor.simulation.gathering import gather, select, until_success
from visuomotor.simulation.pusht import MAX_STEPS
from visuomotor.stages import Stages, continued, evaluate_stage, origin, percent, training_of, training_seconds
from visuomotor.training.loop import train

SEEDS_PER_ROUND = 100_000
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
    ray: str | None = None,
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
        ray: Address of a Ray cluster whose workers roll out, as for `evaluate`.
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
    base = training_of(policy_source, preset_name)
    if base.episodes or base.tasks:  # they would choose among the kept episodes, too
        found = f"episodes {base.episodes}, tasks {base.tasks}"
        advice = "write those episodes as a data set of their own and name a preset"
        raise ConfigError(mismatch("policy", "one that was trained on all of its data", found, advice))
    if not from_scratch:
        base = continued(base, steps or STEPS, LEARNING_RATE, WARMUP)
    asked = {"steps": steps, "optimizer_lr": optimizer_lr, "threads": threads, "device": device}
    base = replace(base, **{name: value for name, value in asked.items() if value is not None})
    settings = {
        **origin(policy_source, sources),
        "preset": preset_name,
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
    stages = Stages(folder / "improvement.json", "an improvement", "rounds", settings, resume)
    kept = [_round(folder, number) / "episodes.npz" for number in range(1, rounds + 1)]
    for number in range(len(stages.finished) + 1, rounds + 1):
        place, run = _round(folder, number), _round(folder, number) / "run"
        present = str(_round(folder, number - 1) / "run" if number > 1 else policy_source)
        policy = load_policy(present, choose_device(device))
        first = seed + (number - 1) * SEEDS_PER_ROUND
        seeds = range(first, first + episodes_per_round)
        found = _roll_out(policy, place, seeds, attempts, keep, max_steps, ray, progress)
        observations = tuple(policy.config.input_features)
        initial = None if from_scratch else present
        training = replace(base, seed=base.seed + number, observations=observations, initial_policy=initial)
        train(Recipe(policy.config, training), [*sources, *kept[:number]], run, resume=True)
        found |= {"steps": base.steps, "training_seconds": training_seconds(run)}
        if evaluation_episodes:
            found["evaluation"] = evaluate_stage(
                run, place / "evaluation", evaluation_episodes, device, progress, max_steps
            )
        stages.add({"round": number, **found})
        if progress:
            print(table(stages.finished).splitlines()[-1], file=sys.stderr, flush=True)
    return stages.finished


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
        after = percent(line["evaluation"]) if "evaluation" in line else "not measured"
        seconds = f"{line['rollout_seconds']:.0f} + {line['training_seconds']:.0f}"
        numbers = (line["kept"], f"{line['mean_length']:.0f}", line["frames"], line["steps"])
        lines.append(form.format(line["round"], percent(line), *numbers, after, seconds))
    return "\n".join(lines)


def _roll_out(
    policy: DiffusionPolicy,
    place: Path,
    seeds: range,
    attempts: int,
    keep: float,
    max_steps: int,
    ray: str | None,
    progress: bool,
) -> dict[str, Any]:
    """Makes the round's episodes if they are not there yet, and returns what came of them."""
    outcome, episodes = place / "rollouts.json", place / "episodes.npz"
    if not episodes.exists():
        # With so many frames after the success, the last frame that a window starts from is the last one before it:
        # every state on the way is learned from, and no window's executed actions stand still at the end.
        after = policy.config.drop_n_last_frames
        tried, seconds = gather(
            policy,
            seeds,
            attempts,
            place / "rollouts",
            steps_after=after,
            max_steps=max_steps,
            ray=ray,
            device=str(policy.device),
            progress=progress,
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
        write_json(outcome, kept | found, durable=True)
        write_demonstrations(episodes, chosen)
    shutil.rmtree(place / "rollouts", ignore_errors=True)
    content = read_json(outcome)
    first, last = content["episodes"][0]["seed"], content["episodes"][-1]["seed"]
    return {"seeds": [first, last], **{name: content[name] for name in content if name != "episodes"}}


def _round(folder: Path, number: int) -> Path:
    return folder / f"round_{number:03d}"


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
