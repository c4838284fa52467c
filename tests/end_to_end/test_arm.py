"""docs/robot.md from its first line to its last: every block of Python and every command, with a synthetic arm."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from visuomotor.cli import main
from visuomotor.data.dataset import load_dataset
from visuomotor.evaluation.open_loop import validate
from visuomotor.policy.checkpoint import load_policy, save_policy
from visuomotor.policy.diffusion import DiffusionPolicy

from ..hub_server import HubServer
from ..policy.test_vision import torchvision_weights
from .synthetic_arm import FRAMES, JOINTS, SHAPE, SyntheticArm

PAGE = (Path(__file__).parents[2] / "docs" / "robot.md").read_text()
SMALLER = {"(480, 640, 3)": str(SHAPE), "range(50)": "range(6)"}  # what the page records, and what the test does
FLAGS = """--resize-shape 24 32 --crop-ratio 0.875 --down-dims 32 64 --horizon 16 --n-action-steps 8
    --drop-n-last-frames 7 --batch-size 16 --num-inference-steps 4 --prediction-type sample --trunk-precision float32
    --optimizer-lr 2e-3 --scheduler-warmup-steps 5 --log-every 10 --threads 1 --device cpu"""
SMALL_RESNET = " --backbone-width 16 --backbone-stages 2"  # only without ImageNet's weights
SCRATCH = ["--pretrained-backbone-weights", "None", "--use-group-norm"]


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[list[str]]:
    """The indented lines that begin with `visuomotor`, each as its words."""
    joined = PAGE.replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in joined.splitlines() if line.startswith("    visuomotor ")]


def shrunk(words: list[str], steps: int) -> list[str]:
    """The same command for a processor and a test; what comes last counts."""
    if words[0] != "train":
        return words + (["--draws", "2", "--device", "cpu"] if words[0] == "validate" else [])
    flags = FLAGS + (SMALL_RESNET if "--use-group-norm" in words else "")
    return [*words, *flags.split(), "--steps", str(steps)]


def run(*words: str, steps: int = 2) -> None:
    assert main(shrunk(list(words), steps)) == 0, words


def last_step(run: Path) -> int:
    return max(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the page's commands run: recordings/cups, made by the page's own first block."""
    folder = tmp_path_factory.mktemp("robot")
    code = blocks()[0]
    for written, smaller in SMALLER.items():
        assert written in code
        code = code.replace(written, smaller)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, {"robot": SyntheticArm()})
        save_file(torchvision_weights(), folder / "resnet18.safetensors")
        yield folder


def test_the_recording_shows_what_the_arm_did(folder: Path) -> None:
    dataset = load_dataset(folder / "recordings" / "cups")
    assert (len(dataset.episodes), len(dataset), dataset.fps) == (6, 6 * FRAMES, 30)
    assert dataset.demonstrations.names["action"] == JOINTS
    arm = SyntheticArm()
    assert arm.is_demonstrating()
    first = dataset[0]
    np.testing.assert_array_equal(first["observation.state"], arm.observe()["observation.state"])
    np.testing.assert_array_equal(first["action"], arm.commanded())
    for name in dataset.camera_keys:
        off = np.abs(dataset.frames[name][0].astype(int) - arm.observe()[name])
        assert off.mean() < 12, name  # video is lossy


@pytest.mark.slow
@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_of_the_page_runs(folder: Path, hub_server: HubServer, words: list[str]) -> None:
    """In the page's order; the hub of the tests has the weights."""
    weights = hub_server.folder / "models" / "timm" / "resnet18.tv_in1k" / "main"
    weights.mkdir(parents=True)
    shutil.copy(folder / "resnet18.safetensors", weights / "model.safetensors")
    if words[0] == "train":  # the same folder serves several commands of the page
        shutil.rmtree(words[words.index("--output") + 1], ignore_errors=True)
    run(*words)
    asked_for_weights = words[0] == "train" and "--pretrained-backbone-weights" not in words
    assert hub_server.downloaded() == (["model.safetensors"] if asked_for_weights else [])


@pytest.mark.slow
def test_training_lowers_the_error_and_survives_everything(folder: Path) -> None:
    arguments = ["train", "arm", "--data", "recordings/cups", "--output", "arm", *SCRATCH]
    run(*arguments, steps=100)
    assert last_step(folder / "arm") == 100
    assert main([*shrunk(arguments, 250), "--resume"]) == 0
    assert last_step(folder / "arm") == 250

    policy = load_policy("arm")
    save_policy(DiffusionPolicy(policy.config, policy.statistics), folder / "untrained")
    save_policy(policy, folder / "copy")
    options = {"draws": 2, "device": "cpu"}
    (held_out,) = validate("arm", output="validations/held-out", **options)["episodes"]
    options["episodes"] = [number for number in range(6) if number != held_out["episode"]]
    after = validate("arm", output="validations/arm", **options)
    copy = validate("copy", "recordings/cups", output="validations/copy", **options)
    assert copy["joints"] == after["joints"]  # the same policy, the same noises
    untrained = validate("untrained", "recordings/cups", output="validations/untrained", **options)
    for joint, before in zip(after["joints"], untrained["joints"], strict=True):
        assert joint["mean_absolute_error"] < 0.4 * before["mean_absolute_error"], joint["name"]

    arm = SyntheticArm(seed=1, running=20)
    exec(blocks()[-1].replace("outputs/cups", "arm"), {"robot": arm})
    received = np.array(arm.received)
    assert received.shape == (20, len(JOINTS))
    low, high = (policy.statistics["action"][key] for key in ("min", "max"))
    assert (received >= low - 1e-3).all() and (received <= high + 1e-3).all()
    assert not (received == received[0]).all()


def test_without_the_hub_training_ends_before_it_begins(
    folder: Path, hub_server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that cannot be had are an error: a recipe does not change in silence."""
    words = ["train", "arm", "--data", "recordings/cups", "--output", "unreached"]
    assert main(shrunk(words, 2)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: pretrained_backbone_weights timm/resnet18.tv_in1k: expected weights, got ")
    assert not list((folder / "unreached").glob("checkpoints/*"))


def test_the_page_has_what_the_tests_run() -> None:
    assert len(blocks()) == 2
    assert {words[0] for words in commands()} == {"info", "train", "report", "validate"}
