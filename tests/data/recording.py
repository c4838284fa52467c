"""Episodes whose every value follows from the row; their pictures tell the row even after compression.

Run as a program it records, or dies while recording, for the tests that look at what is left.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np

from visuomotor.data.writer import DatasetWriter

SHAPE = (32, 64, 3)
FEATURES = {
    "observation.images.top": {"dtype": "video", "shape": SHAPE, "names": None},
    "observation.images.hand": {"dtype": "image", "shape": SHAPE, "names": None},
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "action": {"dtype": "float32", "shape": (2,), "names": None},
    "note": {"dtype": "string", "shape": (1,), "names": None},
}
TOP, HAND = "observation.images.top", "observation.images.hand"


def picture(row: int) -> np.ndarray:
    """Eight stripes, dark or bright: the row in binary."""
    bits = row >> np.arange(8) & 1
    return np.broadcast_to(np.repeat(40 + 160 * bits, SHAPE[1] // 8)[None, :, None], SHAPE).astype(np.uint8)


def rows_of(images: np.ndarray) -> list[int]:
    """The rows that (N, H, W, 3) pictures tell."""
    stripes = images.reshape(len(images), SHAPE[0], 8, SHAPE[1] // 8, 3).mean(axis=(1, 3, 4))
    return ((stripes > 120) << np.arange(8)).sum(axis=1).tolist()


def frame(row: int) -> dict[str, object]:
    return {
        TOP: picture(row),
        HAND: picture(row),
        "observation.state": np.array([row, 7], np.float32),
        "action": np.array([row, -row], np.float32),
        "note": f"row {row}",
    }


def record(writer: DatasetWriter, *lengths: int) -> None:
    """Records episodes; rows go on where the data set ends."""
    for length in lengths:
        first = writer.total_frames
        for row in range(first, first + length):
            writer.add_frame(frame(row), f"task {writer.total_episodes % 2}")
        writer.save_episode()


def die_everywhere(base: Path) -> None:
    """Appends an episode to copies of a data set, and dies before and after each file that moves into its place."""
    step, status = 0, 1
    while status:
        copy = base.with_name(f"{base.name}-{step}")
        shutil.copytree(base, copy)
        child = os.fork()
        if not child:
            die_at(step)
            with DatasetWriter.append(copy) as writer:
                record(writer, 3)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        step += 1
    print(step - 1)


def die_at(step: int) -> None:
    """Even steps before, odd ones after the (step // 2)-th file is moved, without a word."""
    real, moved = os.replace, []

    def replace(*arguments: object) -> None:
        if step == 2 * len(moved):
            os._exit(9)
        real(*arguments)
        moved.append(arguments)
        if step == 2 * len(moved) - 1:
            os._exit(9)

    os.replace = replace


def record_forever(folder: Path) -> None:
    with DatasetWriter.create(folder, 10, FEATURES) as writer:
        while True:
            record(writer, 3)
            print(writer.total_episodes, flush=True)


if __name__ == "__main__":
    {"die": die_everywhere, "forever": record_forever}[sys.argv[1]](Path(sys.argv[2]))
