"""The training loop. It serves every policy and task, and reads from top to bottom."""

import dataclasses
import signal
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visuomotor.config import DiffusionConfig, Feature, is_observed, nearest
from visuomotor.data.dataset import Dataset, Source
from visuomotor.data.joined import source_names
from visuomotor.data.loading import prefetch, send
from visuomotor.data.order import WindowOrder, run_leaders, shared_frames
from visuomotor.data.pusht_geometry import mirror
from visuomotor.data.resident import place
from visuomotor.data.selection import load_selection, unconditioned
from visuomotor.errors import ConfigError, DatasetError, mismatch
from visuomotor.policy.checkpoint import load_policy, load_weights
from visuomotor.policy.device import choose_device, has_bfloat16, is_cuda
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.distillation import Halving
from visuomotor.policy.draws import Draws, Shared
from visuomotor.policy.normalization import Statistics
from visuomotor.policy.transformer import DiffusionTransformer
from visuomotor.policy.unet import ConditionalUnet1d
from visuomotor.policy.vision import RgbEncoder, running_statistics
from visuomotor.recipe import Recipe
from visuomotor.training.average import WeightAverage
from visuomotor.training.checkpoint import Run, load_checkpoint, save_checkpoint
from visuomotor.training.evaluations import Evaluations
from visuomotor.training.graph import StepGraph, check_graph
from visuomotor.training.lock import lock
from visuomotor.training.losses import Losses, name_windows
from visuomotor.training.metrics import Metrics
from visuomotor.training.processes import Processes
from visuomotor.training.resume import check_run, fingerprint, open_run
from visuomotor.training.schedule import decay_start, learning_rate, set_rate
from visuomotor.training.sharding import whole
from visuomotor.training.signals import stop_signals
from visuomotor.training.validation import split_windows, validation_loss

Part = tuple[dict[str, Tensor], Draws, Tensor | None]
"""Of a batch: its windows, all else that is random, and which windows are reflected."""


def train(recipe: Recipe, source: Source, output: str | Path, *, resume: bool = False) -> Path:
    """Trains a policy.

    Ctrl-C and SIGTERM save a checkpoint after the running step, then leave. A resumed run ends with the same bits as
    one that was never interrupted, on the same machine, device and number of threads; on a GPU to rounding.

    Args:
        recipe: The policy and how to train it, from `preset(name)` or your own.
        source: Demonstrations, as for `load_dataset`.
        output: The run's folder.
        resume: Go on from the newest good checkpoint in `output`; begin if there is none.

    Returns:
        The last checkpoint's folder; `load_policy` takes it, or `output`.

    Raises:
        DatasetError: The demonstrations are damaged, lack what the recipe observes, or are not those of the run.
        ConfigError: `output` holds a run already, another process trains there, or `resume` would change the run.
        CheckpointError: No checkpoint of the run is good, or the disk is full.
        LossError: The loss is not finite.
    """
    run, config = Path(output), recipe.training
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    processes = Processes(config, device)
    device = processes.device
    on_gpu = is_cuda(device)
    if config.cuda_graph:
        check_graph(device, processes.count)
    with processes.main_first():
        dataset = load_selection(source, config.episodes, config.tasks, resize=recipe.policy.resize_shape)
        recipe = dataclasses.replace(recipe, policy=fill_features(recipe, dataset))
    names = source_names(source)
    places = [Path(name).expanduser().resolve() for name in names] if isinstance(names, list) else []
    if config.validation_episodes and len(set(places)) < len(places):
        advice = "name each source once, or hold nothing out"
        found = f"{names}: episodes held out would be trained on as well"
        raise ConfigError(mismatch("validation_episodes", "sources that differ", found, advice))
    windows, held_out = split_windows(dataset, recipe)
    with processes.main_first():
        if processes.main:
            check_run(run, recipe, resume)
        for camera in recipe.policy.image_features:
            dataset.frames[camera]  # decoded now, so that a damaged video leaves no run behind
    if processes.main and not config.observations and dataset.demonstrations.left_out:
        lost = ", ".join(dataset.demonstrations.left_out)
        print(f"cameras left out, because not every source has them: {lost}", file=sys.stderr)
    if processes.main and (told := unconditioned(dataset.demonstrations)):
        print(told, file=sys.stderr)
    teacher = load_policy(config.teacher, device) if config.teacher else None
    statistics = teacher.statistics if teacher else _statistics(dataset, recipe)
    asked = Run(recipe, names, fingerprint(dataset, recipe, len(windows), statistics))

    with ExitStack() as stack:
        if processes.main:
            stack.enter_context(lock(run))
        newest = processes.from_main(lambda: open_run(run, asked, resume))
        torch.manual_seed(config.seed)
        fresh = newest is None and config.initial_policy is None
        policy = DiffusionPolicy(recipe.policy, statistics, pretrained=fresh)
        if newest is None and config.initial_policy is not None:
            load_weights(policy, config.initial_policy)
        policy = processes.place(policy).train()
        average = WeightAverage(policy, config)
        asks = config.trunk_precision == "bfloat16"
        bfloat16 = asks and has_bfloat16(device)
        if asks and not bfloat16 and processes.main and recipe.policy.image_features:
            print("trunk_precision: float32 here, because bfloat16 would be slower", file=sys.stderr)
        for module in policy.modules():
            if isinstance(module, RgbEncoder):
                module.bfloat16_trunk = bfloat16
            if config.compile and isinstance(module, RgbEncoder | ConditionalUnet1d | DiffusionTransformer):
                module.compile()
        optimizer = torch.optim.AdamW(
            policy.parameters(),
            # A tensor, because a graph would keep the number of its recording.
            lr=torch.tensor(config.optimizer_lr, device=device) if config.cuda_graph else config.optimizer_lr,
            betas=config.optimizer_betas,
            eps=config.optimizer_eps,
            weight_decay=config.optimizer_weight_decay,
            fused=on_gpu or device == "cpu",
            capturable=config.cuda_graph,
        )
        first_step, noted = load_checkpoint(newest, policy, average, optimizer) if newest else (0, None)
        model = processes.wrap(Halving(policy, teacher) if teacher else policy)

        order = WindowOrder(windows, config.batch_size, config.seed, config.consecutive_windows)
        steps = dict.fromkeys(recipe.policy.input_features, recipe.policy.observation_steps)
        steps["action"] = recipe.policy.action_steps
        losses = Losses(
            optimizer,
            skip=config.nonfinite_loss == "skip",
            place=lambda step: name_windows(dataset, order.batch(step)),
            run=run,
            noted=noted,
            asynchronous=on_gpu,
            statistics=running_statistics(policy),
        )
        metrics = stack.enter_context(Metrics(run, first_step, recipe, silent=not processes.main))
        evaluations = stack.enter_context(Evaluations(run, recipe, metrics.show))
        stop = stack.enter_context(stop_signals())
        checkpoint, stopped = newest, False

        kept = place(dataset, steps, device, wanted=config.data_device == "auto") if on_gpu else dataset

        def gather(step: int) -> list[Part]:
            generator = torch.Generator().manual_seed(_seed(config.seed, step))
            mirrored = (
                torch.rand(config.batch_size, generator=generator) < 0.5 if config.augmentation != "none" else None
            )
            draws = policy.draw(config.batch_size, generator, config.noise_draws)
            anchors, batch = order.batch(step), []
            if config.consecutive_windows > 1:  # of the whole batch, so that it does not matter how it is divided
                leaders = torch.from_numpy(run_leaders(anchors))
                draws = draws.following(leaders)
                mirrored = None if mirrored is None else mirrored[leaders]
            for part in processes.parts:
                rows, shared = anchors[part], None
                if config.consecutive_windows > 1:
                    frames, _ = dataset.windows(rows, {"frames": recipe.policy.observation_steps})["frames"]
                    shared = Shared(*map(torch.from_numpy, shared_frames(rows, frames)))
                chosen = None if mirrored is None else mirrored[part]
                batch.append((kept.batch(rows, steps), draws.part(part, shared), chosen))
            return send(batch, device) if on_gpu else batch

        def update(step: int, batch: list[Part]) -> Tensor:  # on a GPU nothing in here makes the host wait
            loss = torch.zeros((), device=device)
            for number, (windows_of_part, draws, mirrored) in enumerate(batch, 1):
                if mirrored is not None:
                    windows_of_part = mirror(windows_of_part, mirrored)
                with processes.collect(model, last=number == len(batch)):
                    with processes.precision():
                        share = model(windows_of_part, draws) / len(batch)
                    share.backward()
                loss += share.detach()
            loss = processes.mean(loss)
            gradient_norm = whole(torch.nn.utils.clip_grad_norm_(policy.parameters(), config.grad_clip_norm))
            if losses.accept(step, loss, gradient_norm):
                optimizer.step()
            optimizer.zero_grad()  # now, so that a checkpoint is not written beside gradients
            return gradient_norm

        if processes.from_main(lambda: evaluations.missing(first_step)):
            evaluated = average.gathered()
            if processes.main:
                evaluations.step(first_step, evaluated or average.policy)

        take_step = StepGraph(update) if config.cuda_graph else update
        coming = range(first_step, config.steps)
        batches = stack.enter_context(closing(prefetch(gather, coming)))
        for step, batch in zip(coming, batches, strict=True):
            set_rate(optimizer, learning_rate(step, config))
            gradient_norm = take_step(step, batch)
            losses.note(step)
            average.update(step)

            done, validated, stopped = step + 1, {}, processes.any(bool(stop))
            last, save = done == config.steps, done % config.save_every == 0
            metrics.tick(done)
            if processes.takes_part and len(held_out) and (last or done % config.validate_every == 0):
                with metrics.pause():
                    loss_held_out = validation_loss(average.policy, dataset, held_out, steps, recipe)
                validated = {"validation_loss": loss_held_out}
            if last or save or validated or done % config.log_every == 0:
                values = {
                    "epoch": done * config.batch_size / len(windows),
                    **losses.mean(),
                    "learning_rate": learning_rate(step, config),
                    "gradient_norm": gradient_norm.item(),
                    **validated,
                }
                metrics.write(done, values)
            if processes.takes_part and (last or save or stopped or done == decay_start(config)):
                with metrics.pause():
                    if processes.main:
                        metrics.sync()
                    noted = losses.state()
                    checkpoint = save_checkpoint(run, done, policy, average, optimizer, noted, config, processes)
            if stopped:
                break
            evaluated = average.gathered() if config.evaluate_every and done % config.evaluate_every == 0 else None
            if processes.main:
                evaluations.step(done, evaluated or average.policy)
        evaluations.finish(stop)
        checkpoint = processes.from_main(lambda: checkpoint)
    if stop or stopped:
        if processes.main:
            print(f"stopped; {checkpoint} is saved; go on with --resume", file=sys.stderr)
        if stop[:1] == [signal.SIGINT]:
            raise KeyboardInterrupt
        raise SystemExit(128 + (stop or [signal.SIGTERM])[0])
    assert checkpoint is not None
    return checkpoint


def fill_features(recipe: Recipe, dataset: Dataset) -> DiffusionConfig:
    """The recipe's policy with the features of the data set: those it observes, and the action.

    Raises:
        DatasetError: The data set lacks one of them.
    """
    known, lost = dataset.features, dataset.demonstrations.left_out
    observed = recipe.training.observations or [name for name in known if is_observed(name, known[name])]
    if lost and not recipe.training.observations and not dataset.camera_keys:
        advice = "give them one name, or say with --observations what to do without"
        raise DatasetError(mismatch(f"{dataset.source}: cameras", "one that every source has", list(lost), advice))
    for name in (*observed, "action"):
        if name not in known:
            advice = f"did you mean {nearest(name, known)}? Choose a preset that fits this data, or --observations"
            raise DatasetError(mismatch(f"{dataset.source}: {name}", "a feature", sorted(known), advice))
    return dataclasses.replace(
        recipe.policy,
        input_features={name: known[name] for name in observed},
        output_features={"action": known["action"]},
    )


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


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
