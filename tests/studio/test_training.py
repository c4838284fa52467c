"""A training that pages start, follow and stop."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from websockets.sync.client import connect

from visuomotor.data import bundled
from visuomotor.errors import ConfigError, VisuomotorError
from visuomotor.policy.checkpoint import checkpoints, find_policy, load_policy, read_json
from visuomotor.presets import preset
from visuomotor.studio.policies import SHIPPED, Policies
from visuomotor.studio.sources import Sources
from visuomotor.studio.training import Asked, Following, Training

from .conftest import hear
from .test_serving import started

TINY = {"preset": "debug", "steps": 4, "held_out": 2}
LONG = 60  # steps: it is stopped before, and each has a line


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def training(data: str, runs: Path) -> Iterator[Training]:
    training = Training(Policies(), Sources([data]), runs)
    yield training
    training.close()


def until(training: Training, there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not there():
        assert time.monotonic() < deadline, training.status()
        time.sleep(0.05)
        training.look()


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def asked(training: Training, **changed: Any) -> Asked:
    return Asked(**TINY | {"data": (training._sources.names[0],)} | changed)


def test_the_presets_that_fit_and_what_they_can_begin_with(training: Training):
    options = training.options([bundled.NAME])
    presets = {one["name"]: one for one in options["presets"]}
    assert options["data"] == [bundled.NAME]
    assert options["episodes"] == 240
    corners = ["pusht-keypoints-small", "pusht-keypoints-improved"]
    assert presets["pusht-keypoints-small"]["policies"] == corners
    assert presets["pusht-image-small"]["policies"] == ["pusht-image-small", "pusht-image-improved"]
    assert presets["demo"] == {
        "name": "demo",
        "about": "`pusht-keypoints-small`, shortened to a few minutes: what `visuomotor demo` trains.",
        "steps": preset("demo").training.steps,
        "policies": corners,
    }
    assert presets["debug"]["policies"] == presets["pusht-keypoints"]["policies"] == []


def test_presets_for_other_features_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = bundled.read

    def without_corners(**arguments: Any) -> Any:
        found = read(**arguments)
        del found.arrays["observation.environment_state"]
        return found

    monkeypatch.setattr(bundled, "read", without_corners)
    names = [one["name"] for one in Training(Policies(), Sources(), tmp_path).options([])["presets"]]
    assert names == ["pusht-image", "pusht-image-small", "arm", "debug"]


def test_nothing_begins_with_a_policy_that_is_damaged(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").touch()
    options = Training(Policies([str(tmp_path)]), Sources(), tmp_path).options([])
    assert {name for one in options["presets"] for name in one["policies"]} == set(SHIPPED)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"data": ("/etc",)},
            "data: expected some of ['DATA', 'pusht-demonstrations'], got '/etc'; start the studio with --data",
        ),
        ({"data": ()}, "data: expected one source or more, each once, got []; choose others"),
        ({"preset": "../debug"}, "preset: expected one of ["),
        (
            {"initial_policy": "/tmp"},
            "initial_policy: expected one of [], got '/tmp'; others are not of the network of",
        ),
        ({"preset": "demo", "initial_policy": "pusht-image-small"}, "one of ['pusht-keypoints-small', "),
        ({"steps": 0}, "steps: expected 1 to 1000000, got 0"),
        ({"steps": 10**7}, "steps: expected 1 to 1000000, got 10000000"),
        ({"held_out": -1}, "held_out: expected 0 or more, got -1"),
        ({"held_out": 12}, "held_out: expected less than all 12 episodes, got 12; leave some to train on"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(training: Training, runs: Path, changed, said):
    said = said.replace("DATA", training._sources.names[0])
    with pytest.raises(VisuomotorError) as error:
        training.start(asked(training, **changed))
    assert said in str(error.value)
    assert not runs.exists()
    assert training.state == "none"


def test_pages_say_it_in_one_line(training: Training, data: str):
    tab = Following(training)
    for message, said in [
        ({"type": "start", "data": [data], **TINY, "output": "/tmp/x"}, "training: output: expected a known field"),
        ({"type": "start", "data": [data], **TINY, "steps": "many"}, "training: steps: expected"),
        ({"type": "options", "data": "pusht-demonstrations"}, "data: the whole: expected"),
        ({"type": "run"}, "type: expected one of options, start, stop, resume, got 'run'"),
        ({"type": "resume"}, "training: expected one that was stopped, got none; start one"),
    ]:
        with pytest.raises(ConfigError) as error:
            list(tab.handle(message))
        assert said in str(error.value)


def test_short_runs_have_lines_and_checkpoints_too(training: Training):
    def flags(**changed: Any) -> dict[str, str]:
        words = list(training._flags(asked(training, **changed)))
        return dict(zip(words[::2], words[1::2], strict=True))

    assert flags(preset="pusht-keypoints-small", steps=1000, initial_policy="pusht-keypoints-small") == {
        "--steps": "1000",
        "--scheduler-warmup-steps": "100",
        "--validation-episodes": "2",
        "--log-every": "10",
        "--validate-every": "50",
        "--save-every": "100",
        "--device": "cpu",
        "--initial-policy": "pusht-keypoints-small",
        "--optimizer-lr": "0.0003",
        "--prediction-type": "epsilon",
    }
    further = flags(preset="pusht-image-small", initial_policy="pusht-image-improved")
    assert further["--prediction-type"] == "sample"  # what it was trained to predict, not the preset's
    long = flags(preset="pusht-keypoints-small", steps=28_000)
    assert (long["--log-every"], long["--save-every"], long["--scheduler-warmup-steps"]) == ("50", "1000", "500")
    assert "--initial-policy" not in long


@pytest.mark.slow
def test_it_is_followed_to_its_end_by_every_tab(training: Training, data: str, runs: Path):
    early, heard = Following(training), []
    for message in early.handle({"type": "start", "data": [data], **TINY}):
        heard.append(message)
    with pytest.raises(ConfigError, match=r"training: expected one at a time, got .* under way; stop that first"):
        training.start(asked(training))
    until(training, lambda: heard.extend(early.advance()) or training.state == "done")
    heard.extend(early.advance())
    (late,) = Following(training).advance()
    (run,) = runs.iterdir()
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["validation_loss"] > 0 for line in lines)
    assert late["lines"] == lines
    assert [line for message in heard for line in message["lines"]] == lines
    assert [message["first"] for message in heard[1:]] == [
        sum(len(one["lines"]) for one in heard[:index]) for index in range(1, len(heard))
    ]
    assert (late["state"], late["first"], late["policy"], late["error"]) == ("done", 0, str(run), "")
    assert not list(early.advance())  # nothing is new

    policies, name = training._policies, str(run)  # what it made can be watched, and trained further
    assert policies.names == [*SHIPPED, name]
    policy, expected = policies.open(name), load_policy(training.run)
    for own, wanted in zip(policy.parameters(), expected.parameters(), strict=True):
        np.testing.assert_array_equal(own.detach(), wanted.detach())
    presets = {one["name"]: one["policies"] for one in training.options([])["presets"]}
    assert presets["debug"] == [name]
    training.start(asked(training, initial_policy=name))
    until(training, lambda: training.state == "done")
    assert read_json(training.run / "config.json")["recipe"]["training"]["initial_policy"] == name
    assert policies.names[len(SHIPPED) + 1 :] == [str(training.run)]


@pytest.mark.slow
def test_it_stops_and_goes_on_as_if_it_had_not(training: Training, data: str, runs: Path):
    tab = Following(training)
    list(tab.handle({"type": "start", "data": [data], **TINY, "steps": LONG, "held_out": 0}))
    until(training, lambda: len(training.lines) >= 2)
    list(tab.handle({"type": "stop"}))
    assert training.state == "stopping"
    training.stop()  # a second signal would end it unsaved
    until(training, lambda: training.state == "stopped")
    done = training.lines[-1]["step"]
    assert 2 <= done < LONG
    assert training.status()["policy"] == str(training.run)
    list(tab.handle({"type": "resume"}))
    assert training.state == "running"
    last = training.lines[-1]  # `seconds` counts all sessions: the time left is known before the first line of this one
    assert training.status()["left"] == pytest.approx(last["seconds"] / last["step"] * (LONG - last["step"]))
    until(training, lambda: training.state == "done")
    (run,) = runs.iterdir()
    assert training.lines == metrics(run)
    assert [line["step"] for line in training.lines] == [*range(1, LONG + 1)]
    (message,) = tab.advance()  # the file was written anew
    assert message["first"] == 0
    assert message["lines"] == metrics(run)


@pytest.mark.slow
def test_one_that_is_killed_is_told_and_goes_on(training: Training):
    training.start(asked(training, steps=LONG, held_out=0))
    until(training, lambda: bool(training.lines))
    training._process.kill()
    until(training, lambda: training.state == "failed")
    assert (
        training.error
        == f"{training.run}: expected to end by itself, got signal SIGKILL; go on from its last checkpoint"
    )
    training.go_on()
    assert training.error == ""
    until(training, lambda: training.state == "done")
    assert [line["step"] for line in training.lines] == [*range(1, LONG + 1)]


@pytest.fixture
def launch(training: Training, tmp_path: Path) -> Callable[[str], None]:
    """Launches a script as if it were `visuomotor train`."""

    def begin(script: str) -> None:
        training.run, training._command = tmp_path, [sys.executable, "-c", script]
        training._launch()

    return begin


@pytest.mark.parametrize(("own", "given"), [(0, 10), (15, 15)])
def test_it_never_goes_before_the_studio(launch, monkeypatch: pytest.MonkeyPatch, own: int, given: int):
    told: list[int] = []
    monkeypatch.setattr(os, "getpriority", lambda *_: own)
    monkeypatch.setattr(os, "setpriority", lambda *what: told.append(what[-1]))
    launch("")
    assert told == [given]


def test_one_whose_priority_cannot_be_set_is_followed_and_stopped(training, launch, monkeypatch: pytest.MonkeyPatch):
    def forbidden(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbidden)
    launch("import time; time.sleep(600)")
    assert (training.state, training.error) == ("running", "")
    training.stop()
    until(training, lambda: training.state == "stopped")


def test_what_it_said_before_it_went_on_is_kept(training, launch, tmp_path: Path):
    launch("print('error: the disk is full'); exit(2)")
    until(training, lambda: training.state == "failed")
    assert training.error == "the disk is full"
    launch("exit(3)")
    until(training, lambda: training.state == "failed")
    assert training.error == f"{tmp_path}: status 3"
    assert training._log.read_text() == "error: the disk is full\n"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    training = Training(Policies(), Sources(), tmp_path / "file" / "runs")
    with pytest.raises(
        ConfigError, match=r"a folder that can be made, got Not a directory; choose another with --runs"
    ):
        training.start(asked(training))


def test_no_run_takes_the_folder_of_another(training: Training, monkeypatch: pytest.MonkeyPatch):
    names = {training._new_folder().name for _ in range(3)}
    assert len(names) == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_ends_with_the_studio_and_keeps_its_checkpoint(tmp_path: Path, data: str, runs: Path, number: int):
    earlier = runs / "earlier" / "checkpoints" / "step_000001"
    shutil.copytree(find_policy(SHIPPED[0]), earlier / "policy")
    with started(tmp_path, "--data", data) as process:
        port = process.stdout.readline().rpartition(":")[2].strip().strip("/")
        with connect(f"ws://127.0.0.1:{port}/api/train", max_size=2**24) as tab:
            assert hear(tab, "training")["state"] == "none"
            tab.send(json.dumps({"type": "start", "data": [data], **TINY, "steps": 10_000}))
            lines = []
            while not (heard := hear(tab, "training"))["policy"]:
                lines += heard["lines"]
            lines += heard["lines"]
            tab.send(json.dumps({"type": "start", "data": [data], **TINY}))
            assert hear(tab, "error")["text"].startswith("training: expected one at a time, got ")
            with connect(f"ws://127.0.0.1:{port}/api/train", max_size=2**24) as other:
                assert hear(other, "training")["lines"][0] == lines[0]
        run = Path(heard["run"])
        with urlopen(f"http://127.0.0.1:{port}/api/about") as answer:
            assert json.load(answer)["policies"] == [*SHIPPED, str(runs / "earlier"), str(run)]
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
    assert error == f"studio:  {run} saves its checkpoint\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int((run / "lock").read_text()), 0)
    assert checkpoints(run)[0].name == f"step_{metrics(run)[-1]['step']:06d}"
    assert sorted(path.name for path in runs.iterdir()) == sorted(["earlier", run.name])
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
