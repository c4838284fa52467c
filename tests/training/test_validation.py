from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.data.dataset import Dataset, load_dataset
from visuomotor.errors import ConfigError, DatasetError
from visuomotor.policy.checkpoint import load_policy
from visuomotor.recipe import Recipe
from visuomotor.training.loop import train
from visuomotor.training.validation import split_windows, validation_loss

from .runs import change, contents, lines


@pytest.fixture
def dataset(demonstrations: Path) -> Dataset:
    return load_dataset(demonstrations)


@pytest.mark.parametrize("wanted", [1, 0.5, 0.01])
def test_whole_episodes_are_held_out(recipe: Recipe, dataset: Dataset, wanted: float) -> None:
    everything = dataset.anchors(recipe.policy.drop_n_last_frames)
    splits = set()
    for seed in range(6):
        windows, held_out = split_windows(dataset, change(recipe, validation_episodes=wanted, seed=seed))
        assert sorted([*windows, *held_out]) == everything.tolist()
        episodes = set(np.searchsorted(dataset.episode_ends, held_out, side="right").tolist())
        assert len(episodes) == 1
        assert not episodes & set(np.searchsorted(dataset.episode_ends, windows, side="right").tolist())
        splits |= episodes
    assert splits == {0, 1}  # the seed chooses


def test_nothing_is_held_out_by_default(recipe: Recipe, dataset: Dataset) -> None:
    windows, held_out = split_windows(dataset, recipe)
    assert np.array_equal(windows, dataset.anchors(recipe.policy.drop_n_last_frames)) and not len(held_out)


def test_something_must_be_left_to_train_on(recipe: Recipe, dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="episodes: expected 2 to hold out and others to train on, got 2 in all"):
        split_windows(dataset, change(recipe, validation_episodes=2))
    with pytest.raises(ConfigError, match=r"validation_episodes: expected a share below 1 or a whole number, got 1\.5"):
        change(recipe, validation_episodes=1.5)


def test_a_source_named_twice_cannot_be_held_out(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    twice = [demonstrations, demonstrations / "../" / demonstrations.name]
    with pytest.raises(
        ConfigError, match=r"validation_episodes: expected sources that differ, got .*held out would be"
    ):
        train(change(recipe, validation_episodes=1), twice, tmp_path / "run")
    train(change(recipe, steps=1), twice, tmp_path / "run")  # without, it weighs the data


def test_the_loss_is_that_of_the_averaged_policy_on_all_windows(recipe: Recipe, demonstrations: Path, tmp_path) -> None:
    recipe = change(recipe, validation_episodes=1, validate_every=3, log_every=100, steps=7, save_every=6)
    train(recipe, demonstrations, tmp_path / "run")
    written = lines(tmp_path / "run")
    assert [line["step"] for line in written] == [3, 6, 7]
    assert all("validation_loss" in line for line in written)

    dataset = load_dataset(demonstrations)
    policy = load_policy(tmp_path / "run")
    _, rows = split_windows(dataset, recipe)
    steps = {name: policy.config.observation_steps for name in policy.config.input_features}
    steps["action"] = policy.config.action_steps
    full = replace(recipe, policy=policy.config)
    torch.manual_seed(5)
    assert validation_loss(policy, dataset, rows, steps, full) == written[-1]["validation_loss"]
    assert validation_loss(policy, dataset, rows, steps, change(full, seed=1)) != written[-1]["validation_loss"]
    by_hand, generator = [], torch.Generator().manual_seed(recipe.training.seed)
    for first in range(0, len(rows), 4):
        chosen = rows[first : first + 4]
        by_hand += [policy.compute_loss(dataset.batch(chosen, steps), generator).item()] * len(chosen)
    assert np.isclose(np.mean(by_hand), written[-1]["validation_loss"], rtol=1e-6)


def test_measuring_does_not_change_the_training(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    seldom, often = (
        train(change(recipe, validation_episodes=1, validate_every=every), demonstrations, tmp_path / str(every))
        for every in (1, 4)
    )
    assert contents(seldom) == contents(often)
