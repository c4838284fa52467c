import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup

from visuomotor.config import Recipe, TrainingConfig
from visuomotor.data.dataset import load_dataset
from visuomotor.data.pusht_geometry import mirror
from visuomotor.errors import CheckpointError, ConfigError, DatasetError, VisuomotorError
from visuomotor.policy.checkpoint import load_policy
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.presets import preset
from visuomotor.training import loop
from visuomotor.training.loop import learning_rate, train

TIMED = ("samples_per_second", "seconds")


def contents(checkpoint: Path) -> dict[str, bytes]:
    return {str(p.relative_to(checkpoint)): p.read_bytes() for p in sorted(checkpoint.rglob("*")) if p.is_file()}


def lines(run: Path) -> list[dict[str, float]]:
    written = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMED} for line in written]


def change(recipe: Recipe, **fields: object) -> Recipe:
    return replace(recipe, training=replace(recipe.training, **fields))


def test_two_steps_save_and_resume_equal_four_straight(
    recipe: Recipe, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(recipe, demonstrations, tmp_path / "straight")

    real = DiffusionPolicy.compute_loss
    calls = []

    def fail_in_the_fourth(self: DiffusionPolicy, *arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("the power fails")
        return real(self, *arguments)

    monkeypatch.setattr(DiffusionPolicy, "compute_loss", fail_in_the_fourth)
    with pytest.raises(RuntimeError, match="the power fails"):
        train(recipe, demonstrations, tmp_path / "broken")
    assert [line["step"] for line in lines(tmp_path / "broken")] == [1, 2, 3]
    monkeypatch.setattr(DiffusionPolicy, "compute_loss", real)
    torch.manual_seed(123)  # nothing may hang on torch's own generator
    resumed = train(recipe, demonstrations, tmp_path / "broken", resume=True)

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


def test_only_the_newest_checkpoints_stay(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    train(change(recipe, save_every=1, keep_checkpoints=2), demonstrations, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step_000003", "step_000004"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_before_leaving(demonstrations: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "visuomotor",
        "train",
        "debug",
        "--data",
        str(demonstrations),
        "--output",
        str(run),
    ]
    flags = ["--steps", "100000", "--save-every", "100000", "--log-every", "1", "--threads", "1"]
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 60
    while not ((run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) > 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "go on with --resume" in said and "Traceback" not in said
    (checkpoint,) = (run / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step_"))
    assert lines(run)[-1]["step"] == step
    subprocess.run([*command, "--resume", "--steps", str(step + 2)], check=True, capture_output=True, timeout=60)
    assert [line["step"] for line in lines(run)] == list(range(1, step + 3))


def test_the_learning_rate_is_the_one_of_diffusers() -> None:
    config = TrainingConfig(steps=37, scheduler_warmup_steps=5, optimizer_lr=0.3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    reference = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=5, num_training_steps=37)
    for step in range(37):
        assert math.isclose(learning_rate(step, config), reference.get_last_lr()[0], abs_tol=1e-12)
        optimizer.step()
        reference.step()


def test_a_run_is_not_overwritten(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    train(recipe, demonstrations, tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigError, match="pass --resume to go on with it, or choose another --output"):
        train(recipe, demonstrations, tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_resume_names_what_changed(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    train(recipe, demonstrations, tmp_path / "run")
    other = replace(change(recipe, batch_size=5), policy=replace(recipe.policy, n_action_steps=3))
    with pytest.raises(
        ConfigError, match=r"expected n_action_steps 8, batch_size 4, got n_action_steps 3, batch_size 5"
    ):
        train(other, demonstrations, tmp_path / "run", resume=True)


def test_a_longer_run_says_that_the_cosine_moves(
    recipe: Recipe, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe, demonstrations, tmp_path / "run")
    train(change(recipe, steps=6), demonstrations, tmp_path / "run", resume=True)
    assert "cosine now ends at step 6" in capsys.readouterr().err
    assert lines(tmp_path / "run")[-1]["step"] == 6


def test_a_damaged_state_is_one_error(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    checkpoint = train(recipe, demonstrations, tmp_path / "run")
    state = checkpoint / "training" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.safetensors: expected safetensors"):
        train(change(recipe, steps=6), demonstrations, tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_stops_and_saves_nothing(
    recipe: Recipe, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DiffusionPolicy.compute_loss
    calls = []

    def explode_in_the_third(self: DiffusionPolicy, *arguments: object) -> torch.Tensor:
        calls.append(1)
        return real(self, *arguments) * (math.inf if len(calls) == 3 else 1)

    monkeypatch.setattr(DiffusionPolicy, "compute_loss", explode_in_the_third)
    with pytest.raises(VisuomotorError, match=r"loss: expected finite numbers in steps 3 to 3, got nan or inf"):
        train(recipe, demonstrations, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000002"]


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
