"""Episodes as mp4 files that a browser plays."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from visuomotor.simulation.pusht import FPS, SUCCESS_COVERAGE, render_states
from visuomotor.simulation.rollout import Episode

TABLE = 512  # width of the table in its own pixels
STRIP = 40  # height of the caption, above the picture because a browser's buttons lie below
HOLD = FPS  # the last frame stays for a second
INK, PALE, GREEN, AMBER = (40, 44, 52), (225, 228, 233), (34, 139, 84), (217, 119, 6)
Colour = tuple[int, int, int]


def episode_frames(episode: Episode, size: int = 384) -> Iterator[np.ndarray]:
    """Draws an episode: the table, the rest of the planned actions as dots, and a caption with a bar of coverage.

    Args:
        episode: At least one step.
        size: Width; even.

    Yields:
        (size + 40, size, 3) uint8, one after each step, and the last one again for a second.
    """
    pictures = render_states(np.array(episode.states[1:]), size)
    ends = [*episode.chunk_starts[1:], episode.steps]
    frame = np.empty(0)
    for step, picture in enumerate(pictures):
        end = next(end for end in ends if end > step)
        _dots(picture, episode.actions[step:end])
        frame = np.concatenate([_caption(episode, step, size), picture])
        yield frame
    for _ in range(HOLD):
        yield frame


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int = FPS) -> None:
    """Writes (H, W, 3) uint8 frames, H and W even, as H.264 that starts to play before it is read to its end."""
    import av

    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options={"crf": "22", "preset": "veryfast"})
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"  # browsers play no other
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def _dots(picture: np.ndarray, actions: list[np.ndarray]) -> None:
    import cv2

    scale = len(picture) / TABLE
    for action in reversed(actions):
        x, y = (round(float(value) * scale) for value in action)
        cv2.circle(picture, (x, y), round(7 * scale), (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(picture, (x, y), round(5 * scale), AMBER, -1, cv2.LINE_AA)


def _caption(episode: Episode, step: int, size: int) -> np.ndarray:
    import cv2

    coverage = episode.coverages[step]
    solved = coverage > SUCCESS_COVERAGE
    strip = np.full((STRIP, size, 3), 255, np.uint8)
    strip[-6:] = PALE
    strip[-6:, : round(coverage * size)] = GREEN if solved else AMBER
    strip[-6:, round(SUCCESS_COVERAGE * size)] = INK

    def write(text: str, x: int, colour: Colour = INK) -> None:
        cv2.putText(strip, text, (x, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)

    write(f"seed {episode.seed}", 8)
    write(f"step {step + 1}", round(0.4 * size))
    write(f"{coverage:6.1%}" + (" solved" if solved else ""), round(0.66 * size), GREEN if solved else INK)
    return strip
