"""Frames of a video file by their time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from visuomotor.data.demonstrations import COPY_AGAIN
from visuomotor.errors import DatasetError, mismatch


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
    import av
    from av.video.reformatter import VideoReformatter

    tolerance, found = 0.25 / fps, 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DatasetError(mismatch(name, "a video stream", "none", COPY_AGAIN))
            stream = container.streams.video[0]
            if stream.codec_context is None:  # a damaged codec tag
                raise DatasetError(mismatch(name, "a video of a known codec", "an unknown one", COPY_AGAIN))
            stream.codec_context.thread_count = 1  # the frame store decodes several stretches at a time
            time_base = float(stream.time_base or 0)
            reformatter = VideoReformatter()  # one for all frames: three times as fast as one each
            container.seek(int(seconds[0] / time_base), stream=stream)  # to the key frame before it
            for frame in container.decode(stream):
                time = (frame.pts or 0) * time_base
                if time < seconds[found] - tolerance:
                    continue
                if time > seconds[found] + tolerance:
                    break  # the frame that was wanted is missing
                image = reformatter.reformat(frame, format="rgb24").to_ndarray()[None]
                if image.shape[1:] != shape:
                    raise DatasetError(mismatch(name, f"frames of {shape}", image.shape[1:], "correct meta/info.json"))
                while found < len(rows) and abs(time - seconds[found]) <= tolerance:
                    yield int(rows[found]), image
                    found += 1
                if found == len(rows):
                    return
    except av.FFmpegError as error:
        raise DatasetError(mismatch(name, "a video that can be decoded", error.strerror, COPY_AGAIN)) from error
    expected, got = (
        f"a frame at each of {len(rows)} times from {seconds[0]:.3f} s on",
        f"none at {seconds[found]:.3f} s",
    )
    raise DatasetError(mismatch(name, expected, got, "the file is cut off, or meta/episodes is another data set's"))
