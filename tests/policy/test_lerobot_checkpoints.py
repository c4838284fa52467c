"""LeRobot's checkpoints, old and new: the actions are LeRobot's, and what does not fit is refused by name."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from visuomotor.policy.checkpoint import find_policy, load_policy, read_config
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.lerobot_export import STATE_AFTER, STATE_BEFORE, save_lerobot

from .lerobot_folders import (
    BEFORE,
    CONFIG,
    LEGACY,
    WEIGHTS,
    WITH_PROCESSORS,
    actions,
    edit,
    edit_tensors,
    make_fixture,
    part,
    reference,
    small,
    write_legacy,
)
from .small import small_batch, small_config, small_policy, small_statistics

ALL = [*((name, "config.json") for name in WITH_PROCESSORS), *LEGACY]
WITH_BYTES = [case for case in ALL if case[0] in ("image", "policy_legacy")]  # the others' images are no bytes / 255
OPENED: dict[tuple[str, str], DiffusionPolicy] = {}


@dataclasses.dataclass
class Fixture:
    """One of LeRobot's policies, opened, and what LeRobot computed with it."""

    policy: DiffusionPolicy
    tensors: dict[str, Tensor]


@pytest.fixture
def fixture(request: pytest.FixtureRequest, shared: Path, tmp_path: Path) -> Fixture:
    name, config = request.param
    source = shared / "lerobot" / "policies" / name
    if request.param not in OPENED:
        OPENED[request.param] = load_policy(make_fixture(source, tmp_path / "pretrained_model", config))
    OPENED[request.param].reset()
    return Fixture(OPENED[request.param], reference(source))


def for_fixtures(*names: tuple[str, str]) -> Any:
    return pytest.mark.parametrize("fixture", names, indirect=True, ids=["-".join(name) for name in names])


def error_of_range(policy: DiffusionPolicy, found: Tensor, expected: Tensor) -> float:
    """The largest difference of actions, as a share of the action's range in the demonstrations."""
    assert found.shape == expected.shape
    action = policy.statistics["action"]
    return ((found - expected).abs() / torch.from_numpy(action["max"] - action["min"])).max().item()


def sampler_noise(policy: DiffusionPolicy, tensors: dict[str, Tensor]) -> Tensor:
    start = tensors["in.init_noise"]
    draws = policy.noise_draws() - 1
    return torch.cat([start[None], tensors["in.ddpm_variance_noise"][:draws]]) if draws else start


# Equality


@for_fixtures(*ALL)
def test_actions_are_lerobots(fixture: Fixture) -> None:
    policy, raw = fixture.policy, part(fixture.tensors, "raw.")
    found = policy.predict_action_chunk(raw, sampler_noise(policy, fixture.tensors))
    assert error_of_range(policy, found, fixture.tensors["out.chunk_px"]) <= 1e-4


@for_fixtures(*WITH_BYTES)
def test_actions_are_lerobots_from_bytes(fixture: Fixture) -> None:
    policy, raw = fixture.policy, part(fixture.tensors, "raw.")
    for name in policy.config.image_features:
        images = raw[name]
        raw[name] = (images * 255).round().to(torch.uint8)
        assert torch.equal(raw[name] / 255, images)
    found = policy.predict_action_chunk(raw, sampler_noise(policy, fixture.tensors))
    assert error_of_range(policy, found, fixture.tensors["out.chunk_px"]) <= 1e-4


@for_fixtures(*LEGACY)
def test_twelve_steps_are_lerobots(fixture: Fixture) -> None:
    seen, noise = part(fixture.tensors, "trace."), fixture.tensors["in.init_noise"][:1]
    steps = [{name: values[i : i + 1] for name, values in seen.items()} for i in range(12)]
    found = torch.cat([fixture.policy.select_action(step, noise) for step in steps])
    assert error_of_range(fixture.policy, found, fixture.tensors["out.trace_actions_px"]) <= 1e-4


@pytest.mark.parametrize(("name", "generation"), [case for case in LEGACY if case[1] != CONFIG])
def test_the_generations_say_the_same(shared: Path, tmp_path: Path, name: str, generation: str) -> None:
    source = shared / "lerobot" / "policies" / name
    shutil.copyfile(source / CONFIG, tmp_path / CONFIG)
    newest = read_config(tmp_path)
    shutil.copyfile(source / generation, tmp_path / CONFIG)
    assert read_config(tmp_path) == newest


# Small policies in both layouts


MODES = [
    {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"},
    {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    {"STATE": "IDENTITY", "ENV": "MEAN_STD", "ACTION": "MIN_MAX"},
]


@pytest.mark.parametrize("layout", ["new", "old", "2024"])
@pytest.mark.parametrize("modes", MODES)
def test_every_layout_gives_the_same_policy(tmp_path: Path, modes: dict[str, str], layout: str) -> None:
    policy = small(normalization_mapping=modes)
    if layout == "new":
        save_lerobot(policy, tmp_path / "policy")
    else:
        write_legacy(policy, tmp_path / "policy", of_2024=layout == "2024")
    loaded = load_policy(tmp_path / "policy")
    assert not loaded.training
    assert torch.equal(actions(loaded), actions(policy))


def test_bytes_of_a_resnet_with_batch_norm(tmp_path: Path) -> None:
    """Its buffers come along, the counters too."""
    config = small_config(cameras=1, backbone_width=64, backbone_stages=4, use_group_norm=False, crop_shape=(24, 28))
    policy = small_policy(config)
    policy.compute_loss(small_batch(config))  # moves the running means
    loaded = load_policy(write_legacy(policy.eval(), tmp_path / "old"))
    counters = {name: t for name, t in loaded.state_dict().items() if name.endswith("num_batches_tracked")}
    assert len(counters) == 20
    assert all(t.item() == 1 for t in counters.values())
    assert torch.equal(actions(loaded), actions(policy))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("unet.", "unet._orig_mod."),
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"model._orig_mod.{name}",
    ],
)
@pytest.mark.parametrize("layout", ["new", "old"])
def test_names_that_wrappers_left(request: pytest.FixtureRequest, layout: str, rename: Callable[[str], str]) -> None:
    folder = request.getfixturevalue(layout)
    expected = actions(load_policy(folder))

    def rename_all(weights: dict[str, Tensor]) -> None:
        for name in list(weights):
            weights[rename(name)] = weights.pop(name)

    edit_tensors(WEIGHTS, rename_all)(folder)
    assert torch.equal(actions(load_policy(folder)), expected)


@pytest.mark.parametrize("layout", ["new", "old", "2024"])
def test_states_that_the_network_does_not_see_are_left_out(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "policy"
    if layout == "new":
        save_lerobot(small(), folder)
    else:
        write_legacy(small(), folder, of_2024=layout == "2024")
    expected = actions(load_policy(folder))
    extra = {"observation.velocity": {"type": "STATE", "shape": [7]}}
    if layout == "2024":
        edit(CONFIG, lambda c: c["input_shapes"].update({"observation.velocity": [7]}))(folder)
    else:
        edit(CONFIG, lambda c: c["input_features"].update(extra))(folder)
    if layout == "new":
        edit(BEFORE, lambda c: c["steps"][3]["config"]["features"].update(extra))(folder)
        edit_tensors(STATE_BEFORE, lambda t: t.update({"observation.velocity.min": torch.zeros(7)}))(folder)
        edit_tensors(STATE_BEFORE, lambda t: t.update({"timestamp.max": torch.zeros(1)}))(folder)
    else:
        extra_tensor = {"normalize_inputs.buffer_observation_velocity.min": torch.zeros(7)}
        edit_tensors(WEIGHTS, lambda t: t.update(extra_tensor))(folder)
    loaded = load_policy(folder)
    assert "observation.velocity" not in loaded.config.input_features
    assert torch.equal(actions(loaded), expected)


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("mode", ["MIN_MAX", "MEAN_STD"])
@pytest.mark.parametrize("value", [0.0, -3e-4, 0.3, 7.0, -512.5])
def test_an_action_that_never_changed_stays_where_it_was(tmp_path: Path, value: float, mode: Any, layout: str) -> None:
    """As in LeRobot, whose scale is 1e-8 there; a small error of the network must not move the robot."""
    config = small_config(environment=4, normalization_mapping={"STATE": "MIN_MAX", "ACTION": mode})
    policy = DiffusionPolicy(config, small_statistics(config)).eval()
    write = save_lerobot if layout == "new" else write_legacy
    write(policy, tmp_path / "policy")
    constant = {"min": value, "max": value, "mean": value, "std": 0.0}

    def hold(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.startswith(
                ("action.", *(f"{p}.buffer_action." for p in ("normalize_targets", "unnormalize_outputs")))
            ):
                tensor[1] = constant[name.rpartition(".")[2]]

    for name in (STATE_BEFORE, STATE_AFTER) if layout == "new" else (WEIGHTS,):
        edit_tensors(name, hold)(tmp_path / "policy")
    found = actions(load_policy(tmp_path / "policy"))
    normalised = policy.normalizer("action", actions(policy))
    assert normalised[..., 1].std() > 0.01  # the network does move it
    assert torch.equal(found[..., [0, 2]], actions(policy)[..., [0, 2]])
    assert (found[..., 1] - value).abs().max() <= max(1e-7, 1e-6 * abs(value))


# Where LeRobot puts them


def test_a_run_gives_its_newest_checkpoint(new: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in ("000050", "000100", "1000000", "999999"):
        shutil.copytree(new, run / "checkpoints" / step / "pretrained_model")
    (run / "checkpoints" / "2000000" / "pretrained_model").mkdir(parents=True)  # not written to the end
    (run / "checkpoints" / "last").symlink_to("000050")
    assert find_policy(run) == run / "checkpoints" / "1000000" / "pretrained_model"
    assert find_policy(run / "checkpoints" / "last") == run / "checkpoints" / "last" / "pretrained_model"
    assert find_policy(run / "checkpoints" / "000100") == run / "checkpoints" / "000100" / "pretrained_model"
    assert torch.equal(actions(load_policy(run)), actions(load_policy(new)))


def test_a_copy_of_the_last_checkpoint_alone(new: Path, tmp_path: Path) -> None:
    shutil.copytree(new, tmp_path / "run" / "checkpoints" / "last" / "pretrained_model")
    assert find_policy(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"


def test_averaged_weights_are_preferred(new: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "000050"
    for name in ("pretrained_model", "pretrained_model_ema"):
        shutil.copytree(new, checkpoint / name)
    assert find_policy(tmp_path / "run") == checkpoint / "pretrained_model_ema"
    assert find_policy(checkpoint) == checkpoint / "pretrained_model_ema"
    assert find_policy(checkpoint / "pretrained_model") == checkpoint / "pretrained_model"
