"""`visuomotor export`: a policy as one folder that runs without Visuomotor (see `policy/standalone.py`)."""

import importlib
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visuomotor import __version__
from visuomotor.data.dataset import Source, load_dataset
from visuomotor.deployment import graphs
from visuomotor.deployment.coefficients import sampler_steps
from visuomotor.errors import CheckpointError, ConfigError, mismatch
from visuomotor.evaluation.open_loop import check_features
from visuomotor.files import atomic_folder, write_bytes, write_hashes
from visuomotor.policy import standalone
from visuomotor.policy.checkpoint import EXPORT, find_policy, load_policy, read_json, weights_sha256, write_config
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.exported import FORMAT_VERSION, ExportedPolicy
from visuomotor.policy.normalization import Normalizer

Format = Literal["onnx", "openvino", "torch"]
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}
CALIBRATION = 320
"""Observations that int8 is calibrated on, each with actions at one of as many levels of noise."""
QUANTIZED = ("encoder", "denoiser")
"""The graphs that int8 is for; the others take no time."""


def export(
    policy_source: str | Path,
    output: str | Path,
    format: Format = "onnx",
    *,
    int8: bool = False,
    data: Source | None = None,
    noise_scheduler_type: str | None = None,
    num_inference_steps: int | None = None,
    n_action_steps: int | None = None,
) -> None:
    """Exports a policy from wherever `load_policy` finds it.

    Args:
        policy_source: As for `load_policy`.
        output: As for `export_policy`, as is `format`.
        format: The engine.
        int8: Round weights and activations to eight bits, calibrated on `data`; for OpenVINO.
        data: Demonstrations, as for `load_dataset`; None takes those that the run was trained on.
        noise_scheduler_type: The sampler that `act.py` takes, instead of the policy's own, as are the next two.
        num_inference_steps: Denoising steps.
        n_action_steps: Actions of a chunk.

    Raises:
        ConfigError: The packages of the format are missing, or int8 is not for it, or has no data.
        CheckpointError: The policy cannot be loaded, or the folder holds something else.
        DatasetError: The data is not what the policy was made for.
    """
    _check(format, int8, data)
    folder = find_policy(policy_source)
    policy = load_policy(folder).with_sampler(noise_scheduler_type, num_inference_steps, n_action_steps)
    samples = None
    if int8:
        source = _source_of(folder, policy_source) if data is None else data
        samples = calibration_batch(policy, source)
    export_policy(policy, output, format, samples, weights_sha256(folder))


def export_policy(
    policy: DiffusionPolicy,
    output: str | Path,
    format: Format,
    calibration: Mapping[str, Tensor] | None = None,
    source_sha256: str | None = None,
) -> None:
    """Writes a policy's graphs with all that is needed to act; the folder appears whole or not at all.

    Args:
        policy: In evaluation mode, float32, on the processor.
        output: A new or an empty folder, or that of an earlier export, which is replaced.
        format: `onnx`, `openvino` or `torch`.
        calibration: Observations (N, To, ...) and `action` (N, Tp, Da) in data units: rounds to int8, for OpenVINO.
        source_sha256: Noted as that of the policy's weights.

    Raises:
        ConfigError: The packages of the format are missing, or calibration is not for it.
        CheckpointError: The policy is an exported one, or the folder holds something else.
    """
    _check(format, calibration is not None, calibration)
    if isinstance(policy, ExportedPolicy):
        raise CheckpointError(mismatch("policy", "one with weights", "an export", "export the policy it was made of"))
    output = Path(output)
    found = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if output.is_file() or (found and EXPORT not in found):
        advice = "choose another folder, or move this away"
        raise CheckpointError(mismatch(str(output), "a new folder or an earlier export", found[:8] or "a file", advice))
    with atomic_folder(output) as draft:
        for name, (module, examples) in graphs.parts(policy).items():
            file = draft / f"{name}{standalone.ENGINES[format][1]}"
            if format == "onnx":
                graphs.write_onnx(module, examples, file)
            elif format == "torch":
                graphs.write_torch(module, examples, file)
            else:
                model = graphs.openvino_model(module, examples)
                if calibration is not None and name in QUANTIZED:
                    samples = _samples(policy, name, calibration)
                    model = graphs.quantize(model, samples, policy.config, name == "denoiser")
                graphs.write_openvino(model, file)
        write_config(policy, draft)
        told = _told(policy, format, calibration is not None) | {"source_weights_sha256": source_sha256}
        write_bytes(draft / EXPORT, json.dumps(told, allow_nan=False).encode())
        write_bytes(draft / "act.py", Path(standalone.__file__).read_bytes())
        write_hashes(draft)


def calibration_batch(policy: DiffusionPolicy, source: Source) -> dict[str, Tensor]:
    """Windows of demonstrations, evenly over all of them, for `export_policy`."""
    config, dataset = policy.config, load_dataset(source)
    check_features(policy, dataset)
    rows = dataset.anchors(config.drop_n_last_frames)
    rows = np.unique(rows[np.linspace(0, len(rows) - 1, CALIBRATION).astype(int)])
    offsets = {name: config.observation_steps for name in config.input_features} | {"action": config.action_steps}
    return dataset.batch(rows, offsets)


@torch.no_grad()
def _samples(policy: DiffusionPolicy, name: str, batch: Mapping[str, Tensor]) -> Iterator[dict[str, np.ndarray]]:
    """What a graph meets when the policy acts: images; or noisy actions at all steps, from the cleanest on."""
    count = len(batch["action"])
    if name == "encoder":
        for row in range(count):
            seen = [batch[camera][row, -1:].numpy() for camera in policy.config.image_features]
            yield {f"images_{i}": standalone.as_floats(images) for i, images in enumerate(seen)}
        return
    generator = torch.Generator().manual_seed(0)
    draws = policy.draw(count, generator)
    condition, clean, noise, _ = policy.training_inputs(batch, draws)
    levels = torch.linspace(0, policy.config.num_train_timesteps - 1, count).round().long()
    x = policy.schedule.add_noise(clean, noise, levels)
    of_cond = graphs.Condition(policy)(condition)
    of_steps = graphs.Steps(policy, condition.shape[1])(levels.float())
    for row in range(count):
        yield {"x": x[row : row + 1].numpy(), "told": (of_cond + of_steps)[row : row + 1].numpy()}


def _told(policy: DiffusionPolicy, format: Format, int8: bool) -> dict[str, Any]:
    """The content of `export.json`, which is all that `act.py` reads beside the graphs."""
    config = policy.config
    observations = {
        name: {"shape": list(feature.shape)}
        | ({} if feature.type == "VISUAL" else _constants(policy.normalizer, name, ""))
        for name, feature in config.input_features.items()
    }
    shape = list(config.output_features["action"].shape)
    packages = [*PACKAGES[format], *(["nncf"] if int8 else [])]
    return {
        "format_version": FORMAT_VERSION,
        "engine": format,
        "precision": "int8" if int8 else "float32",
        "observations": observations,
        "action": {"shape": shape} | _constants(policy.normalizer, "action", "inverse_"),
        "n_obs_steps": config.n_obs_steps,
        "horizon": config.horizon,
        "n_action_steps": config.n_action_steps,
        "noise_draws": policy.noise_draws(),
        "timesteps": policy.denoising_steps(),
        "sampler": sampler_steps(policy),
        "clip": config.clip_sample_range if config.clip_sample else None,
        "versions": {
            "visuomotor": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }


def _constants(normalizer: Normalizer, name: str, way: Literal["", "inverse_"]) -> dict[str, list[float]]:
    offset, scale = normalizer.constants(name, way)
    return {"offset": offset.tolist(), "scale": scale.tolist()}


def _check(format: str, int8: bool, data: Any) -> None:
    if format not in PACKAGES:
        raise ConfigError(mismatch("format", f"one of {list(PACKAGES)}", repr(format), "choose one of them"))
    if int8 and format != "openvino":
        raise ConfigError(mismatch("int8", "format openvino", format, "leave int8 out, or export to openvino"))
    if data is not None and not int8:
        raise ConfigError(mismatch("data", "int8", "float32", "leave data out: only int8 is calibrated"))
    for package in (*PACKAGES[format], *(("nncf",) if int8 else ())):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            extra = f"{format},int8" if int8 else format
            advice = f"pip install 'visuomotor[{extra}]'"
            raise ConfigError(mismatch(f"format {format}", f"{package} to be installed", "none", advice)) from error


def _source_of(folder: Path, policy_source: str | Path) -> Source:
    """What the run was trained on whose checkpoint the policy is: RUN/checkpoints/step_000050/policy."""
    parents = folder.resolve().parents
    run = parents[2] / "config.json" if len(parents) > 2 and parents[1].name == "checkpoints" else None
    content = read_json(run) if run is not None and run.is_file() else None
    source = content.get("source") if isinstance(content, dict) else None
    if not isinstance(source, str | list):
        advice = "name the demonstrations to calibrate int8 with"
        raise ConfigError(mismatch("data", "a SOURCE, or a run that notes its own", f"{policy_source}", advice))
    return source
