"""Diffusion Policy (Chi et al. 2023): observations in, chunks of actions out."""

import copy
import dataclasses
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from visuomotor.config import FLOW, DiffusionConfig
from visuomotor.errors import CheckpointError, ConfigError, mismatch
from visuomotor.policy.normalization import Normalizer, Statistics
from visuomotor.policy.samplers import SAMPLERS, draws
from visuomotor.policy.schedule import noise_schedule
from visuomotor.policy.transformer import DiffusionTransformer
from visuomotor.policy.unet import ConditionalUnet1d
from visuomotor.policy.vision import RgbEncoder, draw_offsets, load_pretrained, resize_and_crop

Batch = Mapping[str, Tensor]


class DiffusionModel(nn.Module):
    """The trained parts: encoders and denoiser. Everything in and out is normalised."""

    def __init__(self, config: DiffusionConfig, pretrained: bool):
        super().__init__()
        self.config = config
        cameras = config.image_features
        size = sum(f.shape[0] for f in (config.state_feature, config.env_state_feature) if f is not None)
        if cameras:
            separate = config.use_separate_rgb_encoder_per_camera
            encoders = [RgbEncoder(config) for _ in range(len(cameras) if separate else 1)]
            if pretrained and config.pretrained_backbone_weights:
                for encoder in encoders:
                    load_pretrained(encoder.backbone, config.pretrained_backbone_weights)
            self.rgb_encoder = nn.ModuleList(encoders) if separate else encoders[0]
            size += encoders[0].feature_dim * len(cameras)
        action_size = config.output_features["action"].shape[0]
        if config.denoiser == "unet":  # LeRobot's name
            self.unet = ConditionalUnet1d(config, action_size, size * config.n_obs_steps)
        else:
            self.transformer = DiffusionTransformer(config, action_size, size * config.n_obs_steps)

    @property
    def denoiser(self) -> nn.Module:
        """The denoising network: (x (B, Tp, Da), step (B,), global_cond (B, G)) -> (B, Tp, Da)."""
        return self.unet if self.config.denoiser == "unet" else self.transformer

    def global_cond(self, observation: Batch) -> Tensor:
        """What the denoiser is told of the observation: per step state, key points of each camera, environment state.

        Args:
            observation: States (B, To, D); images (B, To, C, h, w), cropped.

        Returns:
            (B, To * numbers a step).
        """
        parts = []
        if self.config.state_feature is not None:
            parts.append(observation["observation.state"])
        if cameras := list(self.config.image_features):
            parts.extend(self._image_features([observation[name] for name in cameras]))
        if self.config.env_state_feature is not None:
            parts.append(observation["observation.environment_state"])
        return torch.cat(parts, dim=-1).flatten(1)

    def _image_features(self, cameras: list[Tensor]) -> list[Tensor]:
        steps = cameras[0].shape[:2]
        if isinstance(self.rgb_encoder, nn.ModuleList):
            features = [
                encoder(_nhwc(images.flatten(0, 1))) for encoder, images in zip(self.rgb_encoder, cameras, strict=True)
            ]
        else:  # one pass over all cameras, in LeRobot's order: batch, step, camera
            stacked = _nhwc(torch.stack(cameras, dim=2).flatten(0, 2))
            features = list(self.rgb_encoder(stacked).unflatten(0, (*steps, len(cameras))).flatten(0, 1).unbind(1))
        return [feature.unflatten(0, steps) for feature in features]


def _nhwc(images: Tensor) -> Tensor:
    """The same (B, C, H, W) with channels last in memory, which convolutions on CPUs and GPUs prefer."""
    return images.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Draws:
    """What is random in the loss of a batch, for each sample apart: a part of the batch takes its part of them."""

    steps: Tensor
    """(K, B) denoising steps of K noisy copies of each sample."""
    noise: Tensor
    """(K, B, Tp, Da)."""
    offsets: dict[str, Tensor]
    """For each camera that is cropped at random, (B, 2) top and left."""

    def part(self, rows: slice) -> "Draws":
        """Those of some samples."""
        offsets = {name: values[rows] for name, values in self.offsets.items()}
        return Draws(self.steps[:, rows], self.noise[:, rows], offsets)


class DiffusionPolicy(nn.Module):
    """Predicts chunks of actions from observations in data units, and acts with a queue.

    Args:
        config: With `input_features` and `output_features` filled.
        statistics: For each feature what its normalisation needs, as `Dataset.statistics` has them.
        pretrained: Whether to fetch `pretrained_backbone_weights`; False if weights are loaded afterwards anyway.

    Raises:
        CheckpointError: A statistic is missing or does not fit.
    """

    def __init__(self, config: DiffusionConfig, statistics: Statistics, pretrained: bool = True):
        super().__init__()
        if "action" not in config.output_features or not config.input_features:
            found = f"{list(config.input_features)} in, {list(config.output_features)} out"
            advice = "fill input_features and output_features, or let `train` do it from the data set"
            raise CheckpointError(mismatch("config", "observations in and `action` out", found, advice))
        self.config = config
        self.statistics = statistics
        self.normalizer = Normalizer(config, statistics)
        self.schedule = noise_schedule(config)
        self.diffusion = DiffusionModel(config, pretrained)
        self.diffusion = self.diffusion.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]
        self.reset()

    @property
    def device(self) -> torch.device:
        """Where the weights are; what comes in may lie elsewhere."""
        return next(self.parameters()).device

    # Training

    def compute_loss(self, batch: Batch, generator: Generator | None = None, noise_draws: int = 1) -> Tensor:
        """The loss with everything random drawn here: `forward` of `draw`."""
        self._check_targets(batch)
        return self(batch, self.draw(len(batch["action"]), generator, noise_draws))

    def draw(self, count: int, generator: Generator | None = None, noise_draws: int = 1) -> Draws:
        """What is random in the loss of `count` samples: steps, noise, and in training crops.

        Args:
            count: B.
            generator: None takes torch's own.
            noise_draws: K noisy copies of each sample's actions; the encoders run once for all of them.
        """
        generator, config = generator or torch.default_generator, self.config
        steps = self.schedule.draw_steps(noise_draws * count, generator).unflatten(0, (noise_draws, count))
        shape = (noise_draws, count, config.horizon, *config.output_features["action"].shape)
        noise = torch.randn(shape, generator=generator)
        offsets = {}
        if self.training and config.crop_is_random:
            drawn = {
                name: draw_offsets((feature.shape[1], feature.shape[2]), count, config, generator)
                for name, feature in config.image_features.items()
            }
            offsets = {name: values for name, values in drawn.items() if values is not None}
        return Draws(steps, noise, offsets)

    def forward(self, batch: Batch, draws: Draws) -> Tensor:
        """Mean squared error of the network's prediction at random noise levels (Chi et al. 2023, equation 5).

        Args:
            batch: Observations (B, To, ...) and `action` (B, Tp, Da) in data units, `action_is_pad` (B, Tp) if padded
                actions are masked.
            draws: Of as many samples.

        Returns:
            A scalar, the mean over everything (masked entries count as 0, as in LeRobot).

        Raises:
            CheckpointError: Something is missing or has another shape than the policy was made for.
        """
        self._check_targets(batch)
        copies = len(draws.steps)
        condition = self.diffusion.global_cond(self._prepare(batch, draws.offsets)).repeat(copies, 1)
        clean = self.normalizer("action", batch["action"].to(self.device)).repeat(copies, 1, 1)
        noise, steps = (values.flatten(0, 1).to(clean.device) for values in (draws.noise, draws.steps))
        return self.denoising_loss(condition, clean, noise, steps, batch)

    def denoising_loss(self, global_cond: Tensor, clean: Tensor, noise: Tensor, steps: Tensor, batch: Batch) -> Tensor:
        """The loss for given noise (B, Tp, Da) and steps (B,); `clean` is normalised."""
        prediction = self.diffusion.denoiser(self.schedule.add_noise(clean, noise, steps), steps, global_cond)
        error = (prediction - self.schedule.target(clean, noise, steps)) ** 2
        if self.config.do_mask_loss_for_padding:
            inside = ~batch["action_is_pad"].to(self.device)  # (B, Tp)
            error = error * inside.repeat(len(error) // len(inside), 1)[..., None]
        return error.mean()

    # Acting

    def reset(self) -> None:
        """Forgets the past: call it when an episode begins."""
        self._observations: dict[str, deque[Tensor]] = {}
        self._actions: deque[Tensor] = deque()

    @torch.no_grad()
    def select_action(self, observation: Batch, noise: Tensor | None = None) -> Tensor:
        """The next action, from a queue that is filled by a new prediction when it is empty.

        Args:
            observation: The present step only: images (B, C, H, W), states (B, D), in data units.
            noise: As for `predict_action_chunk`, used if this call predicts.

        Returns:
            (B, Da) in data units. The first call after `reset` takes its observation for the past steps too.
        """
        for name in self.config.input_features:
            if name not in observation:
                raise self._missing(name, observation)
        for name in self.config.input_features:
            past = self._observations.setdefault(name, deque(maxlen=self.config.n_obs_steps))
            if past and past[-1].shape != observation[name].shape:
                before, now = tuple(past[-1].shape), tuple(observation[name].shape)
                raise CheckpointError(mismatch(name, f"{before} as before", now, "call reset() when an episode begins"))
            past.extend([observation[name]] * (1 if past else self.config.n_obs_steps))
        if not self._actions:
            stacked = {name: torch.stack(list(past), dim=1) for name, past in self._observations.items()}
            self._actions.extend(self.predict_action_chunk(stacked, noise).unbind(1))
        return self._actions.popleft()

    @torch.no_grad()
    def predict_action_chunk(self, observation: Batch, noise: Tensor | None = None) -> Tensor:
        """The actions to execute from now on.

        Args:
            observation: Images uint8 or float in [0, 1], (B, To, C, H, W); states in data units, (B, To, D).
            noise: Where sampling starts, (B, Tp, Da); or (K, B, Tp, Da) with K = `noise_draws()`, which holds the draws
                of the sampler's steps too. What is not given comes from torch's generator.

        Returns:
            (B, Ta, Da) in data units.
        """
        self._check_observations(observation)
        condition = self.diffusion.global_cond(self._prepare(observation, {}))
        actions = self.sample(condition, noise)
        start = self.config.n_obs_steps - 1
        return self.normalizer.inverse("action", actions[:, start : start + self.config.n_action_steps])

    def sample(self, global_cond: Tensor, noise: Tensor | None = None) -> Tensor:
        """Runs the sampler: (B, G) -> all (B, Tp, Da), normalised. `noise` as for `predict_action_chunk`."""
        shape = (len(global_cond), self.config.horizon, self.config.output_features["action"].shape[0])
        given = noise if noise is None or noise.dim() == 4 else noise[None]
        count = 0 if given is None else len(given)
        if given is not None and (given.shape[1:] != shape or count not in (1, self.noise_draws())):
            expected = f"{shape} or {(self.noise_draws(), *shape)}"
            raise CheckpointError(mismatch("noise", expected, tuple(given.shape), "draw it anew for this batch"))
        drawn = torch.randn(self.noise_draws() - count, *shape, device=global_cond.device)
        start = drawn if given is None else torch.cat([given.to(drawn), drawn])

        def predict(x: Tensor, step: float) -> Tensor:
            return self.diffusion.denoiser(x, torch.full((len(x),), step, device=x.device), global_cond)

        return SAMPLERS[self.config.noise_scheduler_type](predict, self.schedule, start, self._steps())

    def noise_draws(self) -> int:
        """K: how many draws of (Tp, Da) one chunk takes with this sampler and number of steps."""
        return draws(self.config.noise_scheduler_type, self._steps())

    def with_sampler(
        self,
        noise_scheduler_type: str | None = None,
        num_inference_steps: int | None = None,
        n_action_steps: int | None = None,
    ) -> "DiffusionPolicy":
        """The same weights acting in another way; None keeps what this policy does.

        Raises:
            ConfigError: A setting is out of range, or the sampler undoes another kind of noise than was trained.
        """
        asked = {
            "noise_scheduler_type": noise_scheduler_type,
            "num_inference_steps": num_inference_steps,
            "n_action_steps": n_action_steps,
        }
        flow = self.config.noise_scheduler_type == FLOW
        if noise_scheduler_type in SAMPLERS and (noise_scheduler_type == FLOW) != flow:
            expected = FLOW if flow else "DDPM or DDIM"
            advice = "rectified flow and diffusion are trained differently: train another policy for it"
            raise ConfigError(mismatch("noise_scheduler_type", expected, noise_scheduler_type, advice))
        config = dataclasses.replace(self.config, **{name: value for name, value in asked.items() if value is not None})
        other = copy.copy(self)  # shallow: modules are shared
        other.config = config
        other.reset()
        return other

    def _steps(self) -> int:
        return self.config.num_inference_steps or self.config.num_train_timesteps

    def _prepare(self, observation: Batch, offsets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Crops and normalises what the network sees, on the network's device."""
        prepared = {}
        for name, feature in self.config.input_features.items():
            values = observation[name].to(self.device)
            if feature.type == "VISUAL":
                values = resize_and_crop(values, self.config, offsets.get(name))
            prepared[name] = self.normalizer(name, values)
        return prepared

    def _check_observations(self, observation: Batch) -> None:
        size = None
        for name, feature in self.config.input_features.items():
            if name not in observation:
                raise self._missing(name, observation)
            shape = tuple(observation[name].shape)
            expected = (shape[0] if size is None and shape else size, self.config.n_obs_steps, *feature.shape)
            resized = (*expected[:3], *(self.config.resize_shape or ()))  # as the frame store gives images in training
            if shape != expected and not (feature.type == "VISUAL" and shape == resized):
                wanted = f"({'B' if size is None else size}, {', '.join(map(str, expected[1:]))})"
                moved = len(shape) == 5 and shape[-1] == feature.shape[0]
                advice = "move the channels first" if moved else "give To steps of the trained shape"
                raise CheckpointError(mismatch(name, wanted, shape, advice))
            size = shape[0]

    def _check_targets(self, batch: Batch) -> None:
        self._check_observations(batch)
        size = len(batch[next(iter(self.config.input_features))])
        expected = {"action": (size, self.config.horizon, *self.config.output_features["action"].shape)}
        if self.config.do_mask_loss_for_padding:
            expected["action_is_pad"] = expected["action"][:2]
        for name, shape in expected.items():
            found = tuple(batch[name].shape) if name in batch else sorted(batch)
            if found != shape:
                advice = "give Tp of them for each sample, the first for the oldest observed step"
                raise CheckpointError(mismatch(name, shape, found, advice))

    def _missing(self, name: str, observation: Batch) -> CheckpointError:
        found = sorted(observation)
        return CheckpointError(mismatch(name, "an observation of that name", found, "rename it or add it"))
