"""Writes a policy as LeRobot 0.6 does, so that its `DiffusionPolicy.from_pretrained` and its processors load it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visuomotor.config import FLOW, DiffusionConfig, Feature
from visuomotor.errors import CheckpointError, mismatch
from visuomotor.files import atomic_folder, write_bytes
from visuomotor.policy.checkpoint import save_tensors
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.lerobot import EPS, LEROBOTS_VALUES, PRETRAINED
from visuomotor.serialization import to_json

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
STATE_BEFORE = f"{PREPROCESSOR}_step_3_normalizer_processor.safetensors"
STATE_AFTER = f"{POSTPROCESSOR}_step_0_unnormalizer_processor.safetensors"
FILES = (
    *("config.json", "model.safetensors", f"{PREPROCESSOR}.json", f"{POSTPROCESSOR}.json"),
    *(STATE_BEFORE, STATE_AFTER),
)
ACTING = ("noise_scheduler_type", "timesteps", "ddim_eta", "warm_start")
"""Fields that `with_sampler` changes, and LeRobot does not know or knows fewer values of."""


def save_lerobot(policy: DiffusionPolicy, folder: str | Path) -> None:
    """Writes a policy for LeRobot 0.6: config.json, model.safetensors, two processors and their statistics.

    The folder appears whole or not at all. Training settings that a policy does not hold are LeRobot's defaults; the
    device is the processor, which every machine has. An observation's dimension that never changed in the
    demonstrations is written with the range or deviation that makes LeRobot's arithmetic ours.

    Args:
        policy: What to write, in float32.
        folder: Where. An earlier policy of this kind there is replaced; anything else must be new or empty.

    Raises:
        CheckpointError: LeRobot cannot express the policy (the field is named), or the folder holds something else.
    """
    config = policy.config
    _check_expressible(config)
    _check_folder(Path(folder))
    statistics = _statistics(policy)
    inputs, outputs = _features(config.input_features), _features(config.output_features)
    with atomic_folder(folder) as draft:
        _write_json(draft / "config.json", _config(config), indent=4)
        weights = {
            name: tensor.to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
            for name, tensor in policy.state_dict().items()
        }
        save_tensors(weights, draft / "model.safetensors", {"format": "pt"})
        normalize = _normalizer("normalizer_processor", inputs | outputs, config, STATE_BEFORE)
        rename = {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}
        batch = {"registry_name": "to_batch_processor", "config": {}}
        device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
        before = {"name": PREPROCESSOR, "steps": [rename, batch, device, normalize]}
        _write_json(draft / f"{PREPROCESSOR}.json", before, indent=2)
        unnormalize = _normalizer("unnormalizer_processor", outputs, config, STATE_AFTER)
        after = {"name": POSTPROCESSOR, "steps": [unnormalize, device]}
        _write_json(draft / f"{POSTPROCESSOR}.json", after, indent=2)
        for name in (STATE_BEFORE, STATE_AFTER):
            save_tensors(statistics, draft / name)


def _check_expressible(config: DiffusionConfig) -> None:
    cameras, seen = config.image_features, list(config.input_features)
    shapes = [feature.shape for feature in cameras.values()]
    rules: list[tuple[bool, str, object, object]] = [
        (getattr(config, name) in known, name, f"one of {list(known)}", getattr(config, name))
        for name, known in LEROBOTS_VALUES.items()
    ]
    rules.append((config.denoiser == "unet", "denoiser", "unet", config.denoiser))
    rules.append((config.timesteps is None, "timesteps", None, config.timesteps))
    rules.append((config.ddim_eta == 0, "ddim_eta", 0, config.ddim_eta))
    rules.append((config.warm_start == 1, "warm_start", 1, config.warm_start))
    if cameras:  # else nothing has a backbone
        rules.append((config.backbone_width == 64, "backbone_width", 64, config.backbone_width))
        rules.append((config.backbone_stages == 4, "backbone_stages", 4, config.backbone_stages))
    rules.append((len(set(shapes)) <= 1, "input_features", "cameras of one shape", shapes))
    rules.append((config.state_feature is not None, "input_features", "observation.state among them", seen))
    other = bool(cameras) or config.env_state_feature is not None
    rules.append((other, "input_features", "a camera or observation.environment_state among them", seen))
    for holds, name, expected, found in rules:
        if not holds:
            advice = "LeRobot has no such policy: keep it in Visuomotor's own format"
            if name in ACTING and found != FLOW:
                advice = "the weights are the same however they act: choose what it knows by policy.with_sampler(...)"
                advice += ", or visuomotor convert --noise-scheduler-type DDIM"
            raise CheckpointError(mismatch(f"{name}, for LeRobot", expected, found, advice))


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        return
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ["a file"]
    if set(found) - set(FILES):
        expected, advice = "a new folder or an earlier policy for LeRobot", "choose another, or move this away"
        raise CheckpointError(mismatch(str(folder), expected, found[:8], advice))


def _write_json(path: Path, content: Any, indent: int) -> None:
    write_bytes(path, json.dumps(content, indent=indent, allow_nan=False).encode())


def _features(features: dict[str, Feature]) -> dict[str, Any]:
    return {name: {"type": feature.type, "shape": list(feature.shape)} for name, feature in features.items()}


def _normalizer(name: str, features: dict[str, Any], config: DiffusionConfig, state: str) -> dict[str, Any]:
    options = {"eps": EPS, "features": features, "norm_map": dict(config.normalization_mapping)}
    return {"registry_name": name, "config": options, "state_file": state}


def _config(config: DiffusionConfig) -> dict[str, Any]:
    """LeRobot's fields in LeRobot's order."""
    ours = to_json(config)
    ours["input_features"], ours["output_features"] = (
        _features(config.input_features),
        _features(config.output_features),
    )
    ours["crop_shape"] = config.crop and list(config.crop)  # with resize_shape LeRobot writes what follows from it
    # Weights from elsewhere are not LeRobot's to fetch, and the trained ones replace them anyway.
    torchvision = (name for name, timm in PRETRAINED.items() if timm == config.pretrained_backbone_weights)
    ours["pretrained_backbone_weights"] = next(torchvision, None)

    def take(*names: str) -> dict[str, Any]:
        return {name: ours[name] for name in names}

    return {
        "type": "diffusion",
        **take("n_obs_steps", "input_features", "output_features"),
        **{"device": "cpu", "use_amp": False, "use_peft": False, "push_to_hub": False, "repo_id": None},
        **dict.fromkeys(("private", "tags", "license", "pretrained_path", "pretrained_revision")),
        **take("horizon", "n_action_steps", "normalization_mapping", "drop_n_last_frames", "vision_backbone"),
        **take("resize_shape", "crop_ratio", "crop_shape", "crop_is_random", "pretrained_backbone_weights"),
        **take("use_group_norm", "spatial_softmax_num_keypoints", "use_separate_rgb_encoder_per_camera"),
        **take("down_dims", "kernel_size", "n_groups", "diffusion_step_embed_dim", "use_film_scale_modulation"),
        **take("gradient_checkpointing", "noise_scheduler_type", "num_train_timesteps", "beta_schedule"),
        **take("beta_start", "beta_end", "prediction_type", "clip_sample", "clip_sample_range", "num_inference_steps"),
        **{"compile_model": False, "compile_mode": "reduce-overhead"},
        **take("do_mask_loss_for_padding"),
        **{"optimizer_lr": 1e-4, "optimizer_betas": [0.95, 0.999], "optimizer_eps": 1e-8},
        **{"optimizer_weight_decay": 1e-6, "scheduler_name": "cosine", "scheduler_warmup_steps": 500},
    }


def _statistics(policy: DiffusionPolicy) -> dict[str, Tensor]:
    """`feature.statistic` -> float32, as a processor's file holds them."""
    config, tensors = policy.config, {}
    for name, feature in (config.input_features | config.output_features).items():
        values = {key: np.asarray(v, dtype=np.float32) for key, v in policy.statistics.get(name, {}).items()}
        mode = config.normalization_mapping.get(feature.type, "IDENTITY")
        # LeRobot divides by 1e-8 where nothing changed, we by 1: these are the statistics of that scale and offset. An
        # action is held there by both.
        observed = name in config.input_features
        if observed and mode == "MIN_MAX":
            values["max"] = np.where(values["max"] > values["min"], values["max"], values["min"] + np.float32(2))
        elif observed and mode == "MEAN_STD":
            values["std"] = np.where(values["std"] > 0, values["std"], np.float32(1))
        for key, value in values.items():
            if feature.type == "VISUAL" and value.size == feature.shape[0]:
                value = value.reshape(-1, 1, 1)
            tensors[f"{name}.{key}"] = torch.from_numpy(np.ascontiguousarray(value))
    return tensors
