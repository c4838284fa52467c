"""Push-T demonstrations from states and actions, as the replay buffer and the bundled file hold them."""

from collections.abc import Callable, Sequence

import numpy as np

from visuomotor.data.demonstrations import Demonstrations, choose_episodes, frame_numbers
from visuomotor.data.frames import Camera
from visuomotor.data.pusht_geometry import block_keypoints
from visuomotor.errors import DatasetError, mismatch

FPS = 10.0
TASK = "Push the T-shaped block onto the T-shaped target."


def from_states(
    source: str,
    states: np.ndarray,
    action: np.ndarray,
    episode_ends: np.ndarray,
    episodes: Sequence[int] | None,
    find_camera: Callable[[np.ndarray], Camera],
) -> Demonstrations:
    """Columns as LeRobot has them.

    Args:
        source: The file, for errors.
        states: (N, 5): the agent's x, y, the block's x, y and angle.
        action: (N, 2).
        episode_ends: (E,) one past each episode's last row.
        episodes: The episodes to load; None takes all.
        find_camera: Gives `observation.image` for the rows that were chosen.

    Raises:
        DatasetError: Shapes that do not fit together, or an episode that does not exist.
    """
    rows = len(states)
    for name, array, shape in (("state", states, (rows, 5)), ("action", action, (rows, 2))):
        if array.shape != shape:
            raise DatasetError(mismatch(f"{source}: {name}", shape, array.shape, "not Push-T's, or damaged"))
    lengths = np.diff(episode_ends.astype(np.int64), prepend=0)
    if episode_ends.ndim != 1 or not len(lengths) or (lengths <= 0).any() or lengths.sum() != rows:
        expected, found = f"ascending row numbers up to {rows}", _shortened(episode_ends)
        raise DatasetError(mismatch(f"{source}: episode_ends", expected, found, "the file is damaged: copy it again"))
    chosen = choose_episodes(source, np.arange(len(lengths)), episodes)
    frame = frame_numbers(lengths)
    columns = {
        "observation.state": states[:, :2].astype(np.float32),
        "observation.environment_state": block_keypoints(states[:, 2:]),
        "action": action.astype(np.float32),
        "next.done": frame == np.repeat(lengths, lengths) - 1,
        "timestamp": (frame / FPS).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(rows),
        "task_index": np.zeros(rows, np.int64),
    }
    kept = np.flatnonzero(np.isin(columns["episode_index"], chosen))
    return Demonstrations(
        source=source,
        fps=FPS,
        arrays={name: values[kept] for name, values in columns.items()},
        episodes=chosen,
        lengths=lengths[chosen],
        tasks={0: TASK},
        cameras={"observation.image": find_camera(kept)},
    )


def _shortened(numbers: np.ndarray) -> str:
    return np.array2string(numbers.ravel(), threshold=6, edgeitems=2, separator=", ")
