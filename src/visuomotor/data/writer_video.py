"""Frames of one camera and one episode into a file, and video files joined without encoding them again."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import Any

import numpy as np

from visuomotor.data.demonstrations import COPY_AGAIN
from visuomotor.data.writer_statistics import Levels
from visuomotor.errors import DatasetError, mismatch

CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "av1": ("libsvtav1", {"g": 2, "crf": 30, "preset": 12}),  # LeRobot's own settings
    "h264": ("libx264", {"g": 2, "crf": 23, "preset": "veryfast"}),
}
"""The encoder of each codec, and its settings. A key frame in every two makes random access quick."""
ONE_THREAD = {"av1": {"svtav1-params": "lp=1"}, "h264": {"threads": "1", "bf": "0"}}
"""Several cameras and episodes are encoded at a time. Without B-frames packets lie in the order of time."""
COPIED = ("av1", "h264", "hevc")
"""Codecs that LeRobot decodes."""
QUEUE = 128_000_000  # bytes of frames that wait for the encoder of a camera


@dataclass(frozen=True)
class Clip:
    """Consecutive frames of a video file."""

    path: Path
    first: int
    """The number of its first frame in the file."""
    frames: int
    size: int = 0
    """Its bytes, about."""


@dataclass(frozen=True)
class Pictures:
    """Encoded images, one after the other in a file."""

    path: Path
    sizes: list[int] = field(repr=False)
    """The bytes of each."""

    @property
    def frames(self) -> int:
        return len(self.sizes)

    @property
    def size(self) -> int:
        return sum(self.sizes)


def frame_rate(fps: float) -> Fraction:
    """Frames per second as a fraction: 29.97 is 2997/100, and 30000/1001 is found from its float."""
    return Fraction(fps).limit_denominator(10_000)


@contextmanager
def own_priority() -> Generator[None]:
    """Keeps the thread's scheduling: for root, SVT-AV1 makes the one that opens it real-time, before all others."""
    if not hasattr(os, "sched_getscheduler"):  # Linux has it
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if (os.sched_getscheduler(0), os.sched_getparam(0)) != before:
            os.sched_setscheduler(0, *before)


class VideoFile:
    """Encodes frames into a video file."""

    def __init__(self, path: Path, shape: tuple[int, int, int], rate: Fraction, codec: str):
        import av

        os.environ.setdefault("SVT_LOG", "1")  # errors only: the encoder would tell its settings every time
        encoder, settings = CODECS[codec]
        options = {name: str(value) for name, value in settings.items()} | ONE_THREAD[codec]
        self._path, self._frames, self._time_base = path, 0, 1 / rate
        self._container = av.open(str(path), "w", format="mp4")
        self._stream: Any = self._container.add_stream(encoder, rate=rate, options=options)
        self._stream.height, self._stream.width = shape[:2]
        self._stream.pix_fmt, self._stream.time_base = "yuv420p", self._time_base
        try:
            with own_priority():
                self._stream.codec_context.open()
        except av.FFmpegError as error:
            self.cancel()
            found = f"{shape[0]} x {shape[1]} at {float(rate):g} frames/s"
            expected = f"frames that {encoder} encodes (even height and width; up to 240 frames/s for AV1)"
            raise DatasetError(mismatch("video", expected, found, "store them as `image`, or resize them")) from error

    def add(self, image: np.ndarray) -> None:
        import av

        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = self._frames, self._time_base
        self._container.mux(self._stream.encode(frame))
        self._frames += 1

    def close(self) -> Clip:
        self._container.mux(self._stream.encode())
        self._container.close()
        return Clip(self._path, 0, self._frames, self._path.stat().st_size)

    def cancel(self) -> None:
        self._container.close()
        self._path.unlink(missing_ok=True)


class PictureFile:
    """Writes frames as PNG, one after the other, into one file."""

    def __init__(self, path: Path):
        self._path, self._sizes = path, []
        self._file = path.open("wb")

    def add(self, image: np.ndarray) -> None:
        from PIL import Image

        content = BytesIO()
        Image.fromarray(image).save(content, "png", compress_level=1)  # twice as fast as 6, 15 % more bytes
        self._sizes.append(self._file.write(content.getbuffer()))

    def close(self) -> Pictures:
        self._file.close()
        return Pictures(self._path, self._sizes)

    def cancel(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


class CameraFile:
    """The frames of one camera and one episode: a file of them, and their statistics.

    Args:
        file: Where the frames go; None only looks at them.
    """

    def __init__(self, file: VideoFile | PictureFile | None):
        self._file, self.levels = file, Levels()

    def add(self, image: np.ndarray) -> None:
        """Takes an (H, W, 3) uint8 frame, contiguous in memory, which must not change any more."""
        self.levels.add(image)
        if self._file is not None:
            self._file.add(image)

    def close(self) -> Clip | Pictures | None:
        return self._file.close() if self._file is not None else None

    def cancel(self) -> None:
        if self._file is not None:
            self._file.cancel()


class Background:
    """Hands frames to a camera's file in a thread of its own, and makes the giver wait if too many are under way."""

    def __init__(self, file: CameraFile, shape: tuple[int, int, int]):
        self.file = file
        self._queue: Queue[np.ndarray | None] = Queue(max(4, QUEUE // int(np.prod(shape))))
        self._error: Exception | None = None
        self._cancelled = Event()
        self._closed: Clip | Pictures | None = None
        self._thread = Thread(target=self._run, daemon=True, name="visuomotor-encoder")
        self._thread.start()

    def _run(self) -> None:
        while (image := self._queue.get()) is not None:
            if self._error is None and not self._cancelled.is_set():
                try:
                    self.file.add(image)
                except Exception as error:  # told to the giver, who is in another thread
                    self._error = error

    def add(self, image: np.ndarray) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put(image)

    def close(self) -> Clip | Pictures:
        """Waits for the last frame. Closing again gives the same file."""
        if self._closed is None:
            self._stop()
            if self._error is not None:
                raise self._error
            self._closed = self.file.close()
        assert self._closed is not None
        return self._closed

    def cancel(self) -> None:
        self._cancelled.set()
        self._stop()
        if self._closed is None:
            self.file.cancel()

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()


@dataclass(frozen=True)
class VideoKind:
    """What videos must have in common to be joined."""

    codec: str
    pixels: str
    height: int
    width: int
    header: bytes
    """The decoder's set-up, which a file has once."""


def video_kind(path: Path) -> VideoKind:
    """Raises: DatasetError: The file is damaged or no video."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            header = bytes(context.extradata or b"")
            pixels = str(context.pix_fmt)
            return VideoKind(stream.codec.canonical_name, pixels, context.height, context.width, header)
    except (av.FFmpegError, IndexError) as error:
        raise DatasetError(mismatch(str(path), "a video", str(error), COPY_AGAIN)) from error


def video_info(kind: VideoKind, fps: float, settings: dict[str, Any]) -> dict[str, Any]:
    """What meta/info.json says of a camera's videos.

    Args:
        kind: Of its first video.
        fps: Frames per second.
        settings: The encoder's, as in `CODECS`, where it was ours.
    """
    seen = {"height": kind.height, "width": kind.width, "codec": kind.codec, "pix_fmt": kind.pixels, "fps": fps}
    encoder = {"fast_decode": 0, "video_backend": "pyav", "extra_options": {}}
    described: dict[str, Any] = {f"video.{name}": value for name, value in (seen | {"channels": 3}).items()} | {
        "has_audio": False
    }
    if settings:
        described |= {f"video.{name}": value for name, value in (settings | encoder).items()}
    return described | {"is_depth_map": False}


def count_frames(path: Path) -> int:
    """How many frames a video file says that it has."""
    import av

    with av.open(str(path)) as container:
        return container.streams.video[0].frames


def packets(clip: Clip, rate: Fraction) -> Iterator[tuple[int, Any]]:
    """A clip's frames as they are encoded: each one's number in the clip, and its packet, in the order of decoding.

    Raises:
        DatasetError: They cannot be copied: the clip does not begin at a key frame, needs frames outside of it, is not
            of constant rate, or the file is damaged.
    """
    import av

    complaint = "frames"
    try:
        with av.open(str(clip.path)) as container:
            stream = container.streams.video[0]
            time_base, begun, found = stream.time_base or Fraction(1), False, set()
            if clip.first:
                container.seek(round(clip.first / rate / time_base), stream=stream)  # to the key frame before it
            for packet in container.demux(stream):
                if packet.pts is None:
                    continue  # the empty one at the end
                number = round(packet.pts * time_base * rate) - clip.first
                if not begun and number == 0 and packet.is_keyframe:
                    begun = True
                if not begun and number < 0:
                    continue
                if not begun or number >= clip.frames or number in found:
                    break
                if number >= 0:  # else it leads up to the key frame, and belongs to the clip before
                    found.add(number)
                    yield number, packet
                if len(found) == clip.frames:
                    return
            complaint = f"{len(found)} that can be copied"
    except (av.FFmpegError, IndexError) as error:
        complaint = str(error)
    place = f"{clip.path}: frame {clip.first} on"
    raise DatasetError(mismatch(place, f"{clip.frames} frames from a key frame on", complaint, COPY_AGAIN))


def measure(clip: Clip, rate: Fraction) -> Clip | None:
    """The clip with its size; None if its packets cannot be copied."""
    try:
        return replace(clip, size=sum(packet.size for _, packet in packets(clip, rate)))
    except DatasetError:
        return None


def join(target: Path, clips: Sequence[Clip], rate: Fraction) -> None:
    """Writes clips one after the other into a new video file, by copying their packets.

    Frame k of the file is shown at k / rate seconds, exactly.

    Raises:
        DatasetError: As for `packets`.
    """
    import av

    # Packets lie in the order of decoding. B-frames make it another than that of time, and so it must begin earlier.
    orders = [[number for number, _ in packets(clip, rate)] for clip in clips]
    delay = max(position - number for order in orders for position, number in enumerate(order))
    start = position = 0
    with av.open(str(target), "w", format="mp4") as output:
        stream = None
        for clip in clips:
            for number, packet in packets(clip, rate):
                if stream is None:
                    stream = output.add_stream_from_template(packet.stream, opaque=True)
                    stream.time_base = 1 / rate
                packet.stream, packet.time_base = stream, 1 / rate
                packet.pts, packet.dts, packet.duration = start + number, position - delay, 1
                output.mux(packet)
                position += 1
            start += clip.frames
