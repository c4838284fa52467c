"""The loss on episodes that are not trained on."""

import numpy as np
import torch

from visuomotor.data.dataset import Dataset
from visuomotor.errors import DatasetError, mismatch
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.recipe import Recipe

MOST = 1024
"""Windows measured, spread evenly over those held out: a measurement takes no longer than some steps."""


def split_windows(dataset: Dataset, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the windows that are trained on, and of those held out, by whole episodes chosen by the seed.

    Raises:
        DatasetError: Nothing would be left to train on.
    """
    anchors, config = dataset.anchors(recipe.policy.drop_n_last_frames), recipe.training
    wanted, episodes = config.validation_episodes, len(dataset.episodes)
    if not wanted:
        return anchors, anchors[:0]
    count = max(1, round(wanted * episodes)) if wanted < 1 else int(wanted)
    key = (config.seed, 0, 1)  # WindowOrder's have two numbers
    chosen = np.random.default_rng(key).permutation(episodes)[:count]
    held_out = np.isin(np.searchsorted(dataset.episode_ends, anchors, side="right"), chosen)
    if held_out.all() or not held_out.any():
        advice = "hold fewer out, or record more"
        expected = f"{count} to hold out and others to train on"
        raise DatasetError(mismatch(f"{dataset.source}: episodes", expected, f"{episodes} in all", advice))
    return anchors[~held_out], anchors[held_out]


@torch.no_grad()
def validation_loss(
    policy: DiffusionPolicy, dataset: Dataset, rows: np.ndarray, steps: dict[str, list[int]], recipe: Recipe
) -> float:
    """The policy's mean loss on windows. Noise and denoising steps come from the seed, the same each time.

    Args:
        policy: In evaluation mode, so that images are cropped in the centre.
        dataset: What the windows are taken from.
        rows: Of `split_windows`.
        steps: As for `Dataset.batch`.
        recipe: For its seed and batch size.
    """
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST)).astype(np.int64)]
    generator = torch.Generator().manual_seed(recipe.training.seed)
    total = torch.zeros((), device=policy.device)
    for first in range(0, len(rows), recipe.training.batch_size):
        chosen = rows[first : first + recipe.training.batch_size]
        total += policy.compute_loss(dataset.batch(chosen, steps), generator) * len(chosen)
    return total.item() / len(rows)
