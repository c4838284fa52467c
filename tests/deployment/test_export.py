"""Exported policies act as the policies that they were made of."""

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from visuomotor.config import DiffusionConfig
from visuomotor.deployment.coefficients import sampler_steps
from visuomotor.deployment.export import export, export_policy
from visuomotor.errors import CheckpointError, ConfigError
from visuomotor.files import HASHES, write_hashes
from visuomotor.policy.checkpoint import load_policy, save_policy
from visuomotor.policy.diffusion import DiffusionPolicy

from ..policy.small import observation, small_batch, small_config, small_policy

FORMATS = ("onnx", "openvino", "torch")
# Exporting takes as long as a network has layers: the first U-Net has all kinds of them, the others one stage.
POLICIES = {
    "key points": small_config(environment=4, noise_scheduler_type="DDIM", num_inference_steps=5),
    "no FiLM scale, DDPM": small_config(use_film_scale_modulation=False, clip_sample=False, down_dims=(16,)),
    "transformer": small_config(denoiser="transformer", transformer_dim=16, transformer_layers=2, transformer_heads=2),
    "camera": small_config(
        cameras=1, noise_scheduler_type="DPMSolverMultistep", num_inference_steps=4, down_dims=(16,)
    ),
    "cameras, resized and cropped": small_config(
        cameras=2,
        environment=4,
        use_separate_rgb_encoder_per_camera=True,
        use_group_norm=False,
        backbone_stages=1,
        down_dims=(16,),
        resize_shape=(30, 34),
        crop_ratio=0.8,
        noise_scheduler_type="FlowMatchEuler",
        prediction_type="v_prediction",
        num_inference_steps=3,
    ),
}


def policy_of(config: DiffusionConfig) -> DiffusionPolicy:
    """In evaluation mode, with a denoiser that says something from the start."""
    policy = small_policy(config).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            if not weight.any():
                weight.normal_(std=0.1, generator=random)
    return policy


def noise_for(policy: DiffusionPolicy, size: int) -> torch.Tensor:
    shape = (policy.noise_draws(), size, policy.config.horizon, *policy.config.output_features["action"].shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def standalone(folder: Path) -> ModuleType:
    """The folder's own act.py."""
    spec = importlib.util.spec_from_file_location("act", folder / "act.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def furthest(found: Any, wanted: torch.Tensor, policy: DiffusionPolicy) -> float:
    """The largest difference of normalised actions; relative, where they are larger than 1."""
    first, second = (policy.normalizer("action", torch.as_tensor(values)) for values in (found, wanted))
    return float(((first - second).abs() / second.abs().clamp(min=1)).max())


Export = Callable[[str, Any], Path]


@pytest.fixture(scope="module")
def exported_as(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The folder of one of `POLICIES` in a format, which no test may change."""

    @cache
    def exported_as(name: str, format: Any) -> Path:
        folder = tmp_path_factory.mktemp("exported") / "policy"
        export_policy(policy_of(POLICIES[name]), folder, format)
        return folder

    return exported_as


@pytest.fixture
def exported(exported_as: Export) -> Path:
    """Key points in ONNX."""
    return exported_as("key points", "onnx")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("format", FORMATS)
def test_plans_as_the_policy_does(format: Any, name: str, exported_as: Export) -> None:
    folder, config = exported_as(name, format), POLICIES[name]
    policy, loaded = policy_of(config), load_policy(folder)
    assert loaded.config == config
    runner = standalone(folder).Policy()
    for size in (1, 3):  # one shape that is compiled for itself, and one that is not
        seen, noise = observation(small_batch(config, size)), noise_for(policy, size)
        wanted = policy.plan(seen, noise)
        assert furthest(loaded.plan(seen, noise), wanted, policy) < 1e-4
        arrays = {name: values.numpy() for name, values in seen.items()}
        assert furthest(runner.plan(arrays, noise.numpy()), wanted, policy) < 1e-4
        executed = loaded.predict_action_chunk(seen, noise)
        assert furthest(executed, policy.predict_action_chunk(seen, noise), policy) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("shipped", ["pusht-keypoints-small", "pusht-image-small"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_shipped_policies(format: Any, shipped: str, tmp_path: Path) -> None:
    export(shipped, tmp_path / "exported", format)
    policy, loaded = load_policy(shipped), load_policy(tmp_path / "exported")
    random, noise = np.random.default_rng(0), noise_for(policy, 1)
    seen = {
        name: torch.from_numpy(random.uniform(0, 1 if feature.type == "VISUAL" else 512, (1, 2, *feature.shape)))
        for name, feature in policy.config.input_features.items()
    }
    wanted = policy.plan(seen, noise)
    assert furthest(loaded.plan(seen, noise), wanted, policy) < 1e-4
    runner = standalone(tmp_path / "exported").Policy(threads=1)
    assert furthest(runner.plan({n: v.numpy() for n, v in seen.items()}, noise.numpy()), wanted, policy) < 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_scheduler_type": "DDPM", "num_inference_steps": 20},
        {"noise_scheduler_type": "DDIM", "num_inference_steps": 10, "ddim_eta": 0.5},
        {"noise_scheduler_type": "DPMSolverMultistep", "num_inference_steps": 6},
        {"warm_start": 0.5},
    ],
    ids=str,
)
def test_other_samplers_and_steps(changes: dict[str, Any], exported: Path) -> None:
    policy = policy_of(POLICIES["key points"]).with_sampler(**changes)
    loaded = load_policy(exported).with_sampler(**changes)
    seen, noise = observation(small_batch(policy.config)), noise_for(policy, 3)
    first = policy.plan(seen, noise)
    assert furthest(loaded.plan(seen, noise), first, policy) < 1e-4
    again = policy.plan(seen, noise, previous=first)
    assert furthest(loaded.plan(seen, noise, previous=first), again, policy) < 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("sampler", [("DDPM", 20), ("DDIM", 5), ("DPMSolverMultistep", 5)])
def test_a_sampler_in_numbers(sampler: tuple[Any, int], prediction: Any) -> None:
    """Exact in float64, whatever the network says."""
    changes = {"noise_scheduler_type": sampler[0], "num_inference_steps": sampler[1], "prediction_type": prediction}
    policy = small_policy(small_config(**changes))
    noise = noise_for(policy, 2).double()

    def predict(x: torch.Tensor, step: float) -> torch.Tensor:
        return (x * 1.3 + step / 7).sin()

    from visuomotor.policy.samplers import sampler_of

    steps = policy.denoising_steps()
    wanted = sampler_of(policy.config)(predict, policy.schedule, noise, steps)
    x, before = noise[0], torch.zeros(())
    for i, (row, step) in enumerate(zip(sampler_steps(policy), steps, strict=True)):
        said = predict(x, step)
        clean = (row["clean"]["x"] * x + row["clean"]["prediction"] * said).clamp(-1, 1)
        known = {"x": x, "prediction": said, "clean": clean, "before": before}
        known["noise"] = noise[i + 1] if i + 1 < len(noise) else torch.zeros(())
        x, before = sum((share * known[name] for name, share in row["next"].items()), torch.zeros(())), clean
    assert torch.allclose(x, wanted, rtol=1e-9, atol=1e-9)


def test_acts_with_a_queue_as_the_policy_does(exported: Path) -> None:
    policy, loaded = policy_of(POLICIES["key points"]), load_policy(exported)
    for step in range(6):
        seen = {name: values[:, 0] for name, values in observation(small_batch(policy.config, 1, seed=step)).items()}
        noise = noise_for(policy, 1)
        assert furthest(loaded.select_action(seen, noise), policy.select_action(seen, noise), policy) < 1e-4


def test_features_of_frames_are_kept(exported_as: Export) -> None:
    policy, loaded = policy_of(POLICIES["camera"]), load_policy(exported_as("camera", "onnx"))
    for step in range(3):
        seen = {name: values[:, 0] for name, values in observation(small_batch(policy.config, 1, seed=step)).items()}
        policy.observe(seen)
        loaded.observe(seen)
        noise = noise_for(policy, 1)
        assert furthest(loaded.plan(None, noise), policy.plan(None, noise), policy) < 1e-4
    assert all(frame.image_features is not None for frame in loaded._frames)


def test_runs_without_torch_and_visuomotor(exported: Path) -> None:
    program = (
        "import sys, runpy\n"
        "for name in ('torch', 'visuomotor', 'onnx', 'scipy'): sys.modules[name] = None\n"
        f"sys.argv = ['act.py', '1']\nrunpy.run_path({str(exported / 'act.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ms a plan: onnx, float32" in done.stdout


def test_standalone_acts_with_a_queue(exported: Path) -> None:
    runner, config = standalone(exported).Policy(), POLICIES["key points"]
    planned = [np.arange(24, dtype=np.float32).reshape(1, 8, 3), np.zeros((1, 8, 3), np.float32)]
    seen = []
    runner.plan = lambda observed, noise=None: (seen.append(observed), planned[len(seen) - 1])[1]
    for step in range(5):
        now = {"observation.state": np.full(2, step), "observation.environment_state": np.full(4, step)}
        action = runner.select_action(now)
        assert action.tolist() == ([3 + 3 * step, 4 + 3 * step, 5 + 3 * step] if step < 4 else [0, 0, 0])
    assert seen[0]["observation.state"].tolist() == [[[0, 0], [0, 0]]]  # the first stands for the past
    assert seen[1]["observation.state"].tolist() == [[[3, 3], [4, 4]]]
    assert config.n_action_steps == 4


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_int8_is_near(engine: str, tmp_path: Path) -> None:
    policy = policy_of(replace(POLICIES["camera"], down_dims=(16, 32, 64), prediction_type="sample"))
    batch = small_batch(policy.config, 32)
    if engine == "onnx":
        with pytest.raises(ConfigError, match="int8: expected format openvino, got onnx; "):
            export_policy(policy, tmp_path / "exported", "onnx", batch)
        return
    export_policy(policy, tmp_path / "float32", "openvino")
    export_policy(policy, tmp_path / "int8", "openvino", batch)
    assert json.loads((tmp_path / "int8" / "export.json").read_text())["precision"] == "int8"
    for name in ("encoder", "denoiser"):
        sizes = [(tmp_path / folder / f"{name}.bin").stat().st_size for folder in ("int8", "float32")]
        assert sizes[0] < 0.6 * sizes[1]
    seen, noise = observation(small_batch(policy.config, seed=5)), noise_for(policy, 3)
    loaded = load_policy(tmp_path / "int8")
    assert 1e-4 < furthest(loaded.plan(seen, noise), policy.plan(seen, noise), policy) < 0.5


def test_what_is_refused(exported: Path, tmp_path: Path) -> None:
    loaded = load_policy(exported)
    for refused in (lambda: save_policy(loaded, tmp_path / "x"), lambda: export_policy(loaded, tmp_path / "x", "onnx")):
        with pytest.raises(CheckpointError, match=r"got an export; (take|export) the policy"):
            refused()
    with pytest.raises(CheckpointError, match="policy: expected one with training, got an export; "):
        loaded.compute_loss(small_batch(loaded.config))
    with pytest.raises(CheckpointError, match="device: expected cpu for an exported policy, got cuda; "):
        load_policy(exported, device="cuda")
    assert list(tmp_path.iterdir()) == []


def test_gradients_are_refused(exported: Path) -> None:
    loaded = load_policy(exported)

    def guide(predict: Any) -> Any:
        def guided(x: torch.Tensor, step: float) -> torch.Tensor:
            with torch.enable_grad():
                return predict(x.requires_grad_(), step)

        return guided

    with pytest.raises(CheckpointError, match="policy: expected one with gradients, as real-time chunking takes them"):
        loaded.plan(observation(small_batch(loaded.config)), guide=guide)


def test_a_damaged_file(folder: Path) -> None:
    content = bytearray((folder / "denoiser.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "denoiser.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"denoiser.onnx has been altered \(SHA-256 .*; copy the whole folder"):
        load_policy(folder)
    with pytest.raises(ValueError, match=r"denoiser.onnx: expected the file that was exported, got another"):
        standalone(folder).Policy()


def test_no_hashes(folder: Path) -> None:
    (folder / HASHES).unlink()
    with pytest.raises(CheckpointError, match=r"expected the files that were exported, got no hashes\.json"):
        load_policy(folder)


@pytest.mark.parametrize("told", [{"format_version": 2, "engine": "onnx"}, {"engine": "pickle"}, []])
def test_another_kind_of_export(told: Any, folder: Path) -> None:
    (folder / "export.json").write_text(json.dumps(told))
    write_hashes(folder)
    with pytest.raises(CheckpointError, match=r"export\.json: expected version 1 of onnx or openvino or torch, got "):
        load_policy(folder)


def test_nothing_of_a_torch_export_is_pickled(exported_as: Export, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported_as("key points", "torch"), tmp_path / "copy"))
    file = folder / "denoiser.pt2"
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert contents["denoiser/data/sample_inputs/model.pt"] == b""
    contents["denoiser/data/sample_inputs/model.pt"] = b"\x80\x04."
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    write_hashes(folder)
    loaded = load_policy(folder)
    with pytest.raises(ValueError, match=r"denoiser\.pt2: expected nothing pickled, got pickles; "):
        loaded.plan(observation(small_batch(loaded.config)))


def test_something_else_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="expected a new folder or an earlier export, got "):
        export_policy(policy_of(POLICIES["key points"]), tmp_path, "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_int8_needs_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data: expected a SOURCE, or a run that notes its own, got pusht-keypoints"):
        export("pusht-keypoints-small", tmp_path / "x", "openvino", int8=True)
    with pytest.raises(ConfigError, match="data: expected int8, got float32; "):
        export("pusht-keypoints-small", tmp_path / "x", "openvino", data="pusht-demonstrations")
