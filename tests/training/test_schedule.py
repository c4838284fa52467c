import math

import pytest
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup

from visuomotor.errors import ConfigError
from visuomotor.recipe import TrainingConfig
from visuomotor.training.schedule import decay_start, first_difference, learning_rate, set_rate

STABLE = "warmup-stable-decay"


def test_the_cosine_is_the_one_of_diffusers() -> None:
    config = TrainingConfig(steps=37, scheduler_warmup_steps=5, optimizer_lr=0.3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    reference = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=5, num_training_steps=37)
    for step in range(37):
        assert math.isclose(learning_rate(step, config), reference.get_last_lr()[0], abs_tol=1e-12)
        optimizer.step()
        reference.step()


def test_warm_up_stable_and_decay_by_hand() -> None:
    config = TrainingConfig(
        steps=12, scheduler_name=STABLE, scheduler_warmup_steps=2, scheduler_decay_steps=4, optimizer_lr=1.0
    )
    rates = [learning_rate(step, config) for step in range(13)]
    falling = [1 - math.sqrt(share) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert rates == [0, 0.5, 1, 1, 1, 1, 1, 1, *falling]


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"steps": 1000, "scheduler_name": STABLE}, 800),
        ({"steps": 1000, "scheduler_name": STABLE, "scheduler_decay_steps": 100}, 900),
        ({"steps": 1000, "scheduler_name": STABLE, "scheduler_decay_steps": 0}, 1000),
        ({"steps": 1000, "scheduler_name": STABLE, "scheduler_decay_steps": 900}, 500),  # not before the warm-up ends
        ({"steps": 1000}, None),
    ],
)
def test_where_the_decay_begins(fields: dict, start: int | None) -> None:
    assert decay_start(TrainingConfig(**fields)) == start


@pytest.mark.parametrize(
    ("name", "done", "expected"),
    [("cosine", 100, 11), ("cosine", 10, 10), (STABLE, 80, 80), (STABLE, 81, 81), (STABLE, 100, 81)],
)
def test_up_to_where_a_longer_run_is_the_same(name: str, done: int, expected: int) -> None:
    # The first step of a fall still has the full rate: only the second one differs.
    before = TrainingConfig(steps=100, scheduler_name=name, scheduler_warmup_steps=10)
    now = TrainingConfig(steps=200, scheduler_name=name, scheduler_warmup_steps=10)
    assert first_difference(before, now, done) == expected


def test_a_decay_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="scheduler_decay_steps: expected 0 to steps = 10, got 11"):
        TrainingConfig(steps=10, scheduler_decay_steps=11)


def test_a_rate_in_a_tensor_is_the_rate() -> None:
    """It stays where it is, for a CUDA graph; and it is float32, so it is rounded."""
    found = []
    for kept in (0.5, torch.tensor(0.5)):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([weight], lr=kept, fused=True)
        for rate in (0.1, 0.03):
            weight.grad = torch.tensor([1.0, -2.0, 3.0])
            set_rate(optimizer, rate)
            optimizer.step()
        assert not isinstance(kept, torch.Tensor) or optimizer.param_groups[0]["lr"] is kept
        found.append(weight.detach())
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)
    assert found[0][0] == pytest.approx(0.87, abs=0.01)
