"""Which episodes of a data set are learned from: by number, and by the name of their task."""

from collections.abc import Sequence

import numpy as np

from visuomotor.config import nearest
from visuomotor.data.dataset import Dataset, Source, load_dataset, read
from visuomotor.data.demonstrations import Demonstrations
from visuomotor.errors import DatasetError, mismatch


def load_selection(
    source: Source,
    episodes: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    resize: tuple[int, int] | None = None,
) -> Dataset:
    """The episodes that have one of these numbers and, in some frame, one of these tasks.

    Args:
        source: As for `load_dataset`.
        episodes: Their numbers; None takes all.
        tasks: Names of tasks as `visuomotor info` lists them; None takes all.
        resize: (H, W) of the frames, as for `load_dataset`.

    Raises:
        DatasetError: The source is damaged, or lacks one of the episodes or, in these, one of the tasks.
    """
    if tasks is not None:
        episodes = episodes_of(read(source, episodes), tasks)
    return load_dataset(source, episodes=episodes, resize=resize)


def episodes_by_task(demonstrations: Demonstrations) -> dict[str, list[int]]:
    """The numbers of each task's episodes, in the order of the tasks; an episode may have several."""
    rows = np.repeat(demonstrations.episodes, demonstrations.lengths)
    pairs = np.unique(np.stack([demonstrations.arrays["task_index"], rows], axis=1), axis=0)
    found: dict[str, list[int]] = {}
    for task, episode in pairs.tolist():
        found.setdefault(demonstrations.tasks[task], []).append(episode)
    return found


def episodes_of(demonstrations: Demonstrations, tasks: Sequence[str]) -> list[int]:
    """The numbers of the episodes in which one of the tasks is done, ascending.

    Raises:
        DatasetError: No episode has one of them; the nearest name is told.
    """
    known = episodes_by_task(demonstrations)
    for task in tasks:
        if task not in known:
            place, advice = f"{demonstrations.source}: tasks", f"did you mean {nearest(task, known)!r}?"
            raise DatasetError(mismatch(place, f"some of {list(known)}", repr(task), advice))
    return sorted({episode for task in tasks for episode in known[task]})


def unconditioned(demonstrations: Demonstrations) -> str | None:
    """What to say before a policy learns several tasks at once, in one line; None where there is one."""
    known = episodes_by_task(demonstrations)
    if len(known) < 2:
        return None
    listed = ", ".join(f"{task!r} ({len(numbers)} episodes)" for task, numbers in list(known.items())[:4])
    more = f" and {len(known) - 4} more" if len(known) > 4 else ""
    told = f"{len(known)} tasks in {demonstrations.source}: {listed}{more}. The policy is not told which one to do"
    return f"{told} and will mix them wherever they look alike; --tasks chooses episodes by task"
