"""An episode that is driven by hand, and what is on disk after it was kept."""

import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from visuomotor import train
from visuomotor.data.dataset import Dataset, load_dataset
from visuomotor.data.pusht import TASK
from visuomotor.data.pusht_geometry import block_keypoints
from visuomotor.data.writer import DatasetWriter
from visuomotor.errors import ConfigError, DatasetError, VisuomotorError
from visuomotor.presets import IMAGE, KEYPOINTS, PRESETS, preset
from visuomotor.simulation.pusht import SUCCESS_COVERAGE, PushT, render_states
from visuomotor.simulation.rollout import Episode
from visuomotor.studio import recorder as recorder_module
from visuomotor.studio import recording as recording_module
from visuomotor.studio.app import Studio
from visuomotor.studio.driver import Driver
from visuomotor.studio.recorder import FEATURES, Recorder
from visuomotor.studio.recording import Recording
from visuomotor.studio.session import Message
from visuomotor.studio.sources import Sources
from visuomotor.training.loop import fill_features

from .conftest import Serving, hear

SEED = 1_000_000
ACTION = {"dtype": "float32", "shape": (2,), "names": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "recordings" / "pusht"


@pytest.fixture
def session(folder: Path) -> Iterator[Recording]:
    session = Recording(Recorder(str(folder), Sources()))
    tell(session, "begin")
    yield session
    session.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "PATIENCE", 0.01)


def tell(session: Recording, kind: str, **content: object) -> list[Message]:
    return list(session.handle({"type": kind, **content}))


def hand(session: Recording, do: str, place: np.ndarray) -> None:
    tell(session, "hand", do=do, x=float(place[0]), y=float(place[1]))


def drive(session: Recording, steps: int) -> Episode:
    """Takes the agent, and leads it to the middle of the table."""
    start = session.episode.states[-1][:2]
    hand(session, "take", start)
    for step in range(steps):
        hand(session, "drag", start + (np.array([256, 256]) - start) * (step + 1) / steps)
        list(session.advance())
    return session.episode


def solve(session: Recording) -> None:
    """Puts the block where it should be; the next step finds that."""
    block = session._table._environment.block
    block.angle = math.pi / 4
    block.position = (256, 256)


def fits(dataset: Dataset, position: int, episode: Episode) -> None:
    """Whether an episode on disk is the one that was driven."""
    rows = slice(int(dataset.episode_starts[position]), int(dataset.episode_ends[position]))
    states, arrays = np.array(episode.states[:-1]), {name: array[rows] for name, array in dataset.arrays.items()}
    coverage = np.array(episode.coverages)
    np.testing.assert_array_equal(arrays["action"], np.array(episode.actions))
    np.testing.assert_array_equal(arrays["observation.state"], states[:, :2].astype(np.float32))
    np.testing.assert_array_equal(arrays["observation.environment_state"], block_keypoints(states[:, 2:]))
    np.testing.assert_array_equal(arrays["next.reward"], np.clip(coverage / 0.95, 0, 1).astype(np.float32))
    np.testing.assert_array_equal(arrays["next.success"], coverage > SUCCESS_COVERAGE)
    np.testing.assert_array_equal(arrays["next.done"], np.arange(len(states)) == len(states) - 1)
    shown, drawn = dataset.frames["observation.image"][rows], render_states(states)
    assert np.abs(shown.astype(int) - drawn).mean() < 1.5  # AV1 loses a little


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_begins_without_a_folder_and_with_a_seed_that_no_evaluation_has(folder):
    session = Recording(Recorder(str(folder), Sources()))
    recordings, begin, frame = tell(session, "begin")
    assert recordings == {
        "type": "recordings",
        "folder": str(folder),
        "name": str(folder),
        "episodes": 0,
        "frames": 0,
        "source": None,
    }
    assert begin == {"type": "begin", "seed": SEED}
    np.testing.assert_array_equal(frame["episodes"][0]["state"], np.round(PushT().reset(SEED), 3))
    assert not folder.parent.exists()


def test_time_runs_from_the_first_movement_until_the_hand_lets_go(session):
    agent = session.episode.states[0][:2]
    assert not session.waiting
    hand(session, "drag", agent)
    assert not session.waiting  # nothing is held
    hand(session, "take", agent)
    assert not session.waiting
    hand(session, "drag", agent + 5)
    assert session.waiting
    assert session.period == 0.1
    list(session.advance())
    tell(session, "hand", do="release")
    assert not session.waiting
    assert session.episode.steps == 1
    drive(session, 3)
    assert session.episode.steps == 4
    assert session.frame()["held"] == "agent"


def test_the_hand_is_the_action_and_the_simulator_alone_moves_the_agent(session):
    episode = drive(session, 30)
    table = PushT()
    states, coverages = [table.reset(SEED)], []
    for action in episode.actions:
        state, coverage = table.step(action)
        states.append(state)
        coverages.append(coverage)
    np.testing.assert_array_equal(episode.states, states)
    assert episode.coverages == coverages
    np.testing.assert_array_equal(episode.actions[-1], [256, 256])


def test_beyond_the_table_the_hand_points_at_its_edge(session):
    agent = session.episode.states[0][:2]
    hand(session, "take", agent)
    hand(session, "drag", np.array([-80, 9000]))
    list(session.advance())
    np.testing.assert_array_equal(session.episode.actions, [[0, 512]])


def test_what_was_kept_is_on_disk_as_it_was_driven(session, folder):
    first = drive(session, 12)
    kept, recordings, begin, _ = tell(session, "keep")
    assert kept == {
        "type": "kept",
        "episode": 0,
        "seed": SEED,
        "frames": 12,
        "coverage": first.coverages[-1],
        "solved": False,
    }
    assert (recordings["episodes"], recordings["frames"], recordings["source"]) == (1, 12, 1)
    assert begin["seed"] == SEED + 1
    fits(load_dataset(folder), 0, first)
    second = drive(session, 7)
    tell(session, "keep")
    dataset = load_dataset(folder)  # while the page goes on
    assert dataset.demonstrations.lengths.tolist() == [12, 7]
    assert dataset.demonstrations.tasks == {0: TASK}
    fits(dataset, 0, first)
    fits(dataset, 1, second)


def test_success_ends_an_episode_which_then_waits(session, folder):
    drive(session, 3)
    solve(session)
    (frame,) = session.advance()
    assert frame["over"]
    assert frame["episodes"][0]["solved"]
    assert frame["held"] is None
    assert not session.waiting
    hand(session, "take", session.episode.states[-1][:2])
    hand(session, "drag", np.array([9, 9]))
    list(session.advance())
    assert session.episode.steps == 4
    episode = session.episode
    assert tell(session, "keep")[0]["solved"]
    dataset = load_dataset(folder)
    fits(dataset, 0, episode)
    assert dataset.arrays["next.success"].tolist() == [False, False, False, True]


def test_an_episode_does_not_go_on_for_ever(session, monkeypatch):
    monkeypatch.setattr(recording_module, "LONGEST", 3)
    drive(session, 5)
    assert session.episode.steps == 3
    assert session.over
    assert not session.episode.success


def test_discarding_leaves_nothing_and_goes_to_the_next_seed(session, folder):
    drive(session, 5)
    begin, frame = tell(session, "discard")
    assert begin["seed"] == SEED + 1
    assert frame["episodes"][0]["steps"] == 0
    assert not folder.parent.exists()
    kept = drive(session, 4)
    tell(session, "keep")
    before = files(folder)
    drive(session, 5)
    tell(session, "discard")
    assert files(folder) == before
    fits(load_dataset(folder), 0, kept)


def test_no_seed_begins_again_after_another_one_was_discarded(session, folder):
    drive(session, 2)
    tell(session, "keep")
    tell(session, "discard")
    drive(session, 2)
    kept = tell(session, "keep")[0]
    assert kept["seed"] == SEED + 2
    session.close()
    again = Recording(session._recorder)
    recordings, begin, _ = tell(again, "begin")
    assert (recordings["episodes"], begin["seed"]) == (2, SEED + 3)
    again.close()


def test_retrying_begins_at_the_same_state(session):
    tell(session, "begin", seed=SEED + 77)
    before = session.episode.states[0]
    drive(session, 20)
    assert not np.array_equal(session._table.state(), before)
    begin, _ = tell(session, "retry")
    assert begin["seed"] == SEED + 77
    assert session.episode.steps == 0
    np.testing.assert_array_equal(session._table.state(), before)
    np.testing.assert_array_equal(session.episode.states, [before])


def test_another_day_goes_on_with_the_same_data_set(session, folder):
    first = drive(session, 5)
    tell(session, "keep")
    session.close()
    sources = Sources()
    other = Recording(Recorder(str(folder), sources))
    assert sources.names[-1] == str(folder)
    recordings, begin, _ = tell(other, "begin")
    assert (recordings["episodes"], recordings["frames"], recordings["source"]) == (1, 5, 1)
    assert begin["seed"] == SEED + 1
    second = drive(other, 6)
    tell(other, "keep")
    dataset = load_dataset(folder)
    fits(dataset, 0, first)
    fits(dataset, 1, second)
    other.close()


@pytest.mark.parametrize("left_out", ["observation.image", "observation.environment_state"])
def test_a_set_that_asks_for_less_goes_on_too(folder, left_out):
    fewer = {name: feature for name, feature in FEATURES.items() if name != left_out}
    DatasetWriter.create(folder, 10, fewer).finalize()
    session = Recording(Recorder(str(folder), Sources()))
    tell(session, "begin")
    drive(session, 4)
    tell(session, "keep")
    session.close()
    dataset = load_dataset(folder)
    assert len(dataset) == 4
    assert left_out not in dataset.features


@pytest.mark.parametrize(
    ("features", "fps", "said"),
    [
        ({"observation.images.front": {"dtype": "video", "shape": (64, 64, 3), "names": None}}, 10, "images.front"),
        ({"observation.state": {"dtype": "float32", "shape": (6,), "names": None}}, 10, r"features: .*\(6,\)"),
        ({}, 30, "fps: expected 10.0, got 30"),
    ],
)
def test_the_set_of_another_robot_is_refused_and_stays_as_it_is(folder, features, fps, said):
    DatasetWriter.create(folder, fps, features | {"action": ACTION}).finalize()
    (folder / "data" / "chunk-000").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "chunk-000" / "file-007.parquet").write_bytes(b"what `append` would clear away")
    before = files(folder)
    session = Recording(Recorder(str(folder), Sources()))
    with pytest.raises(DatasetError, match=said) as error:
        tell(session, "begin")
    assert "--recordings" in str(error.value)
    assert session.frame()["episodes"] == []
    assert files(folder) == before
    DatasetWriter.append(folder).finalize()  # nobody holds it


def test_a_folder_of_other_files_is_refused_and_stays_as_it_is(folder):
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("words")
    with pytest.raises(DatasetError, match="expected a new or an empty folder, got one with files"):
        tell(Recording(Recorder(str(folder), Sources())), "begin")
    assert files(folder) == {"thesis.txt": b"words"}


def test_a_second_page_waits_until_the_first_one_has_gone(folder):
    recorder = Recorder(str(folder), Sources())
    first, second = Recording(recorder), Recording(recorder)
    tell(first, "begin")
    for _ in range(2):
        with pytest.raises(DatasetError, match="expected one page that records, got another one"):
            tell(second, "begin")
    second.close()
    drive(first, 3)
    tell(first, "keep")
    first.close()
    assert tell(second, "begin")[0]["episodes"] == 1
    second.close()


def test_another_program_that_writes_there_is_told(folder):
    writer = DatasetWriter.create(folder, 10, FEATURES)
    session = Recording(Recorder(str(folder), Sources()))
    with pytest.raises(DatasetError, match="expected a folder that nobody else writes to, got another writer"):
        tell(session, "begin")
    writer.finalize()
    tell(session, "begin")
    session.close()


def test_a_full_disk_is_one_line_and_the_episode_can_be_kept_again(session, folder, monkeypatch):
    tell(session, "begin")
    drive(session, 2)
    tell(session, "keep")
    episode = drive(session, 4)

    def full(_: DatasetWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DatasetError, match="got No space left on device"):
        patch.setattr(DatasetWriter, "save_episode", full)
        tell(session, "keep")
    assert len(load_dataset(folder)) == 2
    assert session.episode is episode
    tell(session, "keep")
    fits(load_dataset(folder), 1, episode)


def test_a_folder_that_was_deleted_is_made_again(session, folder):
    drive(session, 2)
    tell(session, "keep")
    shutil.rmtree(folder)
    episode = drive(session, 3)
    with pytest.raises(DatasetError, match="No such file or directory"):
        tell(session, "keep")
    assert tell(session, "keep")[0]["episode"] == 0
    fits(load_dataset(folder), 0, episode)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"type": "dance"}, "type: expected one of begin, hand, keep, discard, retry"),
        ({"type": "begin", "folder": "/etc"}, "begin: folder"),
        ({"type": "begin", "seed": 100_000}, "seed: expected 1000000 to 2147483647, got 100000"),
        ({"type": "begin", "seed": 2**31}, "seed: expected 1000000 to"),
        ({"type": "begin", "seed": "x"}, "begin: seed"),
        ({"type": "keep"}, "keep: expected an episode that was driven, got none"),
        ({"type": "hand", "do": "turn", "angle": 1.0}, "hand: expected take, drag or release, got turn"),
        ({"type": "hand", "do": "drag", "x": math.inf}, "hand: x"),
    ],
)
def test_what_it_cannot_do_is_refused_and_changes_nothing(session, folder, message, said):
    episode = session.episode
    with pytest.raises(VisuomotorError, match=said):
        list(session.handle(message))
    assert session.episode is episode
    assert not folder.parent.exists()


@pytest.mark.parametrize("kind", ["hand", "keep", "discard", "retry"])
def test_nothing_happens_before_it_has_begun(folder, kind):
    session = Recording(Recorder(str(folder), Sources()))
    with pytest.raises(ConfigError, match="send begin first"):
        tell(session, kind, **({"do": "release"} if kind == "hand" else {}))


@pytest.mark.parametrize("name", ["lerobot_v30", "lerobot_v30_keypoints"])
def test_the_features_are_those_of_the_demonstrations(session, folder, shared, name):
    drive(session, 2)
    tell(session, "keep")
    theirs = json.loads((shared / "pusht" / name / "meta/info.json").read_text())
    ours = json.loads((folder / "meta/info.json").read_text())
    assert ours["robot_type"] == theirs["robot_type"]
    assert ours["fps"] == theirs["fps"]
    for feature, kind in theirs["features"].items():
        for part in ("dtype", "shape") if feature == "observation.image" else ("dtype", "shape", "names"):
            assert ours["features"][feature][part] == kind[part]
    assert load_dataset(shared / "pusht" / name, episodes=[0]).demonstrations.tasks == {0: TASK}


class Stalled:
    """A session whose third step takes far too long."""

    running, waiting, period = True, True, 0.02

    def __init__(self) -> None:
        self.times: list[float] = []

    def handle(self, _: object) -> Iterator[Message]:
        yield from ()

    def advance(self) -> Iterator[Message]:
        self.times.append(time.monotonic())
        if len(self.times) == 3:
            time.sleep(0.2)
        yield from ()

    def frame(self) -> Message:
        return {}


def test_after_a_stall_no_steps_are_hurried_through_under_the_hand():
    session, done = Stalled(), threading.Event()
    driver = Driver(session, lambda message: None, late=-session.period / 2, done=done.set)
    deadline = time.monotonic() + 60
    while len(session.times) < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.close()
    assert done.wait(60)
    assert np.median(np.diff(session.times)[3:]) >= session.period / 2  # a busy machine may delay any single one


@pytest.mark.slow
def test_recipes_of_images_and_of_corners_train_on_it(session, folder, tmp_path):
    drive(session, 20)
    tell(session, "keep")
    dataset = load_dataset(folder)
    for name in (name for name in PRESETS if name.startswith("pusht")):
        wanted = IMAGE if "image" in name else KEYPOINTS
        assert tuple(fill_features(preset(name), dataset).input_features) == wanted
    for number, observations in enumerate((IMAGE, KEYPOINTS)):
        debug = preset("debug")
        recipe = dataclasses.replace(debug, training=dataclasses.replace(debug.training, observations=observations))
        train(recipe, folder, tmp_path / f"run{number}")


SCRIPT = """
import sys, time
from tests.studio.test_recording import Recorder, Recording, Sources, drive, tell
session = Recording(Recorder(sys.argv[1], Sources()))
tell(session, "begin")
drive(session, 8)
tell(session, "keep")
drive(session, 5)
print("driving", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_loses_only_the_episode_under_way(folder):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root) as process:
        assert process.stdout.readline() == "driving\n"
        process.send_signal(signal.SIGKILL)
    assert load_dataset(folder).demonstrations.lengths.tolist() == [8]
    session = Recording(Recorder(str(folder), Sources()))
    tell(session, "begin")
    episode = drive(session, 3)
    tell(session, "keep")
    session.close()
    assert load_dataset(folder).demonstrations.lengths.tolist() == [8, 3]
    fits(load_dataset(folder), 1, episode)


@pytest.fixture
def serving(policies, folder: Path) -> Iterator[tuple[Studio, int]]:
    studio = Studio(policies, Sources(), recordings=str(folder), runs=folder.parent / "runs")
    serving = Serving(studio.app())
    yield studio, serving.port
    serving.close()


def tab(port: int) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{port}/api/record")


def say(socket: ClientConnection, kind: str, **content: object) -> None:
    socket.send(json.dumps({"type": kind, **content}))


def test_a_tab_that_is_closed_loses_only_the_episode_under_way(serving, folder):
    studio, port = serving
    with tab(port) as socket:
        say(socket, "begin")
        for steps in (4, 6):
            x, y = hear(socket, "frame")["episodes"][0]["state"][:2]
            say(socket, "hand", do="take", thing="agent", x=x, y=y)
            say(socket, "hand", do="drag", x=x + 20, y=y)
            while hear(socket, "frame")["episodes"][0]["steps"] < steps:
                pass
            if steps == 4:
                say(socket, "keep")
                frames = hear(socket, "kept")["frames"]
        assert studio.recordings[0].episode.steps >= 6
    with tab(port) as socket:
        say(socket, "begin")
        assert hear(socket, "recordings")["frames"] == frames
    assert load_dataset(folder).demonstrations.lengths.tolist() == [frames]


def test_a_second_tab_is_one_line_and_goes_on_when_the_first_one_is_closed(serving):
    _, port = serving
    with tab(port) as second:
        with tab(port) as first:
            say(first, "begin")
            hear(first, "frame")
            say(second, "begin")
            said = hear(second, "error")["text"]
            assert "expected one page that records, got another one that does; close that one" in said
            assert "\n" not in said
            assert hear(second, "frame")["episodes"] == []
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            say(second, "begin")
            if json.loads(second.recv(timeout=60))["type"] == "recordings":
                break
        assert hear(second, "frame")["episodes"][0]["seed"] == SEED
