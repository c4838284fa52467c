"""A recipe of seconds, and real key-point demonstrations small enough to be committed."""

from dataclasses import replace
from pathlib import Path

import pytest

from visuomotor.presets import preset
from visuomotor.recipe import Recipe


@pytest.fixture(scope="session")
def demonstrations() -> Path:
    """Two episodes of Push-T's key points, as LeRobot wrote them."""
    return Path(__file__).parents[1] / "data" / "reference" / "keypoints"


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Four steps of a tiny policy, with every source of randomness in use."""
    recipe = preset("debug")
    training = replace(recipe.training, steps=4, save_every=2, augmentation="pusht-mirror", noise_draws=2)
    return replace(recipe, training=training)
