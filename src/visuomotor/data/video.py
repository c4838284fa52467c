"""Frames of a video file by their time."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from visuomotor.data.demonstrations import COPY_AGAIN
from visuomotor.errors import DatasetError, mismatch

AHEAD = 4  # frames: to one further on, seeking is faster than decoding those between
OPEN_FILMS = 16  # files kept open for the next frames that are wanted of them; each takes some MB


def decode(
    path: Path, name: str, seconds: np.ndarray, rows: np.ndarray, shape: tuple[int, int, int], fps: float
) -> Iterator[tuple[int, np.ndarray]]:
    """The frames shown at certain times, by PyAV.

    Args:
        path: The file.
        name: Its name in the data set, for errors.
        seconds: (n,) ascending times; a frame counts if it is nearer than a quarter of 1 / fps.
        rows: (n,) the row that each frame is yielded with.
        shape: (H, W, 3).
        fps: Frames per second.

    Yields:
        A row and its frame, (1, H, W, 3) uint8.

    Raises:
        DatasetError: The file is damaged, has other frames than expected, or too few.
    """
    with closing(Film(path, name, shape, fps)) as film:
        for row, image in zip(rows.tolist(), film.frames(seconds), strict=True):
            yield row, image[None]


class Film:
    """An open video file that gives frames by their time.

    Args:
        path: The file.
        name: Its name in the data set, for errors.
        shape: (H, W, 3).
        fps: Frames per second.

    Raises:
        DatasetError: The file is damaged.
    """

    def __init__(self, path: Path, name: str, shape: tuple[int, int, int], fps: float):
        import av
        from av.video.reformatter import VideoReformatter

        self.path, self.name, self.shape, self.fps = path, name, shape, fps
        try:
            self._container = av.open(str(path))
        except av.FFmpegError as error:
            raise self._damaged(error.strerror) from error
        if not self._container.streams.video:
            self.close()
            raise DatasetError(mismatch(name, "a video stream", "none", COPY_AGAIN))
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:  # a damaged codec tag
            self.close()
            raise DatasetError(mismatch(name, "a video of a known codec", "an unknown one", COPY_AGAIN))
        self._stream.codec_context.thread_count = 1  # several films are decoded at a time
        self._reformatter = VideoReformatter()  # one for all frames: three times as fast as one each

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def frames(self, seconds: np.ndarray) -> Iterator[np.ndarray]:
        """The frames shown at ascending times, (H, W, 3) uint8; one counts if it is nearer than a quarter of 1 / fps.

        Raises:
            DatasetError: The file is damaged, or has no frame at one of the times, or of another shape.
        """
        import av

        try:
            yield from self._find(seconds)
        except av.FFmpegError as error:
            raise self._damaged(error.strerror) from error

    def _find(self, seconds: np.ndarray) -> Iterator[np.ndarray]:
        tolerance = 0.25 / self.fps
        decoded, time, image = iter(()), -math.inf, None
        for wanted in seconds.tolist():
            if wanted - time > (AHEAD + 0.5) / self.fps:
                decoded = self._decode_from(wanted, tolerance)
            while time < wanted - tolerance:
                frame = next(decoded, None)
                if frame is None:
                    raise self._missing(seconds, wanted)
                time, image = self._time(frame), None
            if time > wanted + tolerance:
                raise self._missing(seconds, wanted)
            if image is None:
                image = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
            if image.shape != self.shape:
                found = image.shape
                raise DatasetError(mismatch(self.name, f"frames of {self.shape}", found, "correct meta/info.json"))
            yield image

    def _decode_from(self, wanted: float, tolerance: float) -> Iterator[Any]:
        """Frames in the order of time, from a key frame on that is shown no later than `wanted`."""
        start, earlier = wanted, 1.0
        while True:
            self._container.seek(int(start / float(self._stream.time_base or 1)), stream=self._stream)
            decoded = self._container.decode(self._stream)
            first = next(decoded, None)
            if start <= 0 or (first is not None and self._time(first) <= wanted + tolerance):
                return chain([] if first is None else [first], decoded)
            # Seeking goes by the order in which frames are stored: HEVC's may be shown before their key frame.
            start, earlier = max(wanted - earlier, 0.0), 4 * earlier

    def _time(self, frame: Any) -> float:
        return (frame.pts or 0) * float(self._stream.time_base or 0)

    def _damaged(self, found: str | None) -> DatasetError:
        return DatasetError(mismatch(self.name, "a video that can be decoded", found, COPY_AGAIN))

    def _missing(self, seconds: np.ndarray, wanted: float) -> DatasetError:
        expected = f"a frame at each of {len(seconds)} times from {seconds[0]:.3f} s on"
        advice = "the file is cut off, or meta/episodes is another data set's"
        return DatasetError(mismatch(self.name, expected, f"none at {wanted:.3f} s", advice))


class Films:
    """A camera's video files, from which the frames of any rows are decoded. Files stay open for the next ones.

    Args:
        paths: The files.
        files: (N,) the place in `paths` of each row's file.
        seconds: (N,) each row's time in it.
        shape: (H, W, 3).
        fps: Frames per second.
    """

    def __init__(
        self, paths: Sequence[Path], files: np.ndarray, seconds: np.ndarray, shape: tuple[int, int, int], fps: float
    ):
        self.paths, self.files, self.seconds, self.shape, self.fps = paths, files, seconds, shape, fps
        self._idle: deque[Film] = deque()  # the least recently used first
        self._lock = Lock()

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows -> (n, H, W, 3) uint8; several threads may call it at once.

        Raises:
            DatasetError: A file is damaged, or has other frames than expected, or too few.
        """
        found = np.empty((len(rows), *self.shape), np.uint8)
        files, seconds = self.files[rows], self.seconds[rows]
        for file in np.unique(files):
            inside = np.flatnonzero(files == file)
            inside = inside[np.argsort(seconds[inside], kind="stable")]
            film = self._take(self.paths[file])  # if it fails it is not kept
            for place, image in zip(inside, film.frames(seconds[inside]), strict=True):
                found[place] = image
            self._give_back(film)
        return found

    def _take(self, path: Path) -> Film:
        with self._lock:
            for film in reversed(self._idle):
                if film.path == path:
                    self._idle.remove(film)
                    return film
        return Film(path, str(path), self.shape, self.fps)

    def _give_back(self, film: Film) -> None:
        with self._lock:
            self._idle.append(film)
            oldest = self._idle.popleft() if len(self._idle) > OPEN_FILMS else None
        if oldest is not None:
            oldest.close()
