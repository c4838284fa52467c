"""The command: what it says, what it refuses and how, and one short way through."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from visuomotor import __version__
from visuomotor.cli import VERBS, main
from visuomotor.presets import PRESETS

DATA = Path(__file__).parent / "data" / "reference" / "keypoints"  # two episodes of Push-T
DEBUG = ["train", "debug", "--data", str(DATA)]


def lines(text: str) -> list[str]:
    return text.splitlines()


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused, and returns the one line it says."""

    def run(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(lines(err)) == 1, err
        assert err.startswith("error: ")
        return err.removeprefix("error: ").rstrip()

    return run


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_verbs(capsys, arguments):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f"  {name:{max(map(len, VERBS))}}  {verb.__doc__}" in lines(out)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"visuomotor {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(capsys, verb):
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert not left.value.code
    out = capsys.readouterr().out
    told = ("--output DIR", "--output FILE", "[OPTIONS] SOURCE", "[OPTIONS] POLICY", "[-h] RUN")
    told += ("[-h] {list,clear}", "--data SOURCE", "[-h] SOURCE FILE")
    assert any(word in out for word in told)
    assert VERBS[verb].__doc__ in " ".join(out.split())


def test_help_of_train_names_every_preset(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert [name for name in PRESETS if f"  {name} " not in out] == []


def test_help_of_a_preset_shows_its_own_defaults_with_their_documentation(capsys):
    with pytest.raises(SystemExit):
        main(["train", "pusht-image-small", "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--down-dims [INT [INT ...]] Channels of each stage of the U-Net; each halves the time axis." in out
    assert "(default: 64 128 256)" in out
    assert "--input-features" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], f"visuomotor: expected one of {list(VERBS)}, got 'trian'; did you mean train"),
        (["train", "pusht-imag"], "preset: expected one of "),
        (["train", "pusht-keypoint-small"], "; did you mean pusht-keypoints-small?"),
        (["train"], "visuomotor train: expected a preset first (pusht-image, "),
        (["train", "--data", "x", "debug"], ", got --data; begin with its name"),
        (["train", "debug"], "expected --data SOURCE and --output DIR, got none; see visuomotor train debug --help"),
        (
            [*DEBUG, "--output", "x", "--stpes", "3"],
            "--stpes: expected a flag of visuomotor train debug, got an unknown",
        ),
        ([*DEBUG, "--output", "x", "--batchsize=3"], "got an unknown one; did you mean --batch-size?"),
        ([*DEBUG, "--output", "x", "stray"], "expected flags and their values, got 'stray'"),
        ([*DEBUG, "--output", "x", "--input-features", "a"], "--input-features: expected a field with a flag"),
        ([*DEBUG, "--output", "x", "--steps", "many"], "Error parsing --steps: invalid literal for int()"),
        ([*DEBUG, "--output", "x", "--steps"], "Missing value for argument"),
        ([*DEBUG, "--output", "x", "--steps", "0"], "steps: expected 1 or more, got 0; choose a positive number"),
        (
            [*DEBUG, "--output", "x", "--horizon", "13"],
            "horizon: expected a multiple of 4 = 2 ** 2 stages of down_dims",
        ),
        ([*DEBUG, "--output", "x", "--n-action-steps", "16"], "n_action_steps: expected 1 to 15"),
        ([*DEBUG, "--output", "x", "--crop-shape", "84"], "--crop-shape"),
        (
            [*DEBUG, "--output", "x", "--vision-backbone", "vgg"],
            "invalid choice 'vgg' for argument '--vision-backbone'",
        ),
        ([*DEBUG, "--output", "x", "--device", "gpu"], "device: expected one of ['auto', 'cpu'"),
        ([*DEBUG, "--output", "x", "--observations", "observation.stat"], "did you mean observation.state?"),
        (["eval"], "visuomotor eval: expected POLICY and --output DIR, got none"),
        (["eval", "no-such-policy", "--output", "x"], "no-such-policy: expected "),
        (["eval", "no-such-policy", "--output", "x", "--episodes", "0"], "episodes: expected 1 or more, got 0"),
        (["eval", "no-such-policy", "--output", "x", "--env", "pushT"], "invalid choice 'pushT' for argument '--env'"),
        (["convert", "nowhere"], "visuomotor convert: expected TARGET, got none"),
        (["convert", "nowhere", "x"], "nowhere: expected a folder of LeRobot"),
        (["convert", str(DATA), "x", "--episodes", "0", "9"], "episodes: expected some of 0 to 1, got [9]"),
        (["convert", "x", "y", "--images", "--video-codec", "av1"], "expected --images or --video-codec, got both"),
        (["convert", "no-such-policy", "x", "--to", "lerobot"], "no-such-policy: expected "),
        (["convert", "x", "y", "--to", "lerobot", "--images"], "expected a policy and TARGET alone, got more"),
        (["convert", "x", "y", "--noise-scheduler-type", "DDIM"], "--noise-scheduler-type: expected a policy to"),
        (["convert", "x", "y", "--num-inference-steps", "9"], "--num-inference-steps: expected a policy to convert"),
        (["demo", "--stepps", "3"], "did you mean --steps?"),
        (["record", "no-such-policy", "--output", "x.npz"], "no-such-policy: expected "),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(refused, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(*arguments)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_of_demonstrations(refused, tmp_path):
    folder = str(tmp_path / "nowhere")
    message = refused("train", "debug", "--data", folder, "--output", str(tmp_path / "run"))
    assert message.startswith(f"{folder}: expected ")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", [0, 1, -1])
def test_debug_shows_the_traceback_above_the_line(capsys, tmp_path, place):
    arguments = ["train", "debug", "--data", str(tmp_path / "nowhere"), "--output", str(tmp_path / "run")]
    arguments.insert(place if place >= 0 else len(arguments), "--debug")
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert lines(err)[-1].startswith(f"error: {tmp_path / 'nowhere'}: expected ")


def test_an_error_of_the_system_is_one_line_too(refused, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(*DEBUG, "--output", str(tmp_path / "file" / "run"))
    assert str(tmp_path / "file") in message


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def broken(arguments: list[str]) -> None:
        raise TypeError("ours")

    monkeypatch.setitem(VERBS, "train", broken)
    with pytest.raises(TypeError, match="ours"):
        main(["train"])


def test_an_interrupt_is_130(monkeypatch):
    def interrupted(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, "train", interrupted)
    assert main(["train"]) == 130


def test_train_resume_and_evaluate(capsys, tmp_path):
    run = tmp_path / "run"
    flags = ["--batch_size", "3", "--steps=1", "--no-clip-sample"]
    assert main([*DEBUG, "--output", str(run), *flags]) == 0
    out = capsys.readouterr().out
    assert lines(out) == [
        f"trained: {run / 'checkpoints' / 'step_000001'}",
        f"next:    visuomotor eval {run} --output {run / 'evaluation'}",
    ]
    recipe = json.loads((run / "config.json").read_text())["recipe"]
    assert recipe["policy"]["clip_sample"] is False
    assert recipe["training"]["batch_size"] == 3

    assert main([*DEBUG, "--output", str(run)]) == 2
    assert "pass --resume to go on with it" in capsys.readouterr().err

    # The run's own settings hold: those of the preset would be another run.
    assert main([*DEBUG, "--output", str(run), "--resume", "--steps", "2"]) == 0
    recipe = json.loads((run / "config.json").read_text())["recipe"]
    assert (recipe["training"]["batch_size"], recipe["training"]["steps"]) == (3, 2)
    assert (run / "checkpoints" / "step_000002").is_dir()

    capsys.readouterr()
    assert main([*DEBUG, "--output", str(run), "--resume", "--batch-size", "4"]) == 2
    assert "expected batch_size 3, got batch_size 4" in capsys.readouterr().err

    shown = tmp_path / "evaluation"
    short = ["--episodes", "2", "--max-steps", "4", "--videos", "0", "--policy-batch", "2"]
    assert main(["eval", str(run), "--output", str(shown), *short]) == 0
    out = capsys.readouterr().out
    assert "of 2 episodes (95 % interval: 0.0 % to 65.8 %)" in out
    assert f"report:  {shown / 'report.html'}" in lines(out)
    assert len(json.loads((shown / "eval.json").read_text())["episodes"]) == 2


def test_what_no_simulator_can_measure_is_validated_next(refused, capsys, tmp_path):
    from visuomotor.data.writer import DatasetWriter

    number = {"dtype": "float32", "shape": (3,), "names": None}
    with DatasetWriter.create(tmp_path / "set", 10, {"observation.state": number, "action": number}) as writer:
        for row in np.arange(36, dtype=np.float32).reshape(12, 3):
            writer.add_frame({"observation.state": row, "action": row + 1}, "Count.")
        writer.save_episode()
    run = tmp_path / "run"
    assert main(["train", "debug", "--data", str(tmp_path / "set"), "--output", str(run), "--steps", "1"]) == 0
    last = lines(capsys.readouterr().out)[-1]
    assert last == f"next:    visuomotor validate {run} --output {run / 'validation'}"
    message = refused("eval", str(run), "--output", str(tmp_path / "evaluation"))
    assert message.endswith("; take a policy trained on Push-T; without a simulator: visuomotor validate")


def command(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "visuomotor", *arguments], text=True, **options)


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on(tmp_path):
    run = tmp_path / "run"
    endless = ["--steps", "1000000", "--save-every", "1000000"]
    process = command(*DEBUG, "--output", str(run), *endless, stderr=subprocess.PIPE)
    give_up = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGTERM
    assert "go on with --resume" in err
    (checkpoint,) = (run / "checkpoints").iterdir()
    done = int(checkpoint.name.removeprefix("step_"))
    assert main([*DEBUG, "--output", str(run), "--resume", "--steps", str(done + 1)]) == 0
    assert (run / "checkpoints" / f"step_{done + 1:06d}").is_dir()


def test_the_demo_in_miniature(capsys, tmp_path):
    output = tmp_path / "demo"
    assert main(["demo", "--output", str(output), "--steps", "2", "--episodes", "1"]) == 0
    out = capsys.readouterr().out
    for word in ("success:", "of 1 episodes", "reward:", f"report:  {output / 'evaluation' / 'report.html'}", "next:"):
        assert word in out
    assert (output / "evaluation" / "report.html").is_file()


def test_info_prints_tables_or_json(capsys, tmp_path):
    assert main(["info", str(DATA), "--strict"]) == 0
    out = capsys.readouterr().out
    assert "format    LeRobot v3.0" in out
    assert "Nothing wrong was found." in out
    assert main(["info", str(DATA), "--json", "--no-frames", "--episodes", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["episodes"], told["frames_checked"], told["findings"]) == (1, False, [])


def test_info_tells_what_is_wrong_by_its_status_if_asked(capsys, tmp_path):
    from .data.synthetic import write_lerobot

    folder = str(write_lerobot(tmp_path / "set"))  # of a few frames each, with a number that never changes
    assert main(["info", folder]) == 0
    assert "y is always 7" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["info", folder, "--strict"])
    assert left.value.code == 1


def test_convert_writes_what_train_reads(refused, capsys, tmp_path):
    target = tmp_path / "set"
    assert main(["convert", str(DATA), str(target), "--episodes", "1"]) == 0
    assert lines(capsys.readouterr().out) == [f"converted: {target}"]
    assert json.loads((target / "meta/info.json").read_text())["total_episodes"] == 1
    assert refused("convert", str(DATA), str(target)).startswith(f"{target}: expected a new or an empty folder")


def test_convert_stores_frames_as_it_is_told(tmp_path):
    from .data.synthetic import write_lerobot

    source = str(write_lerobot(tmp_path / "source", "video", lengths=(3,)))
    for flags, kept in (([], "h264"), (["--images"], None), (["--video-codec", "av1"], "av1")):
        target = tmp_path / "-".join(["set", *flags])
        assert main(["convert", source, str(target), *flags]) == 0
        feature = json.loads((target / "meta/info.json").read_text())["features"]["observation.image"]
        assert feature["dtype"] == ("video" if kept else "image")
        assert feature.get("info", {}).get("video.codec") == kept


def test_convert_gives_a_policy_to_lerobot(capsys, tmp_path):
    target = tmp_path / "policy"
    sampler = ["--noise-scheduler-type", "DDIM"]
    assert main(["convert", "pusht-keypoints-small", str(target), "--to", "lerobot", *sampler]) == 0
    assert lines(capsys.readouterr().out) == [f"converted: {target}"]
    assert json.loads((target / "config.json").read_text())["type"] == "diffusion"


@pytest.mark.parametrize("changes", [{}, {"noise_scheduler_type": "DDIM", "warm_start": 0.5}])
def test_convert_gives_lerobot_a_sampler_that_it_knows(refused, capsys, tmp_path, changes):
    from visuomotor.policy.checkpoint import load_policy, save_policy

    source, target = tmp_path / "ours", tmp_path / "policy"
    save_policy(load_policy("pusht-keypoints-small").with_sampler(num_inference_steps=7, **changes), source)
    message = refused("convert", str(source), str(target), "--to", "lerobot")
    assert message.endswith(", or visuomotor convert --noise-scheduler-type DDIM")
    command = ["convert", str(source), str(target), "--to", "lerobot", "--noise-scheduler-type", "DDIM"]
    assert main(command) == 0
    written = json.loads((target / "config.json").read_text())
    assert (written["noise_scheduler_type"], written["num_inference_steps"]) == ("DDIM", 7)
    assert main([*command, "--num-inference-steps", "16"]) == 0
    written = json.loads((target / "config.json").read_text())
    assert (written["noise_scheduler_type"], written["num_inference_steps"]) == ("DDIM", 16)


def test_record_keeps_away_from_the_seeds_of_evaluations(refused, capsys, tmp_path):
    assert main([*DEBUG, "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    file = tmp_path / "demonstrations.npz"
    message = refused("record", str(tmp_path / "run"), "--output", str(file), "--seed", "100000")
    assert message.startswith("seed: expected 1000000 or more, got 100000")
    assert not file.exists()


def test_a_reader_that_leaves_early_is_no_error():
    process = command("train", "--help", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=240)
    assert err == ""


def test_the_entry_point_is_this_main():
    metadata = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert 'visuomotor = "visuomotor.cli:main"' in metadata
