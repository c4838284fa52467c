"""Distillation: a policy that acts in one or two steps of denoising, taught by one that takes many.

DIR/distillation.json        what was asked, and what came of each finished stage
DIR/teacher/                 the policy as it acts in the first stage
DIR/stage_08/run/            a training run of the student of 8 steps, taught by the policy or by the stage before
DIR/stage_08/evaluation/     its student on seeds for tuning

It joins training and evaluation, as `improve` does.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from visuomotor.config import FLOW, DiffusionConfig
from visuomotor.errors import ConfigError, mismatch
from visuomotor.policy.checkpoint import find_policy, load_policy, save_policy
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.recipe import Recipe
from visuomotor.stages import Stages, continued, evaluate_stage, origin, percent, training_of, training_seconds
from visuomotor.training.evaluations import check_simulated
from visuomotor.training.loop import train

STEPS, LEARNING_RATE, WARMUP = 8_000, 3e-4, 200


def distill(
    policy_source: str | Path,
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    inference_steps: int = 2,
    halvings: int = 3,
    steps: int | None = None,
    optimizer_lr: float | None = None,
    preset_name: str | None = None,
    evaluation_episodes: int = 200,
    resume: bool = False,
    threads: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Teaches students that take half of their teacher's steps each, until one takes as few as wanted.

    Progressive distillation (Salimans and Ho 2022). The first teacher is the policy with DDIM in
    `inference_steps * 2 ** halvings` steps. Students predict the velocity, because noise says nothing of clean actions
    at the step where there is nothing else. A run that was killed goes on with `resume`, and ends with the same bits.

    Args:
        policy_source: The policy, as for `load_policy`.
        data: What it was trained on, one source or several, as for `load_dataset`.
        output: The folder to write.
        inference_steps: Of the last student.
        halvings: Students in all.
        steps: Optimizer steps of each; None takes 8,000.
        optimizer_lr: Highest learning rate; None takes 3e-4.
        preset_name: Whose batch size, augmentation and so on are taken; None takes those of the policy's own run, or of
            the preset with its name.
        evaluation_episodes: Of each student, from seed 500,000 on; 0 leaves it out.
        resume: Go on with what `output` holds; begin if it holds nothing.
        threads: Of torch; 0 leaves its choice. Results are equal for an equal number only.
        device: As for `train`.
        progress: Show bars, and a line for each stage.

    Returns:
        `stages` of distillation.json, in their order.

    Raises:
        ConfigError: A setting is out of range, or `output` holds another distillation.
        CheckpointError: The policy cannot be loaded.
        DatasetError: The demonstrations are damaged, or lack what the policy observes.
    """
    folder, sources = Path(output), [data] if isinstance(data, str | Path) else list(data)
    policy = load_policy(policy_source)
    _check(policy, inference_steps, halvings, evaluation_episodes)
    if evaluation_episodes:
        check_simulated("evaluation_episodes", policy.config)
    if threads:
        torch.set_num_threads(threads)
    steps = STEPS if steps is None else steps
    optimizer_lr = LEARNING_RATE if optimizer_lr is None else optimizer_lr
    base = continued(training_of(policy_source, preset_name), steps, optimizer_lr, WARMUP)
    base = replace(base, threads=threads, device=device, observations=tuple(policy.config.input_features))
    settings = {
        **origin(policy_source, sources),
        "preset": preset_name,
        "inference_steps": inference_steps,
        "halvings": halvings,
        "steps": base.steps,
        "optimizer_lr": base.optimizer_lr,
        "evaluation_episodes": evaluation_episodes,
    }
    stages = Stages(folder / "distillation.json", "a distillation", "stages", settings, resume)
    teacher = folder / "teacher"
    if not teacher.exists():
        flow = policy.config.noise_scheduler_type == FLOW
        save_policy(policy.with_sampler(None if flow else "DDIM", inference_steps * 2**halvings), teacher)
    for number in range(halvings):
        taken = inference_steps * 2 ** (halvings - 1 - number)
        place = folder / f"stage_{taken:02d}"
        run = place / "run"
        if number == len(stages.finished):
            taught = replace(base, seed=base.seed + number, teacher=str(teacher), initial_policy=str(teacher))
            train(Recipe(_student(load_policy(teacher)), taught), sources, run, resume=True)
            found = {"inference_steps": taken, "steps": base.steps, "training_seconds": training_seconds(run)}
            if evaluation_episodes:
                found["evaluation"] = evaluate_stage(run, place / "evaluation", evaluation_episodes, device, progress)
            stages.add(found)
            if progress:
                print(table(stages.finished).splitlines()[-1], file=sys.stderr, flush=True)
        teacher = find_policy(run)
    return stages.finished


def table(stages: Sequence[dict[str, Any]]) -> str:
    """The students as lines of text, with their success on the tuning seeds."""
    form = "{:>15}  {:>14}  {:>26}  {:>7}"
    lines = [form.format("inference steps", "optimizer steps", "success, tuning seeds", "seconds")]
    for line in stages:
        success = percent(line["evaluation"]) if "evaluation" in line else "not measured"
        lines.append(form.format(line["inference_steps"], line["steps"], success, f"{line['training_seconds']:.0f}"))
    return "\n".join(lines)


def _student(teacher: DiffusionPolicy) -> DiffusionConfig:
    """A policy that takes every other of the teacher's steps."""
    steps = teacher.denoising_steps()[::2]
    changes: dict[str, Any] = {"num_inference_steps": len(steps), "prediction_type": "v_prediction"}
    if teacher.config.noise_scheduler_type != FLOW:  # whose steps are evenly spaced, however many they are
        changes["timesteps"] = tuple(steps)
    return replace(teacher.config, **changes)


def _check(policy: DiffusionPolicy, inference_steps: int, halvings: int, evaluation_episodes: int) -> None:
    first, most = inference_steps * 2**halvings, policy.config.num_train_timesteps
    # DDIM's steps are whole: 64 of 100 are the last 64, and would begin far from noise.
    begin = (first - 1) * (most // max(first, 1))
    near = policy.config.noise_scheduler_type == FLOW or first <= 8 or 5 * begin >= 4 * most
    rules = [
        (inference_steps >= 1, "inference_steps", "1 or more", inference_steps, "2 is usual"),
        (halvings >= 1, "halvings", "1 or more", halvings, "3 go from 16 steps to 2"),
        (first <= most, "inference_steps * 2 ** halvings", f"at most {most}", first, "ask for fewer halvings"),
        (near, "inference_steps * 2 ** halvings", "steps that begin near noise", f"{first}, from {begin} on", "try 16"),
        (evaluation_episodes >= 0, "evaluation_episodes", "0 or more", evaluation_episodes, "0 leaves it out"),
    ]
    for holds, name, expected, found, advice in rules:
        if not holds:
            raise ConfigError(mismatch(name, expected, found, advice))
