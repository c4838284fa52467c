"""LeRobot's checkpoints that are damaged, or more than ours can be: each is answered with one error that names it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from visuomotor.errors import CheckpointError
from visuomotor.policy.checkpoint import load_policy
from visuomotor.policy.lerobot_export import STATE_AFTER, STATE_BEFORE

from .lerobot_folders import AFTER, BEFORE, CONFIG, WEIGHTS, actions, edit, edit_tensors, small, write_legacy


def value(name: str, found: Any) -> Callable[[Path], None]:
    return edit(CONFIG, lambda content: content.update({name: found}))


def step(place: int, **changes: Any) -> Callable[[Path], None]:
    """Changes the options of a step of the preprocessor."""
    return edit(BEFORE, lambda content: content["steps"][place]["config"].update(changes))


def norm_map(**changes: str) -> Callable[[Path], None]:
    return edit(BEFORE, lambda content: content["steps"][3]["config"]["norm_map"].update(changes))


def drop(name: str, *tensors: str) -> Callable[[Path], None]:
    return edit_tensors(name, lambda content: [content.pop(tensor) for tensor in tensors])


def put(name: str, tensor: str, values: Tensor) -> Callable[[Path], None]:
    return edit_tensors(name, lambda content: content.update({tensor: values}))


def add_step(name: str, **options: Any) -> Callable[[Path], None]:
    return edit(BEFORE, lambda c: c["steps"].append({"registry_name": name, "config": options}))


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (value("type", "act"), "config.json: type: expected diffusion, got 'act'; only Diffusion Policies are run"),
        (value("n_transformer_layers", 8), "config.json: n_transformer_layers: expected a known field, got an unk"),
        (value("use_peft", True), "config.json: use_peft: expected a known field, got an unknown one, True; did you"),
        (value("backbone_width", 64), "config.json: backbone_width: expected a known field, got an unknown one, 64"),
        (
            value("vision_backbone", "resnet50"),
            "config.json: vision_backbone: expected 'resnet18' or 'resnet34', got 'r",
        ),
        (
            value("noise_scheduler_type", "PNDM"),
            "config.json: noise_scheduler_type: expected 'DDPM' or 'DDIM', got 'PN",
        ),
        (value("beta_schedule", "sigmoid"), "config.json: beta_schedule: expected 'squaredcos_cap_v2' or 'linear'"),
        (value("prediction_type", "v_prediction"), "config.json: prediction_type: expected 'epsilon' or 'sample',"),
        (value("horizon", None), "config.json: horizon: expected a valid integer, got None"),
        (value("horizon", 9), "config.json: horizon: expected a multiple of 4 = "),
        (value("input_features", [1]), "config.json: input_features: expected a valid dictionary, got [1]"),
        (value("output_features", {}), "config.json: features: expected observations in and `action` out, got ["),
        (value("input_features", {}), "config.json: features: expected observations in and `action` out, got [] in,"),
        (value("pretrained_backbone_weights", "X"), "pretrained_backbone_weights: expected null or one of ['ResNe"),
        (
            value("down_dims", [16, 64]),
            "model.safetensors: diffusion.unet.down_modules.1.0.cond_encoder.1.bias: expect",
        ),
        (value("down_dims", [16, 10**15]), "config.json: expected a network of possible size, got "),
        (value("num_train_timesteps", 10**9), "config.json: num_train_timesteps: expected 100000 or less, got 10000"),
        (
            edit(CONFIG, lambda c: c.pop("clip_sample")),
            "config.json: clip_sample: expected a value, got none; every Le",
        ),
        (
            edit(CONFIG, lambda c: c["normalization_mapping"].update(STATE="QUANTILES")),
            "config.json: normalization_mapping.STATE: expected 'MIN_MAX', 'MEAN_STD' or 'IDENTITY', got 'QUANTILES'",
        ),
        (
            norm_map(STATE="QUANTILES"),
            "policy_preprocessor.json: normalizer_processor: norm_map of STATE (observation.state): expected MIN_MAX, "
            "which config.json has, got 'QUANTILES'; the two files must agree",
        ),
        (
            edit(AFTER, lambda c: c["steps"][0]["config"]["norm_map"].update(ACTION="MEAN_STD")),
            "policy_postprocessor.json: unnormalizer_processor: norm_map of ACTION (action): expected MIN_MAX,",
        ),
        (
            edit(BEFORE, lambda c: c["steps"][3]["config"]["features"]["observation.state"].update(shape=[3])),
            "normalizer_processor: features: observation.state: expected {'type': 'STATE', 'shape': [2]}, whic",
        ),
        (step(0, rename_map={"image": "observation.image"}), "rename_observations_processor: expected normalizer_"),
        (
            step(2, float_dtype="bfloat16"),
            "policy_preprocessor.json: device_processor: expected normalizer_processor a",
        ),
        (
            add_step("image_crop_resize_processor", resize=[8, 8]),
            "preprocessor.json: image_crop_resize_processor: expe",
        ),
        (add_step("normalizer_processor"), "normalizer_processor: features, norm_map: expected a value for each, "),
        (
            edit(BEFORE, lambda c: c["steps"].append({"class": "my.Step", "config": {}})),
            "policy_preprocessor.json: my.Step: expected normalizer_processor and steps that change nothing, g",
        ),
        (edit(BEFORE, lambda c: c["steps"].pop()), "json: normalizer_processor: expected one such step, got 0; copy"),
        (edit(BEFORE, lambda c: c.update(steps={})), "policy_preprocessor.json: steps: expected a list of steps, "),
        (step(3, eps=1e-6), "normalizer_processor: eps: expected 1e-08, got 1e-06; no other is used here"),
        (step(3, clip=2.0), "normalizer_processor: clip: expected a known option, got an unknown one, 2.0; it is "),
        (
            step(3, normalize_observation_keys=["observation.state"]),
            "normalize_observation_keys: expected observation.environment_state, got ['observation.state']; ev",
        ),
        (
            edit(BEFORE, lambda c: c["steps"][3].update(state_file="../secret.safetensors")),
            "policy_preprocessor.json: state_file: expected the name of a safetensors file beside it, got '../",
        ),
        (
            edit(BEFORE, lambda c: c["steps"][3].pop("state_file")),
            "policy_preprocessor.json: observation.state.min: expected statistics of observation.state, got no",
        ),
        (remove(STATE_BEFORE), "normalizer_processor.safetensors: expected a safetensors file, got none; copy the"),
        (remove(BEFORE), "policy_preprocessor.json: expected a JSON file, got none; copy the whole folder again"),
        (remove(AFTER), "policy_postprocessor.json: expected a JSON file, got none; copy the whole folder again"),
        (
            drop(STATE_BEFORE, "observation.environment_state.max"),
            f"{STATE_BEFORE}: observation.environment_state.max: expected statistics of observation.environmen",
        ),
        (put(STATE_BEFORE, "action.median", torch.zeros(3)), f"{STATE_BEFORE}: action.median: expected finite num"),
        (
            put(STATE_BEFORE, "observation.state.min", torch.full((2,), torch.nan)),
            f"{STATE_BEFORE}: observation.state.min: expected finite numbers of one of ['min', 'max', 'mean', ",
        ),
        (
            put(STATE_BEFORE, "observation.state.min", torch.zeros(5)),
            "statistics of observation.state: min: expected finite numbers of (2,), got (5,); the statistics b",
        ),
        (
            put(STATE_BEFORE, "observation.state.min", torch.full((2,), 1e6)),
            "statistics of observation.state: max: expected [1000000.0, 1000000.0] (min) or more, got [",
        ),
        (put(STATE_AFTER, "action.max", torch.ones(3)), "policy_postprocessor.json: max of action: expected ["),
        (put(WEIGHTS, "diffusion.more", torch.zeros(1)), "model.safetensors: diffusion.more: expected no such ten"),
        (
            drop(WEIGHTS, "diffusion.unet.final_conv.1.bias"),
            "model.safetensors: diffusion.unet.final_conv.1.bias: expected a tensor, got none; config.json and",
        ),
        (
            put(WEIGHTS, "diffusion.unet.final_conv.1.bias", torch.zeros(4)),
            "model.safetensors: diffusion.unet.final_conv.1.bias: expected (3,), got (4,); config.json differs",
        ),
        (
            put(WEIGHTS, "diffusion.unet.final_conv.1.bias", torch.zeros(3, dtype=torch.int64)),
            "diffusion.unet.final_conv.1.bias: expected real numbers, got torch.int64; the file is damaged",
        ),
        (
            put(WEIGHTS, "diffusion.unet.final_conv.1.bias", torch.full((3,), torch.nan)),
            "diffusion.unet.final_conv.1.bias: expected finite numbers, got others; the training diverged, or ",
        ),
        (
            put(WEIGHTS, "diffusion.unet._orig_mod.final_conv.1.bias", torch.zeros(3)),
            "final_conv.1.bias: expected one tensor of that name, got two; the file is damaged",
        ),
        (
            put(WEIGHTS, "normalize_inputs.buffer_observation_state.min", torch.zeros(2)),
            "normalize_inputs.buffer_observation_state.min: expected no such tensor, got one",
        ),
    ],
)
def test_what_does_not_fit_is_named(new: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(new)
    refused(new, message)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_policy(folder)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


STATE_MIN = "normalize_inputs.buffer_observation_state.min"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            put(WEIGHTS, STATE_MIN, torch.full((2,), torch.inf)),
            f"model.safetensors: {STATE_MIN}: expected statistics of observation.state, got [inf, inf]; it was",
        ),
        (drop(WEIGHTS, STATE_MIN), f"{STATE_MIN}: expected statistics of observation.state, got none; copy the file"),
        (
            drop(WEIGHTS, "unnormalize_outputs.buffer_action.max"),
            "unnormalize_outputs.buffer_action.max: expected statistics of action, got none; copy the file again",
        ),
        (
            put(WEIGHTS, "normalize_targets.buffer_action.max", torch.full((3,), 100.0)),
            "normalize_targets [100.0, 100.0, 100.0]; the file is damaged",
        ),
        (
            put(WEIGHTS, STATE_MIN, torch.zeros(5)),
            "statistics of observation.state: min: expected finite numbers of (2,), got (5,)",
        ),
        (
            put(WEIGHTS, STATE_MIN.replace("state", "effort"), torch.zeros(5)),
            "normalize_inputs.buffer_observation_effort.min: expected no such tensor, got one; config.json and",
        ),
        (
            edit(CONFIG, lambda c: c["normalization_mapping"].pop("ENV")),
            "normalize_inputs.buffer_observation_environment_state.max: expected no such tensor, got one; conf",
        ),
    ],
)
def test_what_does_not_fit_in_an_old_one_is_named(old: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(old)
    refused(old, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["input_normalization_modes"].update({"observation.state": "quantile"}),
            "config.json: normalization of observation.state: expected one of ['min_max', 'mean_std'], got 'qu",
        ),
        (lambda c: c.update(input_shapes=None), "config.json: input_shapes: expected a value for each feature, go"),
        (
            lambda c: c.update(chunk_size=100),
            "config.json: chunk_size: expected a known field, got an unknown one, 100",
        ),
        (lambda c: c["output_normalization_modes"].clear(), "normalize_targets.buffer_action.max: expected no suc"),
    ],
)
def test_what_does_not_fit_in_the_oldest_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    folder = write_legacy(small(), tmp_path / "old", of_2024=True)
    edit(CONFIG, change)(folder)
    refused(folder, message)


def test_two_modes_for_cameras_in_the_oldest(tmp_path: Path) -> None:
    shapes = {"observation.state": [2], "observation.images.a": [3, 32, 32], "observation.images.b": [3, 32, 32]}
    write_legacy(small(), tmp_path / "old", of_2024=True)
    modes = {"observation.images.a": "mean_std", "observation.images.b": "min_max"}
    edit(CONFIG, lambda c: c.update(input_shapes=shapes, input_normalization_modes=modes))(tmp_path / "old")
    refused(
        tmp_path / "old",
        "normalization of observation.images.b: expected MEAN_STD as for the others of its type, got MIN_MAX; ",
    )


@pytest.mark.parametrize(
    "change",
    [
        value("a_field_of_the_future", None),
        value("use_something_new", False),
        value("optimizer_lr", 0.5),
        value("license", "mit"),
        value("compile_model", True),
        step(2, device="cuda", float_dtype="float32"),
        step(0, rename_map={"observation.state": "observation.state"}),
        step(3, normalize_observation_keys=["observation.environment_state", "observation.state"]),
        put(STATE_BEFORE, "action.q01", torch.zeros(3)),
        edit(CONFIG, lambda c: [c.pop(name) for name in ("resize_shape", "crop_ratio", "gradient_checkpointing")]),
    ],
)
def test_what_changes_no_action_is_taken(new: Path, change: Callable[[Path], None]) -> None:
    expected = actions(load_policy(new))
    change(new)
    assert torch.equal(actions(load_policy(new)), expected)


def test_pretrained_weights_have_our_name_and_are_not_fetched(new: Path) -> None:
    changes = {"use_group_norm": False, "pretrained_backbone_weights": "ResNet18_Weights.IMAGENET1K_V1"}
    edit(CONFIG, lambda c: c.update(changes))(new)
    assert load_policy(new).config.pretrained_backbone_weights == "timm/resnet18.tv_in1k"


def test_a_pickle_is_refused(new: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, new / STATE_BEFORE)
    refused(new, f"{STATE_BEFORE}: expected safetensors, got ")


def test_statistics_outside_the_folder_are_not_read(new: Path, tmp_path: Path) -> None:
    shutil.copyfile(new / STATE_BEFORE, tmp_path / "beside.safetensors")
    for name in (str(tmp_path / "beside.safetensors"), "../beside.safetensors", "..", ""):
        edit(BEFORE, lambda c, name=name: c["steps"][3].update(state_file=name))(new)
        message = "policy_preprocessor.json: state_file: expected the name of a safetensors file beside it, got "
        refused(new, message + repr(name)[:40])
