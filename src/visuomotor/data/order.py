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
        together: Neighbouring windows that stay together when they are shuffled, so that they share frames. Where the
            rows are cut into such runs differs from epoch to epoch.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int, together: int = 1):
        self.rows, self.batch_size, self.seed, self.together = rows, batch_size, seed, together
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
            drawn = self._shuffled(np.random.default_rng((self.seed, epoch)))
            # Replaced whole, not changed: another thread may be asking for another step.
            before = {known: order for known, order in self._epochs.items() if known == epoch - 1}
            self._epochs = before | {epoch: drawn}
        return drawn

    def _shuffled(self, random: np.random.Generator) -> np.ndarray:
        if self.together == 1:
            return random.permutation(self.rows)
        rows = np.roll(self.rows, -random.integers(self.together))
        starts = random.permutation(np.arange(0, len(rows), self.together))
        places = (starts[:, None] + np.arange(self.together)).ravel()
        return rows[places[places < len(rows)]]


def run_leaders(rows: np.ndarray) -> np.ndarray:
    """For each of a batch's windows (B,) the first of its run: those that follow one another by one row.

    What is random in an image (crop, reflection) is the leader's, or a frame that windows share would not be the same
    picture.
    """
    begins = np.append(True, np.diff(rows) != 1)
    return np.flatnonzero(begins)[np.cumsum(begins) - 1]


def shared_frames(rows: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the frames within each run of windows that are the same.

    Args:
        rows: (B,) of the windows, in the order of the batch.
        frames: (B, To) the rows of the frames that each one sees.

    Returns:
        What `policy.draws.Shared` holds: where each of F frames occurs first, (F,); and which of them each one is,
        (B, To).
    """
    leaders = run_leaders(rows)
    of_run = np.stack([np.broadcast_to(leaders[:, None], frames.shape), frames], axis=-1).reshape(-1, 2)
    _, first, index = np.unique(of_run, axis=0, return_index=True, return_inverse=True)
    return first, index.reshape(frames.shape)
