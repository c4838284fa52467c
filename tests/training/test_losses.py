"""A loss that is not finite never reaches the weights."""

import json
import math
from pathlib import Path

import pytest
import torch

from visuomotor.errors import CheckpointError, LossError
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.vision import running_statistics
from visuomotor.recipe import Recipe
from visuomotor.training import losses as module
from visuomotor.training.loop import train
from visuomotor.training.losses import Losses

from .runs import change, contents, lines, names


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, factor: float) -> None:
    """The loss of one step, from 1, is multiplied."""
    real, calls = DiffusionPolicy.forward, []

    def forward(self: DiffusionPolicy, *arguments: object) -> torch.Tensor:
        calls.append(1)
        return real(self, *arguments) * (factor if len(calls) == step else 1)

    monkeypatch.setattr(DiffusionPolicy, "forward", forward)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_the_run_ends_at_that_step(
    recipe: Recipe, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    seldom = change(recipe, steps=9, save_every=4, log_every=100)
    straight = train(seldom, demonstrations, tmp_path / "straight")
    with monkeypatch.context() as patch:
        spoil(patch, 6, factor)
        told = (
            r"loss of step 6: expected a finite number, got (inf|nan) \(gradient norm nan\) from the windows at episode"
        )
        with pytest.raises(LossError, match=told + r" \d+ frame \d.*; look at these windows; .*/step_000004$"):
            train(seldom, demonstrations, tmp_path / "run")
    assert names(tmp_path / "run") == ["step_000004"]
    assert [line["step"] for line in lines(tmp_path / "run")] == [4]
    resumed = train(seldom, demonstrations, tmp_path / "run", resume=True)
    assert contents(resumed) == contents(straight)


def test_the_batch_is_left_out_if_told_to(recipe, demonstrations, tmp_path, monkeypatch, capsys):
    skipping = change(recipe, steps=6, log_every=3, save_every=6, nonfinite_loss="skip")
    train(skipping, demonstrations, tmp_path / "straight")
    with monkeypatch.context() as patch:
        spoil(patch, 2, math.nan)
        train(skipping, demonstrations, tmp_path / "run")
    assert "step 2: the loss is nan (gradient norm nan) and the batch is left out" in capsys.readouterr().err
    assert [line["skipped_steps"] for line in lines(tmp_path / "run")] == [1, 0]
    assert [line["skipped_steps"] for line in lines(tmp_path / "straight")] == [0, 0]
    with monkeypatch.context() as patch:
        spoil(patch, 2, math.nan)
        train(change(skipping, log_every=1), demonstrations, tmp_path / "each")
    first, left_out, third = (line["loss"] for line in lines(tmp_path / "each")[:3])
    assert left_out is None
    assert lines(tmp_path / "run")[0]["loss"] == pytest.approx((first + third) / 2, rel=1e-6)
    assert all(math.isfinite(line["loss"]) for line in lines(tmp_path / "run"))


def test_a_line_without_any_finite_step_has_no_loss(recipe, demonstrations, tmp_path, monkeypatch):
    spoil(monkeypatch, 2, math.nan)
    train(change(recipe, nonfinite_loss="skip"), demonstrations, tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1]
    assert '"loss": null' in text and '"gradient_norm": null' in text and "NaN" not in text
    assert json.loads(text)["skipped_steps"] == 1


def test_weights_that_are_not_finite_are_never_saved(recipe, demonstrations, tmp_path, monkeypatch):
    real, calls = torch.optim.AdamW.step, []

    def overflow(self: torch.optim.AdamW) -> None:
        real(self)
        calls.append(1)
        if len(calls) == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = math.inf

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    with pytest.raises(
        CheckpointError, match=r"weights\..* after step 4: expected finite numbers, got others; .*step_000002"
    ):
        train(recipe, demonstrations, tmp_path / "run")
    assert names(tmp_path / "run") == ["step_000002"]


# As on a GPU: the flag is on the device, and the host learns of it later


def one_weight() -> tuple[torch.Tensor, torch.optim.AdamW]:
    weight = torch.nn.Parameter(torch.ones(3))
    return weight, torch.optim.AdamW([weight], lr=0.1, fused=True)


def step(losses: Losses, optimizer: torch.optim.AdamW, weight: torch.Tensor, number: int, factor: float) -> None:
    optimizer.zero_grad()
    loss = (weight * (1 + number)).square().sum() * factor
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([weight], 1.0)
    if losses.accept(number, loss, norm):
        optimizer.step()
    losses.note(number)


@pytest.mark.parametrize("late", [False, True])
def test_without_waiting_the_update_is_left_out_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    factors = [1, math.nan, 1, math.inf, 1]
    results = []
    for asynchronous in (False, True):
        if late:
            monkeypatch.setattr(module, "_arrived", lambda event: False)
        weight, optimizer = one_weight()
        losses = Losses(optimizer, True, str, tmp_path, asynchronous=asynchronous)
        for number, factor in enumerate(factors):
            step(losses, optimizer, weight, number, factor)
        state = optimizer.state[weight]
        results.append([weight.detach(), state["exp_avg"], state["exp_avg_sq"], state["step"], losses.mean()])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert results[0][3] == 3 and results[0][4]["skipped_steps"] == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_step_that_is_left_out_leaves_no_trace_in_batch_norm(tmp_path, asynchronous):
    norm, (weight, optimizer) = torch.nn.BatchNorm2d(2).train(), one_weight()
    seen, pictures = running_statistics(norm), torch.ones(1, 2, 2, 2)
    losses = Losses(optimizer, True, str, tmp_path, asynchronous=asynchronous, statistics=seen)
    for number, (factor, statistics) in enumerate([(1.0, (0.1, 1)), (math.inf, (0.1, 1)), (1.0, (0.19, 2))]):
        norm(pictures * factor)
        step(losses, optimizer, weight, number, factor)
        mean, _, count = seen
        assert (mean.tolist(), count.item()) == ([pytest.approx(statistics[0])] * 2, statistics[1])


def test_without_waiting_the_run_ends_before_a_line_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_arrived", lambda event: False)
    weight, optimizer = one_weight()
    losses = Losses(optimizer, False, lambda number: f"the windows of {number}", tmp_path, asynchronous=True)
    for number, factor in enumerate([1, math.nan, 1]):
        step(losses, optimizer, weight, number, factor)
    assert bool(weight.isfinite().all())
    with pytest.raises(LossError, match=r"loss of step 2: expected a finite number, got nan .* the windows of 1"):
        losses.state()
