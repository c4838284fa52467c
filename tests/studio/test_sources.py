"""What the pages are told of data sets, over HTTP."""

import io
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from visuomotor.data.dataset import Dataset, load_dataset, read
from visuomotor.data.writer import DatasetWriter
from visuomotor.studio import sources as sources_module
from visuomotor.studio.app import Studio
from visuomotor.studio.sources import LARGEST, Source, Sources

from .conftest import Serving

LENGTHS = (5, 20)
FEATURES = {
    "observation.images.top": {"dtype": "image", "shape": (32, 64, 3), "names": None},
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "action": {"dtype": "float32", "shape": (2,), "names": None},
    "next.success": {"dtype": "bool", "shape": (1,), "names": None},
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes; the second one succeeds."""
    folder = tmp_path_factory.mktemp("data") / "recorded"
    with DatasetWriter.create(folder, 10, FEATURES) as writer:
        for episode, length in enumerate(LENGTHS):
            for frame in range(length):
                writer.add_frame(
                    {
                        "observation.images.top": np.full((32, 64, 3), 10 * frame, np.uint8),
                        "observation.state": np.array([frame, -frame], np.float32),
                        "action": np.array([frame + 1, episode], np.float32),
                        "next.success": np.array([episode == 1 and frame == length - 1]),
                    },
                    f"task {episode}",
                )
            writer.save_episode()
    return folder


@pytest.fixture(scope="module")
def damaged(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "damaged"
    shutil.copytree(recorded, folder)
    (folder / "meta" / "info.json").write_text('{"fps": ')
    return folder


@pytest.fixture(scope="module")
def address(policies, recorded: Path, damaged: Path) -> Iterator[str]:
    serving = Serving(Studio(policies, Sources([str(recorded), str(damaged)])).app())
    yield f"http://127.0.0.1:{serving.port}/api/data"
    serving.close()


def get(address: str) -> Any:
    with urlopen(address) as answer:
        return json.load(answer)


def test_the_episodes_with_length_task_and_success(address, recorded):
    overview = get(f"{address}/0")
    assert (overview["source"], overview["fps"], overview["frames"]) == (str(recorded), 10, 25)
    assert overview["cameras"] == ["observation.images.top"]
    assert overview["episodes"] == [
        {"episode": 0, "length": 5, "tasks": ["task 0"], "success": False},
        {"episode": 1, "length": 20, "tasks": ["task 1"], "success": True},
    ]


def test_success_is_not_made_up(address):
    episodes = get(f"{address}/2")["episodes"]
    assert len(episodes) == 240
    assert {episode["success"] for episode in episodes} == {None}


def test_the_numbers_of_an_episode(address):
    state, action = get(f"{address}/0/episodes/1")
    assert (state["name"], state["names"]) == ("observation.state", ["x", "y"])
    assert state["values"] == [list(range(20)), [-frame for frame in range(20)]]
    assert (action["name"], action["values"][1]) == ("action", [1] * 20)


def test_numbers_that_are_not_finite_are_none(recorded):
    demonstrations = read(recorded)
    demonstrations.arrays["action"][6, 0] = np.nan
    source = Source(Dataset(demonstrations, check=False))
    assert source.series(1)[1]["values"][0] == [1, None, *range(3, 21)]


@pytest.mark.parametrize("frame", [0, 7, 12, 13, 19])
def test_the_window_is_what_the_data_set_gives(address, recorded, frame):
    found = get(f"{address}/0/episodes/1/window?frame={frame}&n_obs_steps=2&horizon=16")
    times = {"observation.state": [-0.1, 0.0], "action": [step / 10 for step in range(-1, 15)]}
    item = load_dataset(recorded, times)[LENGTHS[0] + frame]
    assert found["observed"]["frames"] == item["observation.state"][:, 0].tolist()
    assert found["observed"]["padding"] == item["observation.state_is_pad"].tolist()
    assert [number + 1 for number in found["predicted"]["frames"]] == item["action"][:, 0].tolist()
    assert found["predicted"]["padding"] == item["action_is_pad"].tolist()
    assert found["trained"] == (frame + 7 < 20)


def test_frames_come_below_each_other_as_they_were_recorded(address):
    with urlopen(f"{address}/0/episodes/1/frames?camera=observation.images.top&first=18&count=16") as answer:
        assert answer.headers["content-type"] == "image/png"
        picture = np.asarray(Image.open(io.BytesIO(answer.read())))
    assert picture.shape == (2 * 32, 64, 3)
    assert [int(picture[row, 0, 0]) for row in (0, 32)] == [180, 190]


def test_large_frames_are_made_smaller():
    from visuomotor.studio.sources import _strip

    content, kind = _strip(np.zeros((3, 480, 960, 3), np.uint8))
    assert kind == "image/jpeg"
    assert Image.open(io.BytesIO(content)).size == (LARGEST, 3 * LARGEST // 2)


def test_the_inspection_is_that_of_info(address):
    unseen, seen = (get(f"{address}/0/inspection?frames={frames}") for frames in (0, 1))
    assert [finding["kind"] for finding in unseen["findings"]] == ["short"]
    assert [finding["kind"] for finding in seen["findings"]] == ["short", "black", "black"]
    assert seen["features"]["observation.state"]["statistics"]["max"] == [19, 0]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/1", "meta/info.json"),
        ("/9", "source: expected 0 to 2, got 9"),
        ("/0/episodes/2", "episode: expected a position from 0 to 1, got 2"),
        ("/0/episodes/0/window?frame=5", "frame: expected 0 to 4, got 5"),
        ("/0/episodes/0/window?horizon=0", "horizon"),
        ("/0/episodes/0/window?frame=x", "frame: expected a whole number, got 'x'"),
        ("/0/episodes/0/frames?camera=../../x", "camera: expected one of"),
    ],
)
def test_what_there_is_not_is_one_line(address, path, said):
    with pytest.raises(HTTPError) as refused:
        urlopen(address + path)
    assert refused.value.code == 422
    error = json.load(refused.value)["error"]
    assert said in error
    assert "\n" not in error


@pytest.mark.parametrize("path", [f"/{'9' * 5000}", f"/0/episodes/{'9' * 5000}"])
def test_a_number_that_cannot_be_read_is_not_found(address, path):
    with pytest.raises(HTTPError) as refused:
        urlopen(address + path)
    assert refused.value.code == 404


def test_what_is_recorded_does_not_wait_for_what_is_read(recorded, monkeypatch):
    begun, go_on, found = threading.Event(), threading.Event(), []

    def slowly(name: str) -> Any:
        begun.set()
        assert go_on.wait(60)
        return read(name)

    monkeypatch.setattr(sources_module, "read", slowly)
    sources = Sources([str(recorded)])
    pages = [threading.Thread(target=lambda: found.append(sources.open(0))) for _ in range(2)]
    for page in pages:
        page.start()
    assert begun.wait(60)
    recording = threading.Thread(target=lambda: (sources.renew("mine"), sources.renew(str(recorded))), daemon=True)
    recording.start()
    recording.join(10)
    assert not recording.is_alive()
    go_on.set()
    for page in pages:
        page.join(60)
    again = sources.open(0)
    assert sources.open(0) is again
    assert again not in found  # it had grown while it was read
