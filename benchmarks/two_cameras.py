"""A LeRobot v3.0 data set like that of an arm: two cameras of 640x480 at 30 frames/s in AV1, seven joints.

    .venv/bin/python benchmarks/two_cameras.py SET
    .venv/bin/python benchmarks/loading.py SET --lerobot .venv-lerobot/bin/python --resize 240 320

The pictures are drawn: a still scene, a moving shape for each joint, and the noise of a camera's sensor, without which
video is decoded faster than a robot's.
"""

import argparse
from itertools import pairwise

import numpy as np

from visuomotor.data.writer import DatasetWriter

JOINTS, FPS, SHAPE, NOISE = 7, 30, (480, 640, 3), 3.0  # grey levels


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="a folder that does not exist")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--frames", type=int, default=300, help="of each episode")
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    cameras = ["observation.images.front", "observation.images.wrist"]
    scenes = {name: scene(draw) for name in cameras}
    noise = [draw.normal(0, NOISE, SHAPE).astype(np.float32) for _ in range(16)]
    features = {name: {"dtype": "video", "shape": SHAPE, "names": None} for name in cameras}
    joints = {"dtype": "float32", "shape": (JOINTS,), "names": None}
    features |= {"observation.state": joints, "action": joints}
    with DatasetWriter.create(options.output, fps=FPS, features=features) as writer:
        for _ in range(options.episodes):
            path = np.cumsum(draw.normal(0, 0.02, (options.frames + 1, JOINTS)), axis=0).astype(np.float32)
            for now, following in pairwise(path):
                frame = {name: picture(scenes[name], now, noise[draw.integers(16)]) for name in cameras}
                writer.add_frame(frame | {"observation.state": now, "action": following}, task="reach")
            writer.save_episode()


def scene(draw: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float32: large patches of colour with soft edges."""
    coarse = draw.uniform(30, 200, (7, 9, 3))
    rows, columns = np.linspace(0, 5.99, SHAPE[0]), np.linspace(0, 7.99, SHAPE[1])
    top, left = rows.astype(int)[:, None], columns.astype(int)[None]
    down, right = (rows % 1)[:, None, None], (columns % 1)[None, :, None]
    upper = coarse[top, left] * (1 - right) + coarse[top, left + 1] * right
    lower = coarse[top + 1, left] * (1 - right) + coarse[top + 1, left + 1] * right
    return (upper * (1 - down) + lower * down).astype(np.float32)


def picture(scene: np.ndarray, angles: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the scene with a block for each joint, as far along as its angle."""
    image = scene + noise
    for joint, angle in enumerate(angles):
        top = 20 + joint * 60
        left = int(280 + 250 * np.sin(angle + joint))
        image[top : top + 40, left : left + 80] = noise[:40, :80] + (40 + 25 * joint, 220 - 25 * joint, 120)
    return image.clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
