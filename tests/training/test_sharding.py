"""One run by several processes of which each holds a part of the policy; and its checkpoints, whole and in parts."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from visuomotor.errors import CheckpointError, ConfigError
from visuomotor.policy.checkpoint import load_policy
from visuomotor.recipe import Recipe
from visuomotor.training.loop import train
from visuomotor.training.parts import Parts

from ..data.synthetic import write_lerobot
from .runs import change, names
from .test_resume import flip_a_bit, shorten
from .torchrun import assert_same_run, finish, kill, launch, stop, wait_for_lines, weights

FLAGS = ["--batch-size", "8", "--noise-draws", "2", "--down-dims", "16", "32"]
FLAGS += ["--validation-episodes", "1", "--validate-every", "2"]
SHARDED, IN_PARTS = ["--sharding", "fsdp"], ["--sharding", "fsdp", "--sharded-checkpoints"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations with a camera, so that the encoder is sharded too."""
    return write_lerobot(tmp_path_factory.mktemp("pictures") / "data", camera="image", lengths=(12, 9, 14, 10))


@pytest.fixture(scope="module")
def straight(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine steps by one process."""
    run = tmp_path_factory.mktemp("straight") / "run"
    finish(launch(1, run, pictures, "--steps", "9", every=FLAGS))
    return run


@pytest.fixture(scope="module")
def in_parts(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by two, each with its part, killed and resumed meanwhile.

    They take their shares of the batch in parts as well, and compute blocks twice, which makes them whole twice.
    """
    run, more = tmp_path_factory.mktemp("parts") / "run", ["--gradient-accumulation-steps", "2"]
    more += ["--gradient-checkpointing"]
    process = launch(2, run, pictures, "--steps", "9", *IN_PARTS, *more, every=FLAGS)
    wait_for_lines(run, process, 4)
    kill(process)
    assert names(run)
    finish(launch(2, run, pictures, "--steps", "9", "--resume", every=[]))
    return run


@pytest.mark.slow
def test_each_process_holds_its_part_and_the_run_is_the_same(pictures: Path, straight: Path, tmp_path: Path) -> None:
    run, program = tmp_path / "run", str(Path(__file__).with_name("sizes.py"))
    finish(launch(2, run, pictures, "--steps", "9", *SHARDED, program=program, every=FLAGS))
    first, second = (json.loads((run / f"sizes_{rank}.json").read_text()) for rank in (0, 1))
    for name in ("weights", "gradients", "moments", "average"):
        assert len(first[name]) == len(second[name]) > 50
        for (held, whole), (other, same) in zip(first[name], second[name], strict=True):
            assert 0 < held < whole == same == held + other, name
    assert_same_run(run, straight, 9)
    assert sorted(path.name for path in (run / "checkpoints/step_000009/training").iterdir()) == [
        "state.json",
        "state.safetensors",
    ]


@pytest.mark.slow
def test_killed_and_resumed_with_checkpoints_in_parts(in_parts: Path, straight: Path) -> None:
    assert_same_run(in_parts, straight, 9)
    folder = in_parts / "checkpoints/step_000009/training"
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert files.keys() == {"state.json", "state_1_of_2.safetensors", "state_2_of_2.safetensors"}
    whole = (straight / "checkpoints/step_000009/training/state.safetensors").stat().st_size
    assert all(size < 0.6 * whole for size in files.values())
    acting, expected = load_policy(in_parts).state_dict(), load_policy(straight).state_dict()
    assert all((acting[name] - expected[name]).abs().max() < 1e-4 for name in expected)


@pytest.mark.slow
def test_any_number_of_processes_goes_on_from_either_kind(pictures: Path, tmp_path: Path) -> None:
    """Two in parts, then one, then three with whole checkpoints, then one again."""
    straight, run = tmp_path / "straight", tmp_path / "run"
    steps = ["--steps", "12", "--denoiser", "transformer", "--transformer-dim", "32", "--transformer-layers", "2"]
    one = ["--sharding", "none", "--resume"]
    flags = ["--batch-size", "6", *steps]
    finish(launch(1, straight, pictures, every=flags))
    stop(run, launch(2, run, pictures, *IN_PARTS, every=flags), after=2)
    stop(run, launch(1, run, pictures, *one, every=[]), after=5)
    whole = ["--sharding", "fsdp", "--no-sharded-checkpoints", "--resume"]
    stop(run, launch(3, run, pictures, *whole, every=[]), after=8)
    finish(launch(1, run, pictures, *one, every=[]))
    assert_same_run(run, straight, 12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_bit, "training/state_2_of_2.safetensors has been altered (SHA-256"),
        (shorten, "training/state_2_of_2.safetensors has 1000 bytes of"),
        (Path.unlink, "training/state_2_of_2.safetensors is missing"),
    ],
)
def test_a_damaged_part_is_recognised(in_parts, straight, pictures, tmp_path, damage, said) -> None:
    """... and the checkpoint before is used, here by one process that is not of torchrun."""
    from visuomotor.training.checkpoint import read_run

    run = tmp_path / "run"
    shutil.copytree(in_parts, run)
    damage(run / "checkpoints/step_000009/training/state_2_of_2.safetensors")
    recipe = change(read_run(run).recipe, sharding="none")
    train(recipe, pictures, run, resume=True)
    assert (run / "checkpoints/set_aside_step_000009").is_dir()
    assert_same_run(run, straight, 9)


@pytest.mark.slow
def test_without_an_average_the_sharded_policy_is_its_own(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(launch(2, run, pictures, "--steps", "3", "--ema-max-decay", "0", *IN_PARTS, every=FLAGS))
    found = weights(run, 3)
    for name in [name for name in found if name.startswith("average.")]:
        assert torch.equal(found[name], found[name.replace("average.", "weights.")])


FULL = """
import errno, os, sys
from visuomotor.cli import main
from visuomotor.training import checkpoint

write = checkpoint.write_parts

def write_parts(tensors, path, main):
    if os.environ["RANK"] == "1" and "step_000006" in str(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    write(tensors, path, main)

checkpoint.write_parts = write_parts
sys.exit(main())
"""


@pytest.mark.slow
def test_a_full_disk_under_one_process_leaves_the_checkpoint_before(pictures: Path, tmp_path: Path) -> None:
    run, program = tmp_path / "run", tmp_path / "full.py"
    program.write_text(FULL)
    process = launch(2, run, pictures, "--steps", "9", *IN_PARTS, program=str(program), every=FLAGS)
    _, said = process.communicate(timeout=180)
    told = r"step_000006: expected room for \d+ MB, got .*No space left on device.*state_2_of_2.*; the last good "
    assert process.returncode and re.search(told + r"checkpoint is \S+/step_000003", said), said
    assert names(run) == ["step_000003"] and len(load_policy(run).state_dict())


def test_sharding_asks_for_several_processes(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    told = "sharding fsdp: expected several processes of torchrun, got one; start with torchrun --nproc-per-node N"
    with pytest.raises(ConfigError, match=told):
        train(change(recipe, sharding="fsdp"), demonstrations, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Files of parts


WHOLE = torch.arange(24.0).view(4, 6)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Of three processes: rows 0 and 1; the rest's first two columns; the rest's other columns, and a count."""
    pieces = [((0, 0), WHOLE[:2]), ((2, 0), WHOLE[2:, :2]), ((2, 2), WHOLE[2:, 2:])]
    paths = []
    for number, (start, tensor) in enumerate(pieces):
        notes = {"a": {"shape": [4, 6], "start": list(start)}}
        content = {"a": tensor.contiguous()}
        if number == 2:
            content["step.a"], notes["step.a"] = torch.tensor(7.0), {"shape": [], "start": []}
        paths.append(tmp_path / f"state_{number + 1}_of_3.safetensors")
        save_file(content, paths[-1], {"parts": json.dumps(notes)})
    return paths


def test_parts_make_a_whole(files: list[Path]) -> None:
    parts, found, count = Parts(files), torch.zeros(4, 6), torch.zeros(())
    assert parts.shapes == {"a": (4, 6), "step.a": ()}
    parts.fill("a", found)
    parts.fill("step.a", count)
    assert torch.equal(found, WHOLE) and count == 7


def test_what_is_missing_or_does_not_fit_is_told(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a: expected 24 numbers, got 16; a file of it is missing"):
        Parts(files[:2]).fill("a", torch.zeros(4, 6))
    with pytest.raises(CheckpointError, match=r"a: expected \(6, 4\), got \(4, 6\); the checkpoint and"):
        Parts(files).fill("a", torch.zeros(6, 4))
    with pytest.raises(CheckpointError, match=r"b: expected \(2,\), got none"):
        Parts(files).fill("b", torch.zeros(2))
    with pytest.raises(CheckpointError, match=r"none\.safetensors: expected a safetensors file, got none"):
        Parts([tmp_path / "none.safetensors"])
    for note in ("[", "[]", '{"a": 1}', '{"a": {"shape": [4, 6]}}', '{"a": {"shape": [4, "6"], "start": [0, 0]}}'):
        save_file({"a": WHOLE}, files[0], {"parts": note})
        with pytest.raises(CheckpointError, match=r"parts: expected shapes and places by name, got .*; the file"):
            Parts(files)
    save_file({"a": WHOLE}, files[0], {"parts": '{"a": {"shape": [4], "start": [0]}}'})
    with pytest.raises(CheckpointError, match=r"a: expected a part of one tensor, got \(4, 6\) at \(0,\) of \(4,\)"):
        Parts(files)
    files[0].write_bytes(files[0].read_bytes()[:100])
    with pytest.raises(CheckpointError, match="expected safetensors, got"):
        Parts(files)
