"""Every setting, documented where it stands. Frozen dataclasses: they hold and check values, and do nothing else."""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from visuomotor.errors import ConfigError, mismatch

FeatureType = Literal["STATE", "ENV", "VISUAL", "ACTION"]
NormalizationMode = Literal["MIN_MAX", "MEAN_STD", "IDENTITY"]
FLOW = "FlowMatchEuler"
Config = TypeVar("Config")
_STRICT = {"extra": "forbid"}  # how pydantic reads these classes: an unknown field is an error


@dataclass(frozen=True)
class Feature:
    """One input or output of a policy."""

    __pydantic_config__ = _STRICT

    type: FeatureType
    """What it is; `normalization_mapping` goes by this."""
    shape: tuple[int, ...]
    """Without batch and time: (Do,), (Da,) or (C, H, W)."""


@dataclass(frozen=True)
class DiffusionConfig:
    """What shapes the policy's computation. Names and meanings are those of LeRobot's DiffusionConfig.

    Differs from LeRobot: the defaults are the published Push-T recipe (horizon 16, 8 executed actions, random crop of
    84, GroupNorm, no pretrained weights), and `ENV` is normalised. What is ours alone says "Not in LeRobot".
    """

    __pydantic_config__ = _STRICT

    input_features: dict[str, Feature] = field(default_factory=dict)
    """Observations by name; training fills it from the data set."""
    output_features: dict[str, Feature] = field(default_factory=dict)
    """Exactly one, `action`; training fills it from the data set."""
    n_obs_steps: int = 2
    """Observed steps (To), the present one and those before it."""
    horizon: int = 16
    """Predicted steps (Tp), from To - 1 steps ago. For a U-Net a multiple of 2 ** len(down_dims)."""
    n_action_steps: int = 8
    """Executed steps (Ta) of each prediction. At most horizon - n_obs_steps + 1."""
    normalization_mapping: dict[FeatureType, NormalizationMode] = field(
        default_factory=lambda: {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"}
    )
    """MIN_MAX maps to [-1, 1], MEAN_STD to mean 0 and deviation 1. A type that is not named stays as it is."""
    drop_n_last_frames: int = 7
    """Training windows do not start in the last frames of an episode, so that few actions are padding: with
    horizon - n_obs_steps (14 of the published recipe) none is at the end. At an episode's beginning the first frame
    stands for those before it, as it does when acting."""

    vision_backbone: Literal["resnet18", "resnet34"] = "resnet18"
    """The trunk that turns an image into feature maps."""
    backbone_width: int = 64
    """Channels of the first stage; 64 is the ResNet of the paper. A multiple of 16. Not in LeRobot."""
    backbone_stages: int = 4
    """Residual stages kept, 1 to 4; 4 is the whole ResNet (stride 32), 3 stops at stride 16. Not in LeRobot."""
    resize_shape: tuple[int, int] | None = None
    """(H, W) that images are resized to before the crop."""
    crop_ratio: float = 1.0
    """With `resize_shape`: the crop is this share of it; 1 means no crop."""
    crop_shape: tuple[int, int] | None = (84, 84)
    """(H, W) that images are cropped to; None keeps them whole."""
    crop_is_random: bool = True
    """Random crop in training, each sample at its own offset. Acting always takes the centre."""
    use_group_norm: bool = True
    """GroupNorm (16 channels a group) in the trunk, which an average of weights needs; otherwise BatchNorm."""
    pretrained_backbone_weights: str | None = None
    """A timm model on the hub to take the trunk's weights from: `timm/resnet18.tv_in1k`, or a safetensors file."""
    spatial_softmax_num_keypoints: int = 32
    """Key points that SpatialSoftmax finds in the feature maps, two numbers each."""
    use_separate_rgb_encoder_per_camera: bool = False
    """One encoder a camera instead of one for all."""

    denoiser: Literal["unet", "transformer"] = "unet"
    """The network that denoises: the U-Net of the paper, or a transformer over the actions (DiT). Not in LeRobot."""
    transformer_dim: int = 256
    """Width of the transformer, even. Not in LeRobot."""
    transformer_layers: int = 6
    """Blocks of the transformer, 1 to 100. Not in LeRobot."""
    transformer_heads: int = 4
    """Heads of its attention; divides transformer_dim. Not in LeRobot."""
    down_dims: tuple[int, ...] = (512, 1024, 2048)
    """Channels of each stage of the U-Net; each halves the time axis."""
    kernel_size: int = 5
    """Width of the U-Net's convolutions over time, odd."""
    n_groups: int = 8
    """Groups of the U-Net's GroupNorm; divides every one of down_dims. The last one has 8, as in LeRobot."""
    diffusion_step_embed_dim: int = 128
    """Size of the denoising step's embedding, even."""
    use_film_scale_modulation: bool = True
    """FiLM with scale and bias; otherwise bias only."""
    gradient_checkpointing: bool = False
    """Recompute the denoiser's blocks in the backward pass: less memory, more time, the same result."""

    noise_scheduler_type: Literal["DDPM", "DDIM", "FlowMatchEuler"] = "DDPM"
    """The sampler: DDPM adds noise at every step, DDIM none; both act with the same weights. FlowMatchEuler is
    rectified flow, in training too: noise grows along straight lines, whatever `beta_schedule` is. Not in LeRobot."""
    num_train_timesteps: int = 100
    """Levels of noise in training."""
    beta_schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    """How noise grows over the levels."""
    beta_start: float = 0.0001
    """First beta of the linear schedule."""
    beta_end: float = 0.02
    """Last beta of the linear schedule."""
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """What the network predicts: the noise, the clean actions, or (v_prediction, not in LeRobot) the velocity from
    these to that; rectified flow takes v_prediction or sample."""
    clip_sample: bool = True
    """Clip the estimate of the clean actions at every denoising step."""
    clip_sample_range: float = 1.0
    """To plus and minus this, in normalised units."""
    num_inference_steps: int | None = None
    """Denoising steps when acting, 1 to num_train_timesteps; None takes all of them."""
    do_mask_loss_for_padding: bool = False
    """Leave actions beyond the episode's end out of the loss."""

    def __post_init__(self) -> None:
        _check_choices(self)
        stages, trained = len(self.down_dims), self.num_train_timesteps
        rules = [
            (self.n_obs_steps >= 1, "n_obs_steps", "1 or more", self.n_obs_steps, "observe at least the present"),
            (stages >= 1, "down_dims", "one stage or more", self.down_dims, "name the channels of each stage"),
            (self.horizon >= 1 or self.denoiser == "unet", "horizon", "1 or more", self.horizon, "16 is usual"),
            (
                self.denoiser == "transformer" or (self.horizon > 0 and self.horizon % 2**stages == 0),
                "horizon",
                f"a multiple of {2**stages} = 2 ** {stages} stages of down_dims",
                self.horizon,
                "change horizon, or use fewer stages",
            ),
            (
                1 <= self.n_action_steps <= self.horizon - self.n_obs_steps + 1,
                "n_action_steps",
                f"1 to {self.horizon - self.n_obs_steps + 1} = horizon - n_obs_steps + 1",
                self.n_action_steps,
                "predictions start n_obs_steps - 1 in the past: execute fewer, or predict more (horizon)",
            ),
            (self.drop_n_last_frames >= 0, "drop_n_last_frames", "0 or more", self.drop_n_last_frames, "set it to 0"),
            (self.kernel_size % 2 == 1, "kernel_size", "an odd number", self.kernel_size, "use 3 or 5"),
            (
                stages == 0 or self.down_dims[0] % 8 == 0,
                "down_dims",
                "a multiple of 8 first: the last GroupNorm has 8 groups",
                self.down_dims,
                "use 64, 128 or more",
            ),
            (
                self.n_groups >= 1 and all(d % self.n_groups == 0 for d in self.down_dims),
                "n_groups",
                f"a divisor of every one of down_dims {self.down_dims}",
                self.n_groups,
                "use 8 and multiples of it",
            ),
            (
                self.diffusion_step_embed_dim >= 4 and self.diffusion_step_embed_dim % 2 == 0,
                "diffusion_step_embed_dim",
                "an even number from 4 on",
                self.diffusion_step_embed_dim,
                "use 128",
            ),
            (
                self.transformer_dim >= 4 and self.transformer_dim % 2 == 0,
                "transformer_dim",
                "an even number from 4 on",
                self.transformer_dim,
                "use 256",
            ),
            (1 <= self.transformer_layers <= 100, "transformer_layers", "1 to 100", self.transformer_layers, "use 6"),
            (
                self.transformer_heads >= 1 and self.transformer_dim % self.transformer_heads == 0,
                "transformer_heads",
                f"a divisor of transformer_dim {self.transformer_dim}",
                self.transformer_heads,
                "64 channels a head are usual",
            ),
            (
                self.prediction_type != "epsilon" or self.noise_scheduler_type != FLOW,
                "prediction_type",
                f"v_prediction or sample with {FLOW}",
                self.prediction_type,
                "v_prediction is rectified flow as published",
            ),
            (0 < self.crop_ratio <= 1, "crop_ratio", "a share in (0, 1]", self.crop_ratio, "1 means no crop"),
            (trained >= 2, "num_train_timesteps", "2 or more", trained, "the published recipe has 100"),
            (trained <= 100_000, "num_train_timesteps", "100000 or less", trained, "the published recipe has 100"),
            (
                self.num_inference_steps is None or 1 <= self.num_inference_steps <= trained,
                "num_inference_steps",
                f"1 to num_train_timesteps = {trained}",
                self.num_inference_steps,
                "steps cannot be finer than those trained",
            ),
            (
                0 < self.beta_start <= self.beta_end < 1,
                "beta_start, beta_end",
                "0 < beta_start <= beta_end < 1",
                (self.beta_start, self.beta_end),
                "the usual values are 0.0001 and 0.02",
            ),
            (self.clip_sample_range > 0, "clip_sample_range", "a positive number", self.clip_sample_range, "use 1"),
            (1 <= self.backbone_stages <= 4, "backbone_stages", "1 to 4", self.backbone_stages, "a ResNet has 4"),
            (
                self.backbone_width > 0 and self.backbone_width % 16 == 0,
                "backbone_width",
                "a multiple of 16",
                self.backbone_width,
                "GroupNorm takes 16 channels a group",
            ),
            (
                self.spatial_softmax_num_keypoints >= 1,
                "spatial_softmax_num_keypoints",
                "1 or more",
                self.spatial_softmax_num_keypoints,
                "the published recipe has 32",
            ),
            (
                self.pretrained_backbone_weights is None or (self.backbone_width, self.backbone_stages) == (64, 4),
                "pretrained_backbone_weights",
                "None with a backbone of another width or depth",
                self.pretrained_backbone_weights,
                "keep backbone_width 64 and backbone_stages 4, or train from scratch",
            ),
            (
                self.pretrained_backbone_weights is None or not self.use_group_norm,
                "use_group_norm",
                "False with pretrained_backbone_weights",
                self.use_group_norm,
                "they were trained with BatchNorm: keep it, or train from scratch",
            ),
        ]
        for name, shape in (("resize_shape", self.resize_shape), ("crop_shape", self.crop_shape), ("crop", self.crop)):
            rules.append((shape is None or min(shape) > 0, name, "a positive (H, W)", shape, "or None to leave it out"))
        _check(rules)
        self._check_features()

    def _check_features(self) -> None:
        images = self.image_features
        crop, resize = self.crop, self.resize_shape
        for name, feature in self.input_features.items():
            if not is_observed(name, feature):
                expected = "a camera, observation.state or observation.environment_state"
                advice = "join other numbers to observation.state, or leave them out"
                raise ConfigError(mismatch(name, expected, feature.type, advice))
        for name, feature in (self.input_features | self.output_features).items():
            if min(feature.shape, default=0) < 1 or (feature.type != "VISUAL" and len(feature.shape) != 1):
                expected = "an image (C, H, W)" if feature.type == "VISUAL" else "one size (D,), 1 or more"
                raise ConfigError(mismatch(name, expected, feature.shape, "correct its shape"))
        for name, feature in images.items():
            if len(feature.shape) != 3:
                raise ConfigError(mismatch(name, "an image (C, H, W)", feature.shape, "move the channels first"))
            first = next(iter(images.values())).shape
            if feature.shape[0] != first[0] or (feature.shape != first and resize is None):
                advice = "all cameras share one shape: set resize_shape, or choose the cameras"
                raise ConfigError(mismatch(name, first, feature.shape, advice))
            height, width = resize or feature.shape[1:]
            if crop and (crop[0] > height or crop[1] > width):
                found = f"a crop of {crop} from {name} of {(height, width)}"
                raise ConfigError(mismatch("crop_shape", "a crop that fits the image", found, "crop less"))
        if self.output_features and set(self.output_features) != {"action"}:
            raise ConfigError(mismatch("output_features", "exactly `action`", list(self.output_features), "rename it"))

    @property
    def image_features(self) -> dict[str, Feature]:
        """The cameras, in the order the encoder sees them."""
        return {name: feature for name, feature in self.input_features.items() if feature.type == "VISUAL"}

    @property
    def state_feature(self) -> Feature | None:
        """The robot's own state."""
        return self.input_features.get("observation.state")

    @property
    def env_state_feature(self) -> Feature | None:
        """The state of the world, such as key points of the block."""
        return self.input_features.get("observation.environment_state")

    @property
    def crop(self) -> tuple[int, int] | None:
        """The crop in force: with `resize_shape` it follows from `crop_ratio`, as in LeRobot."""
        if self.resize_shape is None:
            return self.crop_shape
        height, width = self.resize_shape
        return None if self.crop_ratio == 1 else (int(height * self.crop_ratio), int(width * self.crop_ratio))

    @property
    def observation_steps(self) -> list[int]:
        """Offsets of the observed frames: -(To - 1) to 0."""
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_steps(self) -> list[int]:
        """Offsets of the predicted actions: -(To - 1) to Tp - To."""
        return list(range(1 - self.n_obs_steps, 1 - self.n_obs_steps + self.horizon))

    def delta_timestamps(self, fps: float) -> dict[str, list[float]]:
        """What `load_dataset` is asked for so that each item is a training window, in seconds."""
        observed = {name: [step / fps for step in self.observation_steps] for name in self.input_features}
        return observed | {"action": [step / fps for step in self.action_steps]}


@dataclass(frozen=True)
class TrainingConfig:
    """How a policy is trained. Push-T's published recipe where nothing else is said."""

    __pydantic_config__ = _STRICT

    steps: int = 200_000
    """Optimizer steps in all."""
    batch_size: int = 64
    """Windows a step, of all processes together."""
    noise_draws: int = 1
    """Noisy copies of each window's actions a step: the encoder runs once, the U-Net this many times."""
    observations: tuple[str, ...] | None = None
    """What the policy sees, by name; None takes all cameras and the two states."""
    episodes: tuple[int, ...] | None = None
    """Numbers of the episodes to train on; None takes all."""
    tasks: tuple[str, ...] | None = None
    """Names of the tasks to train on, as `visuomotor info` lists them; None takes all. The policy is not told which."""
    augmentation: Literal["none", "pusht-mirror"] = "none"
    """`pusht-mirror`: half of the windows reflected on Push-T's axis of symmetry. Right for Push-T only."""
    optimizer_lr: float = 1e-4
    """Highest learning rate."""
    optimizer_betas: tuple[float, float] = (0.95, 0.999)
    """AdamW's decay of the first and second moment."""
    optimizer_eps: float = 1e-8
    """AdamW's epsilon."""
    optimizer_weight_decay: float = 1e-6
    """AdamW's weight decay."""
    scheduler_name: Literal["cosine", "warmup-stable-decay"] = "cosine"
    """The learning rate after the warm-up: half a cosine to zero at `steps`; or constant until the last
    `scheduler_decay_steps`, so that a run which is extended before these is exactly the longer run."""
    scheduler_warmup_steps: int = 500
    """Steps in which the learning rate rises linearly from zero."""
    scheduler_decay_steps: int | None = None
    """Last steps of warmup-stable-decay, in which the rate falls to zero; None takes a fifth of `steps`."""
    grad_clip_norm: float = 10.0
    """Gradients are scaled down to this norm."""
    ema_power: float = 0.75
    """Average of the weights: decay 1 - (1 + step) ** -ema_power, as in the original code."""
    ema_max_decay: float = 0.9999
    """Highest decay of the average; 0 leaves the average out."""
    seed: int = 0
    """Decides the initial weights, the order of the data, crops, noise, and the episodes held out."""
    nonfinite_loss: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does: ends the run at that step, or leaves the batch out."""
    validation_episodes: float = 0
    """Episodes that are not trained on but measure the loss: a share of all if below 1, else a number."""
    validate_every: int = 1_000
    """Steps between measurements of the averaged policy's loss on the episodes held out."""
    save_every: int = 5_000
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; older ones are deleted."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    evaluate_every: int = 0
    """Steps between evaluations on Push-T in the background, of a copy of the averaged policy; 0 for none."""
    evaluate_episodes: int = 50
    """Episodes of each of them, from seed 500000 on."""
    wandb_project: str | None = None
    """Weights & Biases project to log to as well (extra `wandb`; WANDB_MODE=offline keeps it on this machine)."""
    trunk_precision: Literal["float32", "bfloat16"] = "float32"
    """Of the image trunk's convolutions in training; bfloat16 is faster where the processor or GPU has it. Key points
    and U-Net stay float32: bfloat16 would round a position of 512 pixels to 2 of them."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16: encoder and denoiser compute in bfloat16, their weights and the key points stay float32. For GPUs."""
    gradient_accumulation_steps: int = 1
    """Parts in which a process takes its share of the batch, one after the other: less memory, the same gradient."""
    compile: bool = False
    """Compile the network with torch.compile: needs a C++ compiler, and some minutes at the start."""
    threads: int = 0
    """Threads of torch on the processor; 0 leaves torch's choice. Results are equal for an equal number only."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""

    def __post_init__(self) -> None:
        _check_choices(self)
        rules = [
            (getattr(self, name) >= 1, name, "1 or more", getattr(self, name), "choose a positive number")
            for name in (
                "steps",
                "batch_size",
                "gradient_accumulation_steps",
                "noise_draws",
                "save_every",
                "keep_checkpoints",
                "log_every",
                "validate_every",
                "evaluate_episodes",
            )
        ]
        rules += [
            (self.optimizer_lr > 0, "optimizer_lr", "a positive number", self.optimizer_lr, "1e-4 is the usual one"),
            (self.grad_clip_norm > 0, "grad_clip_norm", "a positive number", self.grad_clip_norm, "10 is the default"),
            (0 <= self.ema_max_decay < 1, "ema_max_decay", "a number in [0, 1)", self.ema_max_decay, "use 0.9999"),
            (
                self.scheduler_warmup_steps >= 0,
                "scheduler_warmup_steps",
                "0 or more",
                self.scheduler_warmup_steps,
                "500 is usual",
            ),
            (
                0 <= (self.scheduler_decay_steps or 0) <= self.steps,
                "scheduler_decay_steps",
                f"0 to steps = {self.steps}",
                self.scheduler_decay_steps,
                "a fifth of the steps is usual",
            ),
            (
                self.validation_episodes >= 0 and (self.validation_episodes < 1 or self.validation_episodes % 1 == 0),
                "validation_episodes",
                "a share below 1 or a whole number",
                self.validation_episodes,
                "0.05 holds out one in twenty",
            ),
            (self.evaluate_every >= 0, "evaluate_every", "0 or more", self.evaluate_every, "0 leaves it out"),
            (
                all(0 <= beta < 1 for beta in self.optimizer_betas),
                "optimizer_betas",
                "two numbers in [0, 1)",
                self.optimizer_betas,
                "the recipe has 0.95 and 0.999",
            ),
            (self.optimizer_eps > 0, "optimizer_eps", "a positive number", self.optimizer_eps, "use 1e-8"),
            (
                self.optimizer_weight_decay >= 0,
                "optimizer_weight_decay",
                "0 or more",
                self.optimizer_weight_decay,
                "the recipe has 1e-6",
            ),
            (self.threads >= 0, "threads", "0 or more", self.threads, "0 leaves torch's choice"),
        ]
        _check(rules)


@dataclass(frozen=True)
class Recipe:
    """A policy and how to train it: what a preset names, and what a run's `config.json` holds."""

    __pydantic_config__ = _STRICT

    policy: DiffusionConfig
    """What is trained."""
    training: TrainingConfig
    """How it is trained."""


def is_observed(name: str, feature: Feature) -> bool:
    """Whether the network takes this observation: a camera, or one of the two states that LeRobot's policy knows."""
    return feature.type == "VISUAL" or name in ("observation.state", "observation.environment_state")


def _check(rules: Sequence[tuple[bool, str, object, object, str]]) -> None:
    for holds, name, expected, found, advice in rules:
        if not holds:
            raise ConfigError(mismatch(name, expected, found, advice))


def _check_choices(config: Any) -> None:
    """A Literal field holds one of its values; a wrong one is answered with the nearest."""
    for spec in dataclasses.fields(config):
        choices = get_args(spec.type)
        value = getattr(config, spec.name)
        named = choices and all(isinstance(choice, str) for choice in choices)
        if named and isinstance(value, str) and value not in choices:
            advice = f"did you mean {nearest(value, choices)}?"
            raise ConfigError(mismatch(spec.name, f"one of {list(choices)}", repr(value), advice))


def nearest(name: str, known: Any) -> str:
    """The known name most like the one given."""
    return max(known, key=lambda candidate: difflib.SequenceMatcher(None, name, candidate).ratio())


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return dataclasses.asdict(config)


def from_json(kind: type[Config], content: Any, name: str) -> Config:
    """A config from plain JSON values, exactly as it was written.

    Args:
        kind: The config's class.
        content: What `json.loads` gave.
        name: The file it came from, for errors.

    Raises:
        ConfigError: A field is unknown (with the nearest known one), missing, of a wrong type, or impossible.
    """
    from pydantic import TypeAdapter, ValidationError  # 0.1 s that `import visuomotor` does not need

    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        problems = error.errors()
        unknown = [problem for problem in problems if problem["type"] == "unexpected_keyword_argument"]
        problem = (unknown or problems)[0]  # a typo also leaves the right field missing: the typo is what to show
        place = f"{name}: {'.'.join(str(part) for part in problem['loc']) or 'the whole'}"
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            raise ConfigError(f"{name}: {cause}") from error
        if unknown:
            known = [spec.name for spec in dataclasses.fields(_innermost(kind, problem["loc"][:-1]))]
            advice = f"did you mean {nearest(str(problem['loc'][-1]), known)}?"
            raise ConfigError(mismatch(place, "a known field", "an unknown one", advice)) from error
        if problem["type"] == "missing":
            raise ConfigError(mismatch(place, "a value", "none", "add the field")) from error
        expected = problem["msg"].removeprefix("Input should be ")
        raise ConfigError(mismatch(place, expected, repr(problem["input"]), "correct the field")) from error


def _innermost(kind: Any, path: tuple[int | str, ...]) -> Any:
    """The dataclass that a path of field names leads to; through a dictionary, that of its values."""
    for part in path:
        if dataclasses.is_dataclass(kind):
            kind = {spec.name: spec.type for spec in dataclasses.fields(kind)}[str(part)]
        else:
            kind = get_args(kind)[-1]
    return kind
