"""Diffusion Policy (Chi et al. 2023): observations in, chunks of actions out."""

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from visuomotor.config import FLOW, DiffusionConfig
from visuomotor.errors import CheckpointError, ConfigError, mismatch
from visuomotor.policy.draws import Draws
from visuomotor.policy.network import DiffusionModel
from visuomotor.policy.normalization import Normalizer, Statistics
from visuomotor.policy.samplers import SAMPLERS, Predict, denoising_steps, draws, sampler_of
from visuomotor.policy.schedule import noise_schedule
from visuomotor.policy.vision import draw_offsets, resize_and_crop

Batch = Mapping[str, Tensor]
Guide = Callable[[Predict], Predict]


@dataclass(eq=False)
class Frame:
    """One observed step of the episodes that are under way."""

    values: dict[str, Tensor]
    """Each observation, (B, ...) in data units."""
    image_features: Tensor | None = None
    """(B, numbers a step), from the first plan on that needs them."""


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
        return self.denoising_loss(*self.training_inputs(batch, draws), batch)

    def training_inputs(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `forward` works on: `global_cond` (K B, G), clean actions and noise (K B, Tp, Da), steps (K B,)."""
        self._check_targets(batch)
        copies, shared = len(draws.steps), draws.shared
        if shared is None:
            condition = self.diffusion.global_cond(self._prepare(batch, draws.offsets))
        else:
            prepared = self._prepare(shared.frames_once(batch, self.config), shared.of_frames(draws.offsets))
            features = self.diffusion.image_features(prepared)[:, 0] if self.config.image_features else None
            known = None if features is None else features[shared.index.to(features.device)]
            condition = self.diffusion.global_cond(prepared, known)
        clean = self.normalizer("action", batch["action"].to(self.device)).repeat(copies, 1, 1)
        noise, steps = (values.flatten(0, 1).to(clean.device) for values in (draws.noise, draws.steps))
        return condition.repeat(copies, 1), clean, noise, steps

    def denoising_loss(self, global_cond: Tensor, clean: Tensor, noise: Tensor, steps: Tensor, batch: Batch) -> Tensor:
        """The loss for given noise (B, Tp, Da) and steps (B,); `clean` is normalised."""
        prediction = self.diffusion.denoiser(self.schedule.add_noise(clean, noise, steps), steps, global_cond)
        return self.mean_error(prediction, self.schedule.target(clean, noise, steps), batch)

    def mean_error(self, prediction: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of (K * B, Tp, Da), without the padded actions if these are masked."""
        error = (prediction - target) ** 2
        if self.config.do_mask_loss_for_padding:
            inside = ~batch["action_is_pad"].to(self.device)  # (B, Tp)
            error = error * inside.repeat(len(error) // len(inside), 1)[..., None]
        return error.mean()

    # Acting

    def reset(self) -> None:
        """Forgets the past: call it when an episode begins, or weights change."""
        self._frames: deque[Frame] = deque(maxlen=self.config.n_obs_steps)
        self._actions: deque[Tensor] = deque()
        self._rest: Tensor | None = None  # of the last plan, for a warm start

    @torch.no_grad()
    def select_action(self, observation: Batch, noise: Tensor | None = None) -> Tensor:
        """The next action, from a queue that is filled by a new plan when it is empty.

        Args:
            observation: As for `observe`.
            noise: As for `plan`, used if this call plans.

        Returns:
            (B, Da) in data units.
        """
        self.observe(observation)
        if not self._actions:
            plan = self.plan(None, noise, previous=self._rest)
            if self.config.warm_start < 1:
                self._rest = moved_on(plan, self.config.n_action_steps)
            self._actions.extend(self._executed(plan).unbind(1))
        return self._actions.popleft()

    def observe(self, observation: Batch) -> None:
        """Adds a step to what `plan` sees, forgetting the one of To steps ago.

        Args:
            observation: The present step only: images (B, C, H, W), states (B, D), in data units. The first one after
                `reset` stands for the past steps too.
        """
        for name in self.config.input_features:
            if name not in observation:
                raise self._missing(name, observation)
        values = {name: observation[name] for name in self.config.input_features}
        for name, before in self._frames[-1].values.items() if self._frames else ():
            if before.shape != values[name].shape:
                expected, advice = f"{tuple(before.shape)} as before", "call reset() when an episode begins"
                raise CheckpointError(mismatch(name, expected, tuple(values[name].shape), advice))
        steps = self.config.n_obs_steps
        repeated = {n: x[:, None].expand(x.shape[0], steps, *x.shape[1:]) for n, x in values.items()}
        self._check_observations(repeated)
        self._frames.extend([Frame(values)] * (1 if self._frames else steps))

    @torch.no_grad()
    def predict_action_chunk(self, observation: Batch, noise: Tensor | None = None) -> Tensor:
        """The actions to execute from now on, (B, Ta, Da) in data units: a part of `plan`, which has the arguments."""
        return self._executed(self.plan(observation, noise))

    @torch.no_grad()
    def plan(
        self,
        observation: Batch | None,
        noise: Tensor | None = None,
        guide: Guide | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """The actions of the whole horizon, from the oldest observed step on.

        Args:
            observation: Images uint8 or float in [0, 1], (B, To, C, H, W); states in data units, (B, To, D). None takes
                what `observe` was given, whose images are encoded once however many plans see them.
            noise: Where sampling starts, (B, Tp, Da); or (K, B, Tp, Da) with K = `noise_draws()`, which holds the draws
                of the sampler's steps too. What is not given comes from torch's generator.
            guide: Takes the network as a function of x (B, Tp, Da) and step, both as the sampler has them, and gives
                the function that is sampled from instead. `schedule.clean` and `schedule.prediction` turn what it
                predicts into actions and back. It may differentiate the network under `torch.enable_grad()`.
            previous: What an earlier plan says of the same steps, (B, Tp, Da) in data units (`moved_on`): where the
                sampler starts, noised, if `warm_start` is less than 1.

        Returns:
            (B, Tp, Da) in data units; number To - 1 is the action of the present step.

        Raises:
            CheckpointError: Something is missing or has another shape than the policy was made for.
        """
        if observation is None:
            condition = self._observed()
        else:
            self._check_observations(observation)
            condition = self.diffusion.global_cond(self._prepare(observation, {}))
        if previous is not None:
            previous = self.normalizer("action", previous.to(self.device))
        return self.normalizer.inverse("action", self.sample(condition, noise, guide, previous))

    @torch.no_grad()
    def sample(
        self,
        global_cond: Tensor,
        noise: Tensor | None = None,
        guide: Guide | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """Runs the sampler: (B, G) -> all (B, Tp, Da), normalised, as `previous` is here. Else as for `plan`."""
        config = self.config
        shape = (len(global_cond), config.horizon, config.output_features["action"].shape[0])
        given = noise if noise is None or noise.dim() == 4 else noise[None]
        count = 0 if given is None else len(given)
        if given is not None and (given.shape[1:] != shape or count not in (1, self.noise_draws())):
            expected = f"{shape} or {(self.noise_draws(), *shape)}"
            raise CheckpointError(mismatch("noise", expected, tuple(given.shape), "draw it anew for this batch"))
        drawn = torch.randn(self.noise_draws() - count, *shape, device=global_cond.device)
        start = drawn if given is None else torch.cat([given.to(drawn), drawn])
        warm = previous is not None and config.warm_start < 1
        steps = self.denoising_steps(warm)
        if previous is not None and warm:
            if previous.shape != shape:
                advice = "give the earlier plan of the whole horizon, moved on"
                raise CheckpointError(mismatch("previous", shape, tuple(previous.shape), advice))
            alpha, sigma = self.schedule.scales(steps[0])
            start = torch.cat([alpha * previous[None] + sigma * start[:1], start[1:]])
        predict = self._network(global_cond, steps)
        return sampler_of(config)(predict if guide is None else guide(predict), self.schedule, start, steps)

    def denoising_steps(self, warm: bool = False) -> list[float]:
        """The steps at which one chunk asks the network, from noise on; of a warm start the last of them."""
        steps: list[float] = list(self.config.timesteps or ())
        if not steps:
            steps = denoising_steps(self.config.noise_scheduler_type, self.schedule, self._steps())
        if not warm:
            return steps
        most = self.config.warm_start * (self.config.num_train_timesteps - 1) + 1e-6
        return [step for step in steps if step <= most] or steps[-1:]

    def noise_draws(self) -> int:
        """K: how many draws of (Tp, Da) one chunk takes with this sampler and number of steps."""
        return draws(self.config.noise_scheduler_type, self._steps(), self.config.ddim_eta)

    def with_sampler(
        self,
        noise_scheduler_type: str | None = None,
        num_inference_steps: int | None = None,
        n_action_steps: int | None = None,
        ddim_eta: float | None = None,
        warm_start: float | None = None,
    ) -> "DiffusionPolicy":
        """The same weights acting in another way; None keeps what this policy does.

        Raises:
            ConfigError: A setting is out of range, or the sampler undoes another kind of noise than was trained.
        """
        asked = {
            "noise_scheduler_type": noise_scheduler_type,
            "num_inference_steps": num_inference_steps,
            "n_action_steps": n_action_steps,
            "ddim_eta": ddim_eta,
            "warm_start": warm_start,
        }
        flow = self.config.noise_scheduler_type == FLOW
        if noise_scheduler_type in SAMPLERS and (noise_scheduler_type == FLOW) != flow:
            expected = FLOW if flow else ", ".join(name for name in SAMPLERS if name != FLOW)
            advice = "rectified flow and diffusion are trained differently: train another policy for it"
            raise ConfigError(mismatch("noise_scheduler_type", expected, noise_scheduler_type, advice))
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if {"noise_scheduler_type", "num_inference_steps"} & changes.keys():
            changes["timesteps"] = None
        config = dataclasses.replace(self.config, **changes)
        other = copy.copy(self)  # shallow: modules are shared
        other.config = config
        other.reset()
        return other

    def _steps(self) -> int:
        return self.config.num_inference_steps or self.config.num_train_timesteps

    def _network(self, global_cond: Tensor, steps: Sequence[float]) -> Predict:
        """The network for a sampler that takes these steps: what does not depend on x is computed here, once."""
        told = self.diffusion.denoiser.prepare(torch.tensor(steps, device=global_cond.device), global_cond)
        places = {step: i for i, step in enumerate(steps)}

        def predict(x: Tensor, step: float) -> Tensor:
            known = told(places[step]) if step in places else None  # a guide may ask at others
            step_of_each = torch.full((len(x),), step, device=x.device)
            return self.diffusion.denoiser(x, step_of_each, global_cond, told=known)

        return predict

    def _executed(self, plan: Tensor) -> Tensor:
        start = self.config.n_obs_steps - 1
        return plan[:, start : start + self.config.n_action_steps]

    def _observed(self) -> Tensor:
        """`global_cond` of what `observe` was given."""
        if not self._frames:
            raise CheckpointError(mismatch("observation", "one or more", "none", "call observe() first, or give it"))
        frames, features = list(self._frames), None
        cameras = list(self.config.image_features)
        others = [name for name in self.config.input_features if name not in cameras]
        if cameras:
            new = [frame for frame in dict.fromkeys(frames) if frame.image_features is None]
            if new:
                encoded = self.diffusion.image_features(self._prepare(_stack(new, cameras), {}))
                for frame, of_frame in zip(new, encoded.unbind(1), strict=True):
                    frame.image_features = of_frame
            known = [frame.image_features for frame in frames if frame.image_features is not None]
            features = torch.stack(known, dim=1)
        return self.diffusion.global_cond(self._prepare(_stack(frames, others), {}), features)

    def _prepare(self, observation: Batch, offsets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Crops and normalises what the network sees, on the network's device."""
        prepared = {}
        for name, feature in self.config.input_features.items():
            if name not in observation:  # features of its images are known already
                continue
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


def moved_on(plan: Tensor, steps: int) -> Tensor:
    """A plan (B, Tp, Da) as it stands `steps` later; of what it does not reach, its last action is the guess."""
    return torch.cat([plan[:, steps:], plan[:, -1:].expand(-1, steps, -1)], dim=1)


def _stack(frames: Sequence[Frame], names: Sequence[str]) -> dict[str, Tensor]:
    return {name: torch.stack([frame.values[name] for frame in frames], dim=1) for name in names}
