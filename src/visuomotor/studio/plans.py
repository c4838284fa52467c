"""A policy's plans, and how they came about: the noise at every step, the key points, other plans it might have had."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from visuomotor.config import DiffusionConfig
from visuomotor.errors import CheckpointError, mismatch
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.samplers import Predict
from visuomotor.policy.vision import SpatialSoftmax
from visuomotor.simulation.pusht import observe
from visuomotor.simulation.rollout import chunk_noise


@dataclass(frozen=True)
class View:
    """What the policy saw through one camera."""

    images: np.ndarray
    """(To, H, W, C) uint8."""
    crop: tuple[int, int, int, int]
    """Top, left, height and width of what the network is given of them, after `resize_shape`."""
    size: tuple[int, int]
    """Height and width that the crop is of."""
    key_points: np.ndarray
    """(To, K, 2) x and y in those pixels."""


@dataclass(frozen=True)
class Plans:
    """One plan for each of several episodes; of the first one, how it came about."""

    actions: np.ndarray
    """(B, Tp, 2) float32 in pixels; number To - 1 is the action of the present step."""
    steps: list[float]
    """S denoising steps at which the network was asked, from noise on."""
    noisy: np.ndarray
    """(S + 1, Tp, 2) what the network was given at each, and at last the plan; in pixels."""
    clean: np.ndarray
    """(S, Tp, 2) what the network took it for at each."""
    futures: np.ndarray
    """(F, Tp, 2) other plans from the same observation."""
    views: dict[str, View]
    """By camera."""
    seconds: float
    """That the plan took, without the other ones."""


def make_plans(
    policy: DiffusionPolicy, states: np.ndarray, seeds: list[int], chunks: list[int], futures: int = 0
) -> Plans:
    """Plans as `rollout` makes them, from the same noise.

    Args:
        policy: Its `warm_start` is 1.
        states: (B, To, 5), the last states of each episode.
        seeds: Of each episode.
        chunks: How many plans each has had.
        futures: F, more plans of the first episode.

    Raises:
        ConfigError: The policy observes what Push-T does not have.
        CheckpointError: Its actions are not finite.
    """
    config = policy.config
    observation = observe(states, config.input_features)
    given = {name: torch.from_numpy(values) for name, values in observation.items()}
    shape = (policy.noise_draws(), config.horizon, 2)
    noise = np.stack([chunk_noise(seed, chunk, shape) for seed, chunk in zip(seeds, chunks, strict=True)], axis=1)
    trace: list[tuple[float, Tensor, Tensor]] = []

    def watched(predict: Predict) -> Predict:
        def asked(x: Tensor, step: float) -> Tensor:
            prediction = predict(x, step)
            trace.append((float(step), x[0], policy.schedule.split(prediction[0], x[0], step)[0]))
            return prediction

        return asked

    with _key_points(policy) as found:
        begun = time.perf_counter()
        plan = policy.plan(given, torch.from_numpy(noise), watched)
        actions = plan.float().cpu().numpy()
        seconds = time.perf_counter() - begun
    if not np.isfinite(actions).all():
        raise CheckpointError(mismatch("action", "finite numbers", "NaN or infinity", "train the policy again"))
    noisy = np.concatenate([_in_pixels(policy, [x for _, x, _ in trace]), actions[:1]])
    clean = _in_pixels(policy, [estimate for _, _, estimate in trace])
    others = np.empty((0, config.horizon, 2), np.float32)
    if futures:
        drawn = np.stack([chunk_noise(seeds[0], chunks[0], shape, attempt + 1) for attempt in range(futures)], axis=1)
        repeated = {name: values[:1].expand(futures, *values.shape[1:]) for name, values in given.items()}
        others = policy.plan(repeated, torch.from_numpy(drawn)).float().cpu().numpy()
    views = _views(config, observation, found)
    return Plans(actions, [step for step, _, _ in trace], noisy, clean, others, views, seconds)


def _in_pixels(policy: DiffusionPolicy, actions: list[Tensor]) -> np.ndarray:
    return policy.normalizer.inverse("action", torch.stack(actions)).float().cpu().numpy()


@contextmanager
def _key_points(policy: DiffusionPolicy) -> Generator[list[Tensor]]:
    """What every SpatialSoftmax of the policy gives meanwhile, in the order of the encoders."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], points: Tensor) -> None:
        found.append(points)

    hooks = [m.register_forward_hook(keep) for m in policy.modules() if isinstance(m, SpatialSoftmax)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _views(config: DiffusionConfig, observation: dict[str, np.ndarray], found: list[Tensor]) -> dict[str, View]:
    """The first episode's, by camera."""
    cameras = list(config.image_features)
    views = {}
    for number, name in enumerate(cameras):
        images = observation[name][0].transpose(0, 2, 3, 1)
        size = config.resize_shape or images.shape[1:3]
        height, width = config.crop or size
        top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)  # the centre, as when acting
        if not found:  # an exported policy keeps them to itself
            points = torch.zeros(config.n_obs_steps, 0, 2)
        elif len(found) == len(cameras):  # an encoder each, or one camera
            points = found[number][: config.n_obs_steps]
        else:  # one pass over all: batch, step, camera
            points = found[0].unflatten(0, (-1, config.n_obs_steps, len(cameras)))[0, :, number]
        stride = 2 ** (config.backbone_stages + 1)
        cells = np.array([-(-width // stride), -(-height // stride)])
        # A cell of the map looks at a stretch of the crop around pixel stride * number: -1 is at 0, not at the edge.
        places = (points.float().cpu().numpy() + 1) / 2 * (cells - 1) * stride + 0.5 + (left, top)
        views[name] = View(images, (top, left, height, width), (int(size[0]), int(size[1])), places)
    return views
