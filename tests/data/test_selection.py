"""Episodes chosen by number and by task. The synthetic set's episodes take turns with two tasks."""

from pathlib import Path

import pytest

from visuomotor.data.dataset import read
from visuomotor.data.selection import episodes_by_task, episodes_of, load_selection, unconditioned
from visuomotor.data.writer import DatasetWriter
from visuomotor.errors import DatasetError

from .synthetic import TASKS, write_lerobot

FIRST, SECOND = TASKS


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lerobot(tmp_path / "set", lengths=(3, 4, 5, 2))


def test_episodes_of_each_task(source: Path) -> None:
    assert episodes_by_task(read(source)) == {FIRST: [0, 2], SECOND: [1, 3]}
    assert episodes_by_task(read(source, [1, 2])) == {FIRST: [2], SECOND: [1]}


def test_an_episode_may_have_several_tasks(tmp_path: Path) -> None:
    features = {"action": {"dtype": "float32", "shape": (1,), "names": None}}
    with DatasetWriter.create(tmp_path / "set", 10, features) as writer:
        for tasks in (("reach", "reach"), ("reach", "grasp"), ("lift", "lift")):
            for task in tasks:
                writer.add_frame({"action": [0.5]}, task)
            writer.save_episode()
    known = episodes_by_task(read(tmp_path / "set"))
    assert known == {"reach": [0, 1], "grasp": [1], "lift": [2]}
    assert episodes_of(read(tmp_path / "set"), ["grasp", "lift"]) == [1, 2]


@pytest.mark.parametrize(
    ("episodes", "tasks", "chosen"),
    [
        (None, None, [0, 1, 2, 3]),
        ([3, 1], None, [1, 3]),
        (None, [SECOND], [1, 3]),
        (None, [SECOND, FIRST], [0, 1, 2, 3]),
        ([0, 1, 2], [FIRST], [0, 2]),
        ([2, 3], [FIRST], [2]),
    ],
)
def test_what_is_loaded_meets_both(source: Path, episodes, tasks, chosen) -> None:
    dataset = load_selection(source, episodes, tasks)
    assert dataset.episodes.tolist() == chosen
    assert {dataset[row]["task"] for row in range(len(dataset))} == {TASKS[number % 2] for number in chosen}


def test_an_unknown_task_is_answered_with_the_nearest(source: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        load_selection(source, tasks=[FIRST, "Pul"])
    assert str(caught.value).startswith(f"{source}: tasks: expected some of {[FIRST, SECOND]}, got 'Pul'")
    assert str(caught.value).endswith(f"; did you mean {SECOND!r}?")


def test_a_task_of_other_episodes_is_unknown(source: Path) -> None:
    with pytest.raises(DatasetError, match="expected some of "):
        load_selection(source, [0, 2], [SECOND])


def test_no_task_at_all_is_refused(source: Path) -> None:
    with pytest.raises(DatasetError, match="episodes: expected some of 0 to 3, got none"):
        load_selection(source, tasks=[])


def test_several_tasks_are_told_and_one_is_not(source: Path) -> None:
    told = unconditioned(read(source))
    assert told is not None and len(told.splitlines()) == 1
    assert told.startswith(
        f"2 tasks in {source}: {FIRST!r} (2 episodes), {SECOND!r} (2 episodes). The policy is not told"
    )
    assert told.endswith("--tasks chooses episodes by task")
    assert unconditioned(read(source, [1, 3])) is None
