"""Where driven episodes are kept: one LeRobot v3.0 data set of Push-T, which one page at a time records into."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from visuomotor.config import Feature
from visuomotor.data.bundled import SIZE
from visuomotor.data.lerobot_meta import read_json
from visuomotor.data.pusht import FPS, TASK
from visuomotor.data.writer import DatasetWriter
from visuomotor.data.writer_features import DEFAULTS
from visuomotor.data.writer_tables import IMAGE_TYPES
from visuomotor.errors import DatasetError, mismatch
from visuomotor.simulation.pusht import SUCCESS_COVERAGE, observe
from visuomotor.simulation.rollout import Episode
from visuomotor.studio.sources import Sources

FOLDER = "recordings/pusht"
ROBOT = "2d pointer"
POINT = ["motor_0", "motor_1"]
FEATURES: dict[str, dict[str, Any]] = {
    "observation.image": {"dtype": "video", "shape": (SIZE, SIZE, 3), "names": None},
    "observation.state": {"dtype": "float32", "shape": (2,), "names": POINT},
    "observation.environment_state": {
        "dtype": "float32",
        "shape": (16,),
        "names": [f"keypoint_{number}" for number in range(16)],
    },
    "action": {"dtype": "float32", "shape": (2,), "names": POINT},
    "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    "next.success": {"dtype": "bool", "shape": (1,), "names": None},
}
"""Those of lerobot/pusht and of lerobot/pusht_keypoints, so that the recipes of both train on it."""
OBSERVED = {
    "observation.image": Feature("VISUAL", (3, SIZE, SIZE)),
    "observation.state": Feature("STATE", (2,)),
    "observation.environment_state": Feature("ENV", (16,)),
}
PATIENCE = 1.0
"""Seconds to wait for a page that is just leaving: one that is loaded again may come back sooner than it went."""


class Recorder:
    """The data set, new or existing. Nothing is written outside its folder.

    Attributes:
        name: The folder as it was given, and its name among the sources.
        folder: The same, absolute.
        episodes: In it, as far as is known.
        frames: Of these.
        next_seed: Behind all that were kept or discarded since the studio began.

    Args:
        folder: Made when the first episode is kept.
        sources: Are told of it as soon as there is something to see.
    """

    def __init__(self, folder: str, sources: Sources):
        self.name, self._sources = folder, sources
        self.folder = Path(folder).expanduser().absolute()
        self.episodes = self.frames = self.next_seed = 0
        self._held = Lock()
        self._writer: DatasetWriter | None = None
        if any(self.folder.glob("meta/episodes/*/*.parquet")):
            sources.renew(folder)

    @property
    def source(self) -> int | None:
        """Its number among the sources; None before there is an episode."""
        return self._sources.names.index(self.name) if self.name in self._sources.names else None

    def hold(self) -> None:
        """Takes the data set for one page, until `release`.

        Raises:
            DatasetError: Another page or program records into it, or it is no data set of Push-T.
        """
        if not self._held.acquire(timeout=PATIENCE):
            advice = "close that one, and this one goes on"
            raise DatasetError(mismatch(str(self.folder), "one page that records", "another one that does", advice))
        try:
            if self.folder.exists():
                with _told(self.folder):
                    self._open()
        except BaseException:
            self._held.release()
            raise

    def release(self) -> None:
        """Lets others record into it."""
        try:
            self._shut()
        finally:
            self._held.release()

    def keep(self, episode: Episode) -> None:
        """Adds an episode: afterwards it is on disk. After an error it is not, and may be given again.

        Raises:
            DatasetError: It cannot be written.
        """
        with _told(self.folder):
            try:
                writer = self._writer or self._open()
                for frame in _frames(episode, writer.features):
                    writer.add_frame(frame, TASK)
                writer.save_episode()
            except BaseException:
                self._shut()  # the next attempt begins with what the disk holds
                raise
        self._count(writer)
        self._sources.renew(self.name)

    def _open(self) -> DatasetWriter:
        if (self.folder / "meta/info.json").is_file():
            _check(self.folder)  # before `append`, which clears up
            writer = DatasetWriter.append(self.folder)
        else:
            writer = DatasetWriter.create(self.folder, FPS, FEATURES, ROBOT)
        self._writer = writer
        self._count(writer)
        return writer

    def _count(self, writer: DatasetWriter) -> None:
        self.episodes, self.frames = writer.total_episodes, writer.total_frames

    def _shut(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.discard_episode()
            writer.finalize()


def _frames(episode: Episode, wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each action with what was seen before it and what came of it, as in the demonstrations."""
    states, coverage = np.array(episode.states[:-1]), np.array(episode.coverages)
    columns = {name: observe(states, {name: feature})[name] for name, feature in OBSERVED.items() if name in wanted}
    columns |= {
        "action": np.array(episode.actions),
        "next.reward": np.clip(coverage / SUCCESS_COVERAGE, 0, 1),
        "next.done": np.arange(episode.steps) == episode.steps - 1,
        "next.success": coverage > SUCCESS_COVERAGE,
    }
    for row in range(episode.steps):
        yield {name: values[row] for name, values in columns.items() if name in wanted}


def _check(folder: Path) -> None:
    """Whether a driven episode has all that a data set asks for; one of lerobot/pusht, without corners, may go on too.

    Raises:
        DatasetError: It asks for something else.
    """
    info = read_json(folder, "meta/info.json")
    if not isinstance(info, dict) or not isinstance(info.get("features"), dict):
        return  # `append` says what is wrong
    known = {name: _kind(feature) for name, feature in FEATURES.items()}
    asked = {name: _kind(feature) for name, feature in info["features"].items() if name not in DEFAULTS}
    strange = {name: kind for name, kind in asked.items() if kind != known.get(name)}
    advice = "record into another folder with --recordings"
    if strange:
        raise DatasetError(mismatch(f"{folder}: features", f"those of Push-T, {known}", strange, advice))
    if info.get("fps") != FPS:
        raise DatasetError(mismatch(f"{folder}: fps", FPS, info.get("fps"), advice))


def _kind(feature: Any) -> Any:
    """Type and shape; whether frames are kept as video or as pictures is the data set's own business."""
    dtype, shape = (feature.get(part) if isinstance(feature, dict) else None for part in ("dtype", "shape"))
    return "image" if dtype in IMAGE_TYPES else dtype, tuple(shape) if isinstance(shape, list | tuple) else shape


@contextmanager
def _told(folder: Path) -> Generator[None]:
    """A disk that is full or forbidden is told in one line."""
    try:
        yield
    except OSError as error:
        advice = "make room, or allow it; then keep the episode again"
        found = error.strerror or str(error)
        raise DatasetError(mismatch(str(folder), "a folder that can be written to", found, advice)) from error
