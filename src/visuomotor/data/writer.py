"""Records demonstrations into a LeRobot v3.0 data set, frame by frame and episode by episode."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np

from visuomotor.config import nearest
from visuomotor.data.writer_features import DEFAULTS, check_features, check_fps, check_image, check_value, image_shape
from visuomotor.data.writer_files import SIZES, WORKPLACE, DatasetFiles, Episode, new_info
from visuomotor.data.writer_recovery import open_files
from visuomotor.data.writer_tables import IMAGE_TYPES
from visuomotor.data.writer_video import CODECS, Background, CameraFile, PictureFile, VideoFile, frame_rate
from visuomotor.errors import DatasetError, mismatch


class DatasetWriter:
    """Writes episodes into a folder that LeRobot 0.4 to 0.6 and `visuomotor.load_dataset` read.

        features = {
            "observation.images.front": {"dtype": "video", "shape": (480, 640, 3), "names": None},
            "observation.state": {"dtype": "float32", "shape": (6,), "names": ["x", "y", "z", "a", "b", "c"]},
            "action": {"dtype": "float32", "shape": (6,), "names": None},
        }
        with DatasetWriter.create("recordings/cups", fps=30, features=features) as writer:
            for _ in range(50):
                while robot.is_demonstrating():
                    writer.add_frame(robot.observe(), task="Stack the cups.")
                writer.save_episode()

    Frames are encoded while they are recorded, by a thread for each camera, into files of the running episode.
    `save_episode` joins them to the data set. Whatever stops the process, and whenever: the episodes saved before are
    there, and the running one is lost. `append` goes on, and clears up.

    Attributes:
        folder: The data set.
        fps: Frames per second.
        features: Type, shape and names of every feature, as in meta/info.json.
    """

    def __init__(self, files: DatasetFiles, video_codec: str):
        self.folder: Path = files.folder
        self.fps: float = files.info["fps"]
        self.features: dict[str, dict[str, Any]] = files.info["features"]
        self._files, self._codec = files, video_codec
        files.encoding = dict.fromkeys(self.features, CODECS[video_codec][1])
        self._own = {name: feature for name, feature in self.features.items() if name not in DEFAULTS}
        self._shapes = {n: image_shape(n, f) for n, f in self._own.items() if f["dtype"] in IMAGE_TYPES}
        self._cameras: dict[str, Background] = {}
        self._columns: dict[str, list[Any]] = {}
        self._tasks: list[str] = []
        self._closed = False

    @classmethod
    def create(
        cls,
        folder: str | Path,
        fps: float,
        features: Mapping[str, Mapping[str, Any]],
        robot_type: str | None = None,
        *,
        video_codec: str = "av1",
        data_files_size_in_mb: int = SIZES[0],
        video_files_size_in_mb: int = SIZES[1],
    ) -> "DatasetWriter":
        """Begins a data set.

        Args:
            folder: A new or an empty folder.
            fps: Frames per second at which frames will be added.
            features: By name `dtype` (`video`, `image` for PNG, `float32` or another number, `bool`, `string`), `shape`
                ((H, W, 3) for cameras) and `names` of the dimensions, or None. `action` is one of them.
            robot_type: The robot's name.
            video_codec: `av1` or `h264`.
            data_files_size_in_mb: Size from which on the next episode goes into another data file.
            video_files_size_in_mb: The same for videos.

        Raises:
            DatasetError: A feature that cannot be stored, or a folder with files in it.
        """
        folder = Path(folder).expanduser()
        sizes = (data_files_size_in_mb, video_files_size_in_mb)
        info = new_info(check_fps(fps), check_features(features), robot_type, sizes)
        if video_codec not in CODECS:
            advice = f"did you mean {nearest(video_codec, CODECS)}?"
            raise DatasetError(mismatch("video_codec", f"one of {list(CODECS)}", repr(video_codec), advice))
        if _holds_files(folder):
            advice = "take another folder, or go on with a data set by DatasetWriter.append"
            raise DatasetError(mismatch(str(folder), "a new or an empty folder", "one with files", advice))
        _try_encoder(info, video_codec)
        return cls(DatasetFiles.create(folder, info), video_codec)

    @classmethod
    def append(cls, folder: str | Path) -> "DatasetWriter":
        """Goes on with a data set of v3.0, ours or one that LeRobot wrote, with its features and its fps.

        What a recording that was stopped has left behind the last saved episode is deleted.

        Raises:
            DatasetError: No data set of v3.0, damaged, or written by another process just now.
        """
        files = open_files(Path(folder).expanduser())
        known = [(feature.get("info") or {}).get("video.codec") for feature in files.info["features"].values()]
        codec = next((codec for codec in known if codec in CODECS), "av1")
        try:
            _try_encoder(files.info, codec)
            return cls(files, codec)
        except BaseException:
            files.close()
            raise

    @property
    def total_episodes(self) -> int:
        """Episodes saved."""
        return self._files.info["total_episodes"]

    @property
    def total_frames(self) -> int:
        """Frames of the episodes saved."""
        return self._files.info["total_frames"]

    @property
    def episode_frames(self) -> int:
        """Frames of the running episode."""
        return len(self._tasks)

    def add_frame(self, frame: Mapping[str, Any], task: str) -> None:
        """Adds a frame to the running episode. Waits only when the encoders lag seconds behind.

        Args:
            frame: A value for every feature of `create`: NumPy arrays, tensors or numbers of its shape; images as
                (H, W, 3) or (3, H, W), uint8 or float in [0, 1]. They are copied.
            task: What is to be done. It may change within an episode.

        Raises:
            DatasetError: A feature is missing or unknown, or a value has another shape or type or is not finite. The
                frame is not added.
        """
        self._check_open()
        if not isinstance(task, str) or not task:
            raise DatasetError(mismatch("task", "a text", repr(task), "say what is to be done"))
        missing, unknown = self._own.keys() - frame.keys(), frame.keys() - self._own.keys()
        if missing or unknown:
            found = " and ".join(
                [*(f"no {name}" for name in sorted(missing)), *(f"an unknown {name}" for name in sorted(unknown))]
            )
            advice = "the names are those given to `create`; the writer fills timestamp and the indices itself"
            raise DatasetError(mismatch("frame", f"the features {list(self._own)}", found, advice))
        values = {
            name: check_image(name, frame[name], self._shapes[name])
            if name in self._shapes
            else check_value(name, frame[name], feature)
            for name, feature in self._own.items()
        }
        if not self._tasks:
            self._cameras = {name: Background(self._open_camera(name), shape) for name, shape in self._shapes.items()}
            self._columns = {name: [] for name in self._own if name not in self._shapes}
        for name, value in values.items():
            if name in self._cameras:
                self._cameras[name].add(value)
            else:
                self._columns[name].append(value)
        self._tasks.append(task)

    def save_episode(self) -> None:
        """Ends the running episode and adds it to the data set: afterwards it is on disk.

        Raises:
            DatasetError: It has no frame.
        """
        self._check_open()
        if not self._tasks:
            advice = "add frames first, or leave it out"
            raise DatasetError(mismatch("save_episode", "an episode of one frame or more", "none", advice))
        cameras = {name: camera.close() for name, camera in self._cameras.items()}
        counts = {name: file.frames for name, file in cameras.items()}
        counts |= {name: len(values) for name, values in self._columns.items()}
        if set(counts.values()) != {len(self._tasks)}:  # Ctrl-C, say, while a frame was added
            advice = "the last frame was not added as a whole: call discard_episode"
            raise DatasetError(mismatch("save_episode", f"{len(self._tasks)} frames everywhere", counts, advice))
        statistics = {name: camera.file.levels.describe() for name, camera in self._cameras.items()}
        columns = {
            name: np.array(values, object if self._own[name]["dtype"] == "string" else None)
            for name, values in self._columns.items()
        }
        self._files.add([Episode(columns, self._tasks, cameras, statistics)])
        self._forget()

    def discard_episode(self) -> None:
        """Throws the running episode away."""
        for camera in self._cameras.values():
            camera.cancel()
        self._forget()

    def finalize(self) -> None:
        """Ends the recording; the writer takes no more frames. May be called again.

        Raises:
            DatasetError: The running episode has frames: save it or discard it first.
        """
        if self._tasks:
            found = f"{len(self._tasks)} frames that are not saved"
            raise DatasetError(
                mismatch("finalize", "no running episode", found, "call save_episode or discard_episode")
            )
        self._closed = True
        self._files.close()

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finalizes; after an error without the running episode."""
        if error is not None:
            self.discard_episode()
        self.finalize()

    def _open_camera(self, name: str) -> CameraFile:
        path, shape = self._files.workplace / name, self._shapes[name]
        if self._own[name]["dtype"] == "image":
            return CameraFile(PictureFile(path))
        return CameraFile(VideoFile(path, shape, frame_rate(self.fps), self._codec))

    def _forget(self) -> None:
        for path in self._files.workplace.glob("*"):
            path.unlink()
        self._cameras, self._columns, self._tasks = {}, {}, []

    def _check_open(self) -> None:
        if self._closed:
            advice = "open the data set again with DatasetWriter.append"
            raise DatasetError(mismatch(str(self.folder), "a writer in use", "one that is finalized", advice))


def _try_encoder(info: dict[str, Any], video_codec: str) -> None:
    """Opens an encoder for each kind of video: better now than with the first frame."""
    shapes = {image_shape(n, f) for n, f in info["features"].items() if f["dtype"] == "video"}
    with TemporaryDirectory() as folder:
        for shape in shapes:
            VideoFile(Path(folder) / "video", shape, frame_rate(info["fps"]), video_codec).cancel()


def _holds_files(folder: Path) -> bool:
    """Whether anything is there but what a writer that was stopped at its very beginning has left."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return any(WORKPLACE not in path.parts and not path.name.endswith(".tmp") for path in files)
