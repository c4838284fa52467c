"""All that is random in the loss of a batch, and the frames that its windows have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from visuomotor.config import DiffusionConfig


@dataclass(frozen=True)
class Shared:
    """Which frames of a batch its windows have in common: each is encoded once.

    Windows that have one in common have the same crop and reflection.
    """

    first: Tensor
    """(F,) where each frame occurs first, counted through the (B, To) frames of the batch."""
    index: Tensor
    """(B, To) which of the F frames each one is."""

    def frames_once(self, batch: Mapping[str, Tensor], config: DiffusionConfig) -> dict[str, Tensor]:
        """The observations, of images (B, To, C, H, W) the different ones as (F, 1, C, H, W)."""
        once = {name: batch[name] for name in config.input_features}
        for name in config.image_features:
            pixels = batch[name].movedim(-3, -1).flatten(0, 1)  # channels are last in memory
            once[name] = pixels[self.first.to(pixels.device)].movedim(-1, -3)[:, None]
        return once

    def of_frames(self, offsets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Offsets of samples (B, 2) as those of the different frames, (F, 2)."""
        return {name: values[self.first // self.index.shape[1]] for name, values in offsets.items()}


@dataclass(frozen=True)
class Draws:
    """What is random in the loss of a batch, for each sample apart: a part of the batch takes its part of them."""

    steps: Tensor
    """(K, B) denoising steps of K noisy copies of each sample."""
    noise: Tensor
    """(K, B, Tp, Da)."""
    offsets: dict[str, Tensor]
    """For each camera that is cropped at random, (B, 2) top and left."""
    shared: Shared | None = None
    """Frames that samples have in common; None encodes those of each sample."""

    def following(self, leaders: Tensor) -> "Draws":
        """Where each sample's images are cropped as those of another one, (B,)."""
        return replace(self, offsets={name: values[leaders] for name, values in self.offsets.items()})

    def part(self, rows: slice, shared: Shared | None = None) -> "Draws":
        """Those of some samples, and what these share."""
        offsets = {name: values[rows] for name, values in self.offsets.items()}
        return Draws(self.steps[:, rows], self.noise[:, rows], offsets, shared)
