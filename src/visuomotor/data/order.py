"""The order in which windows are seen: shuffled anew each epoch, and a pure function of seed and step."""

import numpy as np


class WindowOrder:
    """Batches of rows from an endless stream of permutations.

    Step k gets the rows k * batch_size to (k + 1) * batch_size of the stream, so that a run resumed at step k goes on
    where it would have been; an epoch's last rows share a batch with the next one's first.

    Args:
        rows: (A,) where windows may start, `Dataset.anchors`.
        batch_size: Windows a step.
        seed: Decides all permutations.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int):
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self._epochs: dict[int, np.ndarray] = {}

    def batch(self, step: int) -> np.ndarray:
        """The (batch_size,) rows of one step."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(places, len(self.rows))
        drawn = [self._permutation(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(drawn)

    def _permutation(self, epoch: int) -> np.ndarray:
        drawn = self._epochs.get(epoch)
        if drawn is None:
            drawn = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
            # Replaced whole, not changed: another thread may be asking for another step.
            before = {known: order for known, order in self._epochs.items() if known == epoch - 1}
            self._epochs = before | {epoch: drawn}
        return drawn
