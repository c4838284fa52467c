"""Exported folders where policies are taken: the command, evaluations, the server, the hub."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from visuomotor.cli import main
from visuomotor.deployment.export import export
from visuomotor.deployment.serving import rehearse
from visuomotor.errors import CheckpointError
from visuomotor.files import HASHES, sha256
from visuomotor.policy.checkpoint import find_policy, load_policy, weights_sha256

from ..hub_server import HubServer

SHIPPED = "pusht-keypoints-small"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "policy"
    export(SHIPPED, folder, "openvino", num_inference_steps=4)
    return folder


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "exported"
    flags = ["--format", "onnx", "--noise-scheduler-type", "DDIM", "--num-inference-steps", "3"]
    flags += ["--n-action-steps", "5", "--output", str(target)]
    assert main(["export", SHIPPED, *flags]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [f"exported: {target}", f"next:     python {target / 'act.py'}"]
    told = json.loads((target / "export.json").read_text())
    assert (told["engine"], told["precision"], told["timesteps"]) == ("onnx", "float32", [66, 33, 0])
    assert (told["n_action_steps"], told["noise_draws"], len(told["sampler"])) == (5, 1, 3)
    assert told["source_weights_sha256"] == weights_sha256(find_policy(SHIPPED))
    assert load_policy(target).config.num_inference_steps == 3


def test_what_the_command_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["export", SHIPPED, "--int8", "--output", str(tmp_path / "x")]) == 2
    assert "error: int8: expected format openvino, got onnx; leave int8 out" in capsys.readouterr().err
    assert main(["export", SHIPPED]) == 2
    assert "visuomotor export: expected --output DIR, got none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_is_that_of_the_policy(exported: Path, tmp_path: Path) -> None:
    from visuomotor.evaluation.evaluate import evaluate

    settings: dict[str, Any] = {
        "episodes": 2,
        "max_steps": 24,
        "videos": 0,
        "policy_batch": 2,
        "progress": False,
        "device": "cpu",
    }
    own = evaluate(SHIPPED, output=tmp_path / "own", num_inference_steps=4, **settings)
    other = evaluate(exported, output=tmp_path / "other", **settings)
    assert other["settings"]["num_inference_steps"] == 4
    assert other["settings"]["weights_sha256"] == sha256(exported / HASHES) != own["settings"]["weights_sha256"]
    for first, second in zip(own["episodes"], other["episodes"], strict=True):
        assert second["max_coverage"] == pytest.approx(first["max_coverage"], abs=1e-3)


def test_a_server_takes_it(exported: Path) -> None:
    rehearse(load_policy(exported))


def test_from_the_hub(exported: Path, hub_server: HubServer) -> None:
    shutil.copytree(exported, hub_server.folder / "models" / "someone" / "exported" / "main")
    (hub_server.folder / "models" / "someone" / "exported" / "main" / "other.bin").write_bytes(b"not asked for")
    loaded, own = load_policy("someone/exported"), load_policy(exported)
    observation = {name: torch.full((1, 2, *one.shape), 200.0) for name, one in own.config.input_features.items()}
    noise = torch.zeros(1, 1, 16, 2)
    assert torch.equal(loaded.plan(observation, noise), own.plan(observation, noise))
    assert "other.bin" not in hub_server.downloaded()


def test_a_program_from_the_hub(exported: Path, hub_server: HubServer) -> None:
    served = Path(shutil.copytree(exported, hub_server.folder / "models" / "someone" / "program" / "main"))
    told = json.loads((served / "export.json").read_text()) | {"engine": "torch"}
    (served / "export.json").write_text(json.dumps(told))
    with pytest.raises(
        CheckpointError, match="someone/program: expected a policy that is no program, got another; a torch"
    ):
        load_policy("someone/program")
    assert all(name.endswith(".json") for name in hub_server.downloaded())
