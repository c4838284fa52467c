import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.data.dataset import load_dataset
from visuomotor.data.pusht_geometry import mirror
from visuomotor.errors import CheckpointError, ConfigError, DatasetError
from visuomotor.policy.checkpoint import load_policy
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.presets import preset
from visuomotor.recipe import Recipe
from visuomotor.training import loop
from visuomotor.training.loop import train

from .runs import change, contents, lines, names, start, wait_for_line


@pytest.mark.parametrize("sees", ["state", "image", "shared images"])
def test_two_steps_save_and_resume_equal_four_straight(
    recipe: Recipe, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sees: str
) -> None:
    """Of kernels of images too, whose moments do not lie in memory as they do in a file."""
    source: str | Path = demonstrations
    if sees != "state":
        recipe, source = change(recipe, observations=("observation.image",), episodes=(0,)), "pusht-demonstrations"
    if sees == "shared images":
        recipe = change(recipe, consecutive_windows=3, augmentation="pusht-mirror")
    straight = train(recipe, source, tmp_path / "straight")

    real = DiffusionPolicy.forward
    calls = []

    def fail_in_the_fourth(self: DiffusionPolicy, *arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("the power fails")
        return real(self, *arguments)

    monkeypatch.setattr(DiffusionPolicy, "forward", fail_in_the_fourth)
    with pytest.raises(RuntimeError, match="the power fails"):
        train(recipe, source, tmp_path / "broken")
    assert [line["step"] for line in lines(tmp_path / "broken")] == [1, 2, 3]
    monkeypatch.setattr(DiffusionPolicy, "forward", real)
    torch.manual_seed(123)  # nothing may hang on torch's own generator
    resumed = train(recipe, source, tmp_path / "broken", resume=True)

    assert resumed.name == straight.name == "step_000004"
    assert contents(resumed) == contents(straight)
    assert lines(tmp_path / "broken") == lines(tmp_path / "straight")
    assert [line["step"] for line in lines(tmp_path / "broken")] == [1, 2, 3, 4]


def test_training_changes_the_weights_and_lowers_the_loss(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    longer = change(recipe, steps=150, batch_size=32, save_every=150, log_every=30, optimizer_lr=3e-3)
    train(longer, demonstrations, tmp_path / "run")
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    assert losses[-1] < 0.6 * losses[0]


def test_a_checkpoint_holds_what_the_design_names(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    checkpoint = train(recipe, demonstrations, tmp_path / "run")
    assert sorted(contents(checkpoint)) == [
        "hashes.json",
        "policy/config.json",
        "policy/model.safetensors",
        "policy/statistics.json",
        "training/state.json",
        "training/state.safetensors",
    ]
    run = json.loads((tmp_path / "run" / "config.json").read_text())
    assert run["source"] == str(demonstrations)
    assert run["recipe"]["training"]["steps"] == 4
    assert load_policy(tmp_path / "run").config.input_features.keys() == {
        "observation.state",
        "observation.environment_state",
    }


def test_lines_tell_passes_over_the_windows_and_the_rate_of_their_step(
    recipe: Recipe, demonstrations: Path, tmp_path: Path
) -> None:
    changed = change(recipe, log_every=2, scheduler_warmup_steps=3)
    train(changed, demonstrations, tmp_path / "run")
    windows = json.loads((tmp_path / "run/config.json").read_text())["data"]["windows"]
    found = [(line["step"], line["epoch"], line["learning_rate"]) for line in lines(tmp_path / "run")]
    # Steps 2 and 4 are the second and the fourth: a third of the warm-up, and its end.
    assert found == [(2, 8 / windows, pytest.approx(1e-4 / 3)), (4, 16 / windows, pytest.approx(1e-4))]


def test_only_the_newest_checkpoints_stay(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    train(change(recipe, save_every=1, keep_checkpoints=2), demonstrations, tmp_path / "run")
    assert names(tmp_path / "run") == ["step_000003", "step_000004"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_before_leaving(demonstrations: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    flags = ["--save-every", "100000", "--log-every", "3"]
    process = start(run, demonstrations, *flags, "--steps", "100000")
    wait_for_line(run, process, 6)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "go on with --resume" in said and "Traceback" not in said
    (checkpoint,) = (run / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step_"))
    steps = ["--steps", str(step + 4), "--scheduler-warmup-steps", "1"]
    assert start(run, demonstrations, *flags, *steps, "--resume").wait(timeout=60) == 0
    assert [line["step"] for line in lines(run)] == [*range(3, step + 4, 3), step + 4]


@pytest.mark.slow
def test_a_small_recipe_saves_within_ten_seconds(demonstrations: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, demonstrations, "--batch-size", "8", "--log-every", "1", preset="pusht-keypoints-small")
    wait_for_line(run, process, 3)
    begun = time.monotonic()
    process.terminate()
    _, said = process.communicate(timeout=60)
    taken = time.monotonic() - begun
    assert "is saved; go on with --resume" in said
    assert taken < 10, f"{taken:.1f} s"


def test_a_run_is_not_overwritten(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    train(recipe, demonstrations, tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigError, match="pass --resume to go on with it, or choose another --output"):
        train(recipe, demonstrations, tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_data_without_what_the_recipe_observes(demonstrations: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"observation\.image: expected a feature, got .*--observations"):
        train(preset("pusht-image"), demonstrations, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_reflected_demonstrations_stay_within_the_statistics(recipe: Recipe, demonstrations: Path) -> None:
    dataset = load_dataset(demonstrations)
    full = replace(recipe, policy=loop.fill_features(recipe, dataset))
    statistics = loop._statistics(dataset, full)
    rows = np.arange(len(dataset))
    batch = dataset.batch(rows, {name: [0] for name in statistics})
    reflected = mirror(batch, torch.ones(len(rows), dtype=torch.bool))
    for name, values in statistics.items():
        low, high = torch.as_tensor(values["min"]), torch.as_tensor(values["max"])
        both = torch.cat([batch[name], reflected[name]])[:, 0]
        torch.testing.assert_close(both.amin(0), low)
        torch.testing.assert_close(both.amax(0), high)
    plain = loop._statistics(dataset, change(full, augmentation="none"))
    assert plain["action"]["min"].tolist() == dataset.statistics["action"]["min"].tolist()


def test_the_trunk_in_bfloat16_trains_close_to_float32(recipe: Recipe, tmp_path: Path) -> None:
    from visuomotor.config import Feature

    inputs = {"observation.image": Feature("VISUAL", (3, 32, 32))}
    config = replace(recipe.policy, input_features=inputs, output_features={"action": Feature("ACTION", (2,))})
    image = {"mean": np.full((3, 1, 1), 0.5), "std": np.full((3, 1, 1), 0.2)}
    torch.manual_seed(0)
    policy = DiffusionPolicy(config, {"observation.image": image, "action": {"min": [0, 0], "max": [1, 1]}}).train()
    batch = {"observation.image": torch.rand(4, 2, 3, 32, 32), "action": torch.rand(4, 16, 2)}
    losses = []
    for bfloat16 in (False, True):
        policy.diffusion.rgb_encoder.bfloat16_trunk = bfloat16
        losses.append(policy.compute_loss(batch, torch.Generator().manual_seed(1)).item())
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.02 * losses[0]


def test_a_run_may_begin_with_the_weights_of_another_policy(
    recipe: Recipe, demonstrations: Path, tmp_path: Path
) -> None:
    first = train(recipe, demonstrations, tmp_path / "first")
    begun = change(recipe, initial_policy=str(tmp_path / "first"), steps=1, scheduler_warmup_steps=1)
    second = train(begun, demonstrations, tmp_path / "second")
    before, after = (load_policy(place / "policy").state_dict() for place in (first, second))
    assert all(torch.equal(after[name], before[name]) for name in before), "the first step's rate is 0"
    other = replace(begun, policy=replace(begun.policy, down_dims=(16, 48)))
    with pytest.raises(CheckpointError, match=r"first: .*expected \(.*\), got \(.*\); the network must be the same"):
        train(other, demonstrations, tmp_path / "third")
