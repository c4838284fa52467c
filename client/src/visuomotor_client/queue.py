"""What one episode remembers, on either side of the wire."""

from collections import deque
from collections.abc import Mapping

import numpy as np


class ActionQueue:
    """The last To observations, and the planned actions that are not executed yet; as in `DiffusionPolicy`.

    Args:
        n_obs_steps: To.
    """

    def __init__(self, n_obs_steps: int) -> None:
        self.n_obs_steps = n_obs_steps
        self.clear()

    def clear(self) -> None:
        """Forgets the past: an episode begins."""
        self._past: dict[str, deque[np.ndarray]] = {}
        self.actions: deque[np.ndarray] = deque()
        """(B, Da) each, the next one first."""

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """Takes the present step, (B, ...) by name; the first one after `clear` counts for the past steps too.

        Raises:
            ValueError: It has another shape or dtype than the step before; nothing is taken.
        """
        for name, value in observation.items():
            before = self._past[name][-1] if name in self._past else value
            if (before.shape, before.dtype) != (value.shape, value.dtype):
                expected, found = (f"{array.dtype} {array.shape}" for array in (before, value))
                raise ValueError(f"{name}: expected {expected} as before, got {found}; reset when an episode begins")
        for name, value in observation.items():
            past = self._past.setdefault(name, deque(maxlen=self.n_obs_steps))
            past.extend([value] * (1 if past else self.n_obs_steps))

    def stacked(self) -> dict[str, np.ndarray]:
        """What a prediction needs: (B, To, ...) by name."""
        return {name: np.stack(past, axis=1) for name, past in self._past.items()}
