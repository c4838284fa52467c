"""The training loop. It serves every policy and task, and reads from top to bottom."""

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visuomotor.config import DiffusionConfig, Feature, Recipe, TrainingConfig, is_observed, nearest
from visuomotor.data.dataset import Dataset, load_dataset
from visuomotor.data.order import WindowOrder
from visuomotor.data.pusht_geometry import mirror
from visuomotor.errors import ConfigError, DatasetError, VisuomotorError, mismatch
from visuomotor.policy.checkpoint import newest_checkpoint
from visuomotor.policy.device import choose_device
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.normalization import Statistics
from visuomotor.policy.unet import ConditionalUnet1d
from visuomotor.policy.vision import RgbEncoder
from visuomotor.training.average import WeightAverage
from visuomotor.training.checkpoint import (
    Run,
    check_same,
    cut_metrics,
    load_checkpoint,
    read_run,
    save_checkpoint,
    write_run,
)
from visuomotor.training.metrics import Metrics


def train(recipe: Recipe, source: str | Path, output: str | Path, *, resume: bool = False) -> Path:
    """Trains a policy.

    Ctrl-C and SIGTERM save a checkpoint after the running step, then leave. A resumed run ends with the same bits as
    one that was never interrupted, on the same machine, device and number of threads.

    Args:
        recipe: The policy and how to train it, from `preset(name)` or your own.
        source: Demonstrations, as for `load_dataset`.
        output: The run's folder.
        resume: Go on from the newest checkpoint in `output`; begin if there is none.

    Returns:
        The last checkpoint's folder; `load_policy` takes it, or `output`.

    Raises:
        DatasetError: The demonstrations are damaged, or lack what the recipe observes.
        ConfigError: `output` holds a run already, or `resume` would change it.
        VisuomotorError: The loss is no longer finite.
    """
    run, config = Path(output), recipe.training
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    dataset = load_dataset(source)
    recipe = dataclasses.replace(recipe, policy=fill_features(recipe, dataset))
    for camera in recipe.policy.image_features:
        dataset.frames[camera]  # decoded now, so that a damaged video leaves no run behind
    newest = _open_run(run, Run(recipe, str(source)), resume)

    torch.manual_seed(config.seed)
    policy = DiffusionPolicy(recipe.policy, _statistics(dataset, recipe), pretrained=newest is None)
    policy = policy.to(device).train()
    average = WeightAverage(policy, config)
    for module in policy.modules():
        if isinstance(module, RgbEncoder):
            module.bfloat16_trunk = config.trunk_precision == "bfloat16"
        if config.compile and isinstance(module, RgbEncoder | ConditionalUnet1d):
            module.compile()
    optimizer = torch.optim.AdamW(
        policy.parameters(),
        lr=config.optimizer_lr,
        betas=config.optimizer_betas,
        eps=config.optimizer_eps,
        weight_decay=config.optimizer_weight_decay,
        fused=device in ("cpu", "cuda"),
    )
    first_step = load_checkpoint(newest, policy, average, optimizer) if newest else 0
    cut_metrics(run / "metrics.jsonl", first_step)

    anchors = dataset.anchors(recipe.policy.drop_n_last_frames)
    order = WindowOrder(anchors, config.batch_size, config.seed)
    steps = {name: recipe.policy.observation_steps for name in recipe.policy.input_features}
    steps["action"] = recipe.policy.action_steps
    checkpoint, saved_at = newest, first_step
    losses, since, seen = torch.zeros((), device=device), time.monotonic(), 0
    with Metrics(run, first_step, config.steps) as metrics, _stop_signals() as stop:
        for step in range(first_step, config.steps):
            generator = torch.Generator().manual_seed(_seed(config.seed, step))
            batch = dataset.batch(order.batch(step), steps)
            if config.augmentation == "pusht-mirror":
                batch = mirror(batch, torch.rand(config.batch_size, generator=generator) < 0.5)

            loss = policy.compute_loss(batch, generator, config.noise_draws)
            optimizer.zero_grad()
            loss.backward()
            gradient_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.grad_clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            optimizer.step()
            average.update(step)

            done = step + 1
            losses += loss.detach()
            seen += 1
            metrics.tick(done)
            last = done == config.steps or bool(stop)
            if last or done % config.log_every == 0 or done % config.save_every == 0:
                mean_loss = losses.item() / seen
                if not math.isfinite(mean_loss):
                    raise _not_finite(done, seen, order, checkpoint)
                values = {
                    "epoch": done * config.batch_size / len(anchors),
                    "loss": mean_loss,
                    "learning_rate": learning_rate(step, config),
                    "gradient_norm": gradient_norm.item(),
                    "samples_per_second": seen * config.batch_size / (time.monotonic() - since),
                }
                metrics.write(done, values)
                losses.zero_()
                since, seen = time.monotonic(), 0
            if last or done % config.save_every == 0:
                checkpoint = save_checkpoint(run, done, policy, average, optimizer, config.keep_checkpoints)
                saved_at = done
            if last:
                break
    if stop:
        print(f"stopped; step {saved_at} is saved in {checkpoint}; go on with --resume", file=sys.stderr)
        if stop[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + stop[0])
    assert checkpoint is not None
    return checkpoint


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then half a cosine to zero (diffusers' `get_cosine_schedule_with_warmup`)."""
    warmup = config.scheduler_warmup_steps
    if step < warmup:
        return config.optimizer_lr * step / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.optimizer_lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))


def fill_features(recipe: Recipe, dataset: Dataset) -> DiffusionConfig:
    """The recipe's policy with the features of the data set: those it observes, and the action.

    Raises:
        DatasetError: The data set lacks one of them.
    """
    known = dataset.features
    observed = recipe.training.observations or [name for name in known if is_observed(name, known[name])]
    for name in (*observed, "action"):
        if name not in known:
            advice = f"did you mean {nearest(name, known)}? Choose a preset that fits this data, or --observations"
            raise DatasetError(mismatch(f"{dataset.source}: {name}", "a feature", sorted(known), advice))
    return dataclasses.replace(
        recipe.policy,
        input_features={name: known[name] for name in observed},
        output_features={"action": known["action"]},
    )


def _open_run(run: Path, asked: Run, resume: bool) -> Path | None:
    """Makes the run's folder, or checks that the one there is this run; returns the checkpoint to go on from."""
    newest = newest_checkpoint(run) if run.exists() else None
    if newest and not resume:
        advice = "pass --resume to go on with it, or choose another --output"
        raise ConfigError(mismatch(str(run), "a folder without checkpoints", newest.name, advice))
    if newest:
        before = read_run(run)
        check_same(asked.recipe, before.recipe, run)
        steps = asked.recipe.training.steps
        if steps != before.recipe.training.steps:
            told = f"the learning rate's cosine now ends at step {steps}: the result is not that of one run of {steps}"
            print(told, file=sys.stderr)
    run.mkdir(parents=True, exist_ok=True)
    write_run(run, asked)
    return newest


def _statistics(dataset: Dataset, recipe: Recipe) -> Statistics:
    """The data set's statistics of the features in use; with reflected demonstrations, of both sides together."""
    used = [*recipe.policy.input_features, "action"]
    statistics = {name: dict(dataset.statistics[name]) for name in used}
    if recipe.training.augmentation == "pusht-mirror":
        for name in used:
            if recipe.policy.input_features.get(name, Feature("ACTION", ())).type != "VISUAL":
                # Low and high ends as a batch of two, so that the reflection maps the box they span.
                ends = torch.as_tensor(np.stack([statistics[name][key] for key in ("min", "max")]))
                both = torch.cat([ends, mirror({name: ends}, torch.ones(2, dtype=torch.bool))[name]])
                statistics[name] |= {"min": both.amin(0).numpy(), "max": both.amax(0).numpy()}
    return statistics


@contextmanager
def _stop_signals() -> Generator[list[int]]:
    """Yields a list that gets the number of the first SIGINT or SIGTERM; a second one acts as it always did."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: Any) -> None:
        caught.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs it there stops it in another way
        before.clear()
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])


def _not_finite(done: int, seen: int, order: WindowOrder, checkpoint: Path | None) -> VisuomotorError:
    rows = order.batch(done - 1)[:8].tolist()
    advice = f"lower optimizer_lr or look at the data of these windows; the last good state is {checkpoint}"
    expected = f"finite numbers in steps {done - seen + 1} to {done}"
    return VisuomotorError(mismatch("loss", expected, f"nan or inf (last rows {rows})", advice))
