"""An arm of seven joints that reaches for a pose, drawn so that two cameras together show every joint and the goal."""

from collections.abc import Iterator

import numpy as np

JOINTS = ["base", "shoulder", "elbow", "forearm", "wrist", "hand", "gripper"]
FRAMES = 60  # of an episode, two seconds
SHAPE = (48, 64, 3)


class SyntheticArm:
    """What docs/robot.md calls `robot`. Demonstrates one episode after the other, then acts for as many frames."""

    def __init__(self, seed: int = 0, running: int = FRAMES):
        self._draw = np.random.default_rng(seed)
        self._path: Iterator[np.ndarray] = iter(())
        self._running = running
        self.received: list[np.ndarray] = []
        self._begin()

    def is_demonstrating(self) -> bool:
        """Whether the episode goes on; False once at its end."""
        self._now, self._next = self._next, next(self._path, None)
        if self._next is None:
            self._begin()
            return False
        return True

    def is_running(self) -> bool:
        return len(self.received) < self._running

    def observe(self) -> dict[str, np.ndarray]:
        return {
            "observation.images.front": draw(self._now[:4], self.goal[:4]),
            "observation.images.wrist": draw(self._now[4:], self.goal[4:]),
            "observation.state": self._now.astype(np.float32),
        }

    def commanded(self) -> np.ndarray:
        return np.asarray(self._next, np.float32)

    def command(self, action: np.ndarray) -> None:
        self.received.append(action)
        self._now = np.asarray(action, np.float64)

    def _begin(self) -> None:
        """From one pose to another, slowly at both ends; the gripper in percent, the others in degrees."""
        start, self.goal = self._draw.uniform(-60, 60, (2, len(JOINTS)))
        start[-1], self.goal[-1] = 100, 5
        share = np.linspace(0, 1, FRAMES + 1)
        eased = share**2 * (3 - 2 * share)
        self._path = iter(start + np.outer(eased, self.goal - start))
        self._now = self._next = next(self._path)


def draw(angles: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: for each joint a bright column as high as its angle, and the goal as a red line."""
    height, width, _ = SHAPE
    image = np.full(SHAPE, 30, np.uint8)
    for place, (angle, wanted) in enumerate(zip(angles, goal, strict=True)):
        left, right = place * width // len(angles) + 2, (place + 1) * width // len(angles) - 2
        top, mark = (int(np.clip((100 - value) / 200 * height, 0, height - 2)) for value in (angle, wanted))
        image[top:, left:right] = 200
        image[mark : mark + 2, left:right] = (230, 20, 20)
    return image
