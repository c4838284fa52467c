"""Data units to network units and back."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from visuomotor.config import DiffusionConfig, Feature
from visuomotor.errors import CheckpointError
from visuomotor.policy.normalization import Normalizer

Mode = Literal["MIN_MAX", "MEAN_STD", "IDENTITY"]
LOW, HIGH = np.array([-10.0, 0.0, 500.0]), np.array([10.0, 1e-3, 512.0])
MEAN, STD = np.array([3.0, -0.5, 506.0]), np.array([4.0, 1e-4, 2.0])
STATISTICS = {"min": LOW, "max": HIGH, "mean": MEAN, "std": STD}


def state_normalizer(mode: Mode, statistics: dict[str, Any] | None = None) -> Normalizer:
    config = DiffusionConfig(
        input_features={"observation.state": Feature("STATE", (3,))},
        output_features={"action": Feature("ACTION", (3,))},
        normalization_mapping={"STATE": mode, "ACTION": mode},
    )
    both = STATISTICS | (statistics or {})
    return Normalizer(config, {"observation.state": both, "action": both})


def image_normalizer(mode: Mode) -> Normalizer:
    config = DiffusionConfig(
        input_features={"observation.image": Feature("VISUAL", (3, 4, 4))},
        output_features={"action": Feature("ACTION", (3,))},
        normalization_mapping={"VISUAL": mode},
        crop_shape=None,
    )
    statistics = {
        "min": np.array([0.0, 0.1, 0.2]).reshape(3, 1, 1),
        "max": np.array([1.0, 0.9, 0.8]).reshape(3, 1, 1),
        "mean": np.array([0.5, 0.4, 0.3]).reshape(3, 1, 1),
        "std": np.array([0.2, 0.3, 0.1]).reshape(3, 1, 1),
    }
    return Normalizer(config, {"observation.image": statistics})


def sample() -> Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.uniform(LOW, HIGH, (5, 2, 3)))


@pytest.mark.parametrize("mode", ["MIN_MAX", "MEAN_STD", "IDENTITY"])
def test_formula_and_round_trip_in_float64(mode: Mode) -> None:
    normalizer = state_normalizer(mode).double()
    values = sample()
    low, high, mean, std = (np.float32(s).astype(np.float64) for s in (LOW, HIGH, MEAN, STD))
    x = values.numpy()
    expected = {"MIN_MAX": 2 * (x - low) / (high - low) - 1, "MEAN_STD": (x - mean) / (std + 1e-8), "IDENTITY": x}[mode]
    found = normalizer("action", values)
    assert found.dtype == torch.float64
    # The statistics are kept in float32: a range of 12 above 500 to 1e-5.
    assert np.abs(found.numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    back = normalizer.inverse("action", found)
    assert (back - values).abs().max() < 1e-12 * values.abs().max()


def test_ends_of_the_range() -> None:
    normalizer = state_normalizer("MIN_MAX")
    ends = torch.tensor(np.stack([LOW, HIGH]), dtype=torch.float32)
    assert torch.allclose(normalizer("action", ends), torch.tensor([[-1.0], [1.0]]).expand(2, 3), atol=1e-5)


def test_each_feature_has_its_own_statistics() -> None:
    config = state_normalizer("MIN_MAX")
    config = DiffusionConfig(
        input_features={
            "observation.state": Feature("STATE", (1,)),
            "observation.environment_state": Feature("ENV", (2,)),
        },
        output_features={"action": Feature("ACTION", (1,))},
    )
    normalizer = Normalizer(
        config,
        {
            "observation.state": {"min": np.array([0.0]), "max": np.array([2.0])},
            "observation.environment_state": {"min": np.array([0.0, 10.0]), "max": np.array([4.0, 30.0])},
            "action": {"min": np.array([0.0]), "max": np.array([20.0])},
        },
    )
    assert normalizer("observation.state", torch.tensor([[1.5]])).tolist() == [[0.5]]
    assert normalizer("observation.environment_state", torch.tensor([[3.0, 15.0]])).tolist() == [[0.5, -0.5]]
    assert normalizer("action", torch.tensor([[15.0]])).tolist() == [[0.5]]
    assert normalizer.inverse("action", torch.tensor([[-0.5]])).tolist() == [[5.0]]


@pytest.mark.parametrize("mode", ["MIN_MAX", "MEAN_STD"])
def test_a_dimension_that_never_changed(mode: Mode) -> None:
    """A stray value stays a moderate number, not divided by almost nothing; and what was never moved is not moved."""
    constant = {"min": np.array([0.0, 7.0, 0.0]), "max": np.array([1.0, 7.0, 1.0])}
    constant |= {"mean": np.array([0.5, 7.0, 0.5]), "std": np.array([0.1, 0.0, 0.1])}
    normalizer = state_normalizer(mode, constant)
    found = normalizer("action", torch.tensor([[0.5, 7.0, 0.5], [0.5, 7.5, 0.5]]))[:, 1]
    assert found.tolist() == ([-1.0, -0.5] if mode == "MIN_MAX" else [0.0, 0.5])
    back = normalizer.inverse("action", torch.tensor([[0.5, word, -0.5] for word in (-1.0, 0.0, 0.9)]))
    assert back[:, 1].tolist() == [7.0, 7.0, 7.0]
    assert normalizer("action", back)[0, [0, 2]].tolist() == pytest.approx([0.5, -0.5])  # the others move


@pytest.mark.parametrize("mode", ["MIN_MAX", "MEAN_STD", "IDENTITY"])
def test_bytes_count_as_zero_to_one(mode: Mode) -> None:
    normalizer = image_normalizer(mode)
    images = torch.arange(256, dtype=torch.uint8).repeat(3)[: 2 * 2 * 3 * 4 * 4].reshape(2, 2, 3, 4, 4)
    from_bytes = normalizer("observation.image", images)
    from_floats = normalizer("observation.image", images / 255)
    assert from_bytes.dtype == torch.float32
    assert torch.allclose(from_bytes, from_floats, atol=2e-6)
    pixel = {"MIN_MAX": (1 - 0.1) / 0.4 - 1, "MEAN_STD": (1 - 0.4) / 0.3, "IDENTITY": 1.0}[mode]
    white = normalizer("observation.image", torch.full((1, 3, 4, 4), 255, dtype=torch.uint8))
    assert white[0, 1].flatten().tolist() == pytest.approx([pixel] * 16, rel=1e-5)


def test_a_type_that_is_not_named_stays_as_it_is() -> None:
    """And needs no statistics, as LeRobot leaves the environment's state alone."""
    config = DiffusionConfig(
        input_features={"observation.environment_state": Feature("ENV", (2,))},
        output_features={"action": Feature("ACTION", (1,))},
        normalization_mapping={"STATE": "MIN_MAX"},
    )
    normalizer = Normalizer(config, {})
    assert normalizer("observation.environment_state", torch.tensor([[300.0, -4.0]])).tolist() == [[300.0, -4.0]]


def test_constants_follow_the_module_but_are_no_weights() -> None:
    normalizer = state_normalizer("MIN_MAX")
    assert not normalizer.state_dict()
    assert not list(normalizer.parameters())
    assert all(buffer.dtype == torch.float64 for buffer in normalizer.double().buffers())


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"max": None}, "statistics of observation.state: max: expected numbers of shape (3,), got "),
        ({"min": np.zeros(2)}, "statistics of observation.state: min: expected finite numbers of (3,), got (2,); "),
        ({"max": np.array([1.0, np.nan, 2.0])}, "got [1.0, nan, 2.0]; the statistics belong to other data, or "),
        ({"min": np.array([-np.inf, 0.0, 0.0])}, "got [-inf, 0.0, 0.0]; "),
    ],
)
def test_bad_statistics(statistics: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        state_normalizer("MIN_MAX", statistics)
    assert message in str(caught.value)


def test_no_statistics() -> None:
    config = DiffusionConfig(
        input_features={"observation.state": Feature("STATE", (3,))},
        output_features={"action": Feature("ACTION", (3,))},
    )
    with pytest.raises(CheckpointError, match=r"statistics of observation.state: min: .* got \{'action': \['max'"):
        Normalizer(config, {"action": {"min": LOW, "max": HIGH}})
