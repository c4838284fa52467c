"""The demonstrations that come with Visuomotor: recorded from a trained policy, images drawn on first use."""

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from visuomotor.data.demonstrations import Demonstrations
from visuomotor.data.frames import Camera, fingerprint
from visuomotor.data.pusht import from_states
from visuomotor.errors import DatasetError, mismatch
from visuomotor.files import write_bytes

NAME = "pusht-demonstrations"
FILE = Path(__file__).parents[1] / "assets" / f"{NAME}.npz"
SIZE = 96  # pixels of the images, as in the human demonstrations
BLOCK = 256  # frames drawn at a time


def read(file: Path = FILE, episodes: Sequence[int] | None = None) -> Demonstrations:
    """Reads what `visuomotor record`, `improve` and `align` write; nothing is drawn.

    Args:
        file: An npz file of `agent` (N, 2), `block` (N, 3), `action` (N, 2) and `episode_ends` (E,).
        episodes: The episodes to read; None takes all.

    Raises:
        DatasetError: The file is missing or damaged.
    """
    names = ("agent", "block", "action", "episode_ends")
    try:
        with np.load(file, allow_pickle=False) as content:
            agent, block, action, episode_ends = (content[name] for name in names)
        states = np.concatenate([agent, block], axis=1)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        advice = "install Visuomotor again, or record demonstrations again"
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise DatasetError(mismatch(str(file), f"an npz file of {', '.join(names)}", found, advice)) from error
    return from_states(str(file), states, action, episode_ends, episodes, partial(_find_camera, states))


def write(file: Path, states: np.ndarray, action: np.ndarray, episode_ends: np.ndarray, **more: np.ndarray) -> None:
    """Writes what `read` reads, whole or not at all.

    Args:
        file: An npz file; one that is there is replaced.
        states: (N, 5), the state before each action: the agent's x, y, the block's x, y and angle.
        action: (N, 2).
        episode_ends: (E,) one past each episode's last row.
        more: Further arrays, which `read` leaves alone.
    """
    content = io.BytesIO()
    states, action = states.astype(np.float32), action.astype(np.float32)
    columns = {"agent": states[:, :2], "block": states[:, 2:], "action": action}
    np.savez_compressed(content, allow_pickle=False, **columns, episode_ends=episode_ends.astype(np.int64), **more)
    write_bytes(file, content.getvalue(), durable=True)


def _find_camera(states: np.ndarray, kept: np.ndarray) -> Camera:
    wanted = states[kept]
    starts = range(0, len(wanted), BLOCK)
    segments = [partial(_draw, wanted[start : start + BLOCK], start) for start in starts]
    # One thread: drawing holds Python's lock.
    shape, pick = (len(wanted), SIZE, SIZE, 3), partial(_pick, wanted)
    return Camera(shape, fingerprint(NAME, SIZE, wanted), segments, threads=1, pick=pick)


def _draw(states: np.ndarray, row: int) -> Iterator[tuple[int, np.ndarray]]:
    yield row, _pick(states, slice(None))


def _pick(states: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    from visuomotor.simulation.pusht import render_states  # pygame, which key points do without

    return render_states(states[rows], size=SIZE)
