"""Made-up episodes with a known outcome."""

import numpy as np

from visuomotor.simulation.rollout import Episode


def made_up(seed: int, steps: int, best: float) -> Episode:
    """The block turns while the agent goes past it; coverage grows to `best` in the last step."""
    angle = np.linspace(0, 1, steps + 1)
    states = np.stack([100 + 300 * angle, 400 - 50 * angle, 256 + 0 * angle, 200 + 60 * angle, angle], axis=1)
    return Episode(
        seed,
        list(states),
        list(states[1:, :2].astype(np.float32)),
        np.linspace(0, best, steps).tolist(),
        list(range(0, steps, 8)),
    )
