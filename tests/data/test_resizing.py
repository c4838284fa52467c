"""Stored frames are what the policy would make of the recorded ones, up to rounding."""

import numpy as np
import pytest
import torch

from visuomotor.config import DiffusionConfig
from visuomotor.data.resizing import resize
from visuomotor.policy.vision import resize_and_crop


@pytest.mark.parametrize("shape", [(24, 32), (17, 50), (48, 40), (96, 128)])
def test_resized_frames_are_the_policys_up_to_rounding(shape):
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
    images = torch.from_numpy(frames).movedim(-1, 1)[None]
    config = DiffusionConfig(resize_shape=shape)
    expected = resize_and_crop(images, config)[0].movedim(1, -1).numpy() * 255
    found = resize(frames, shape)
    assert (found.shape, found.dtype) == ((3, *shape, 3), np.uint8)
    assert np.abs(found - expected).max() < 0.501


def test_frames_of_the_size_wanted_are_left_alone():
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
    assert resize(frames, (48, 64)) is frames
    images = torch.from_numpy(frames).movedim(-1, 1)[None]
    seen = resize_and_crop(images, DiffusionConfig(resize_shape=(48, 64), crop_ratio=0.5))
    assert seen.dtype == torch.uint8
    torch.testing.assert_close(seen, images[..., 12:36, 16:48], rtol=0, atol=0)
