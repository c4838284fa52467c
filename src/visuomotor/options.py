"""Flags of the command's verbs, one frozen dataclass a verb; those of `train` follow from the configs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from visuomotor.config import DiffusionConfig, Feature, FeatureType, NormalizationMode
from visuomotor.recipe import TrainingConfig


@dataclass(frozen=True)
class PolicyOptions(DiffusionConfig):
    """DiffusionConfig as flags. Checked when they become a DiffusionConfig, so that its own words reach the user."""

    input_features: tyro.conf.Suppress[dict[str, Feature]] = field(default_factory=dict)
    output_features: tyro.conf.Suppress[dict[str, Feature]] = field(default_factory=dict)
    normalization_mapping: tyro.conf.Suppress[dict[FeatureType, NormalizationMode]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class TrainingOptions(TrainingConfig):
    """TrainingConfig as flags, checked when they become one."""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class TrainOptions:
    """`visuomotor train`, behind the preset's name."""

    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE")]
    """A LeRobot folder (v2.0 to v3.0), a hub name (lerobot/pusht), a .zarr or .zarr.zip, a recorded .npz, or
    pusht-demonstrations. Several are joined; one that is named twice counts twice."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The run's folder: config.json, metrics.jsonl and checkpoints."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in --output by its own config.json; begin if there is none."""
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    """What shapes the policy's computation; refused on --resume if it changes."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    """How it is trained."""


@dataclass(frozen=True)
class EvalOptions:
    """`visuomotor eval`; the fields are the arguments of `visuomotor.evaluation.evaluate.evaluate`."""

    policy_source: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="POLICY")]
    """A run's folder (its newest checkpoint), a policy's folder, a policy that ships with Visuomotor, or a hub name."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for eval.json, report.html and the videos. An earlier evaluation there is replaced."""
    episodes: int = 500
    """Episodes: 500 give a 95 % interval of about 8 percentage points, 50 of 25."""
    seed: int = 100_000
    """Seed of the first episode; the others follow it."""
    env: Literal["pusht"] = "pusht"
    """The task."""
    server: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """In place of POLICY: act with the policy of `visuomotor serve` there; its token is taken from VISUOMOTOR_TOKEN."""
    noise_scheduler_type: Literal["DDPM", "DDIM", "DPMSolverMultistep"] | None = None
    """The sampler; None takes the policy's own."""
    num_inference_steps: int | None = None
    """Denoising steps; None takes the policy's own."""
    n_action_steps: int | None = None
    """Executed steps of each prediction; None takes the policy's own."""
    ddim_eta: float | None = None
    """Noise that DDIM adds at every step, 0 to 1; None takes the policy's own."""
    warm_start: float | None = None
    """Share of the diffusion's time from which a chunk starts, from the rest of the one before it; 1 starts each from
    noise, None takes the policy's own."""
    max_steps: int = 300
    """Steps after which an episode has failed."""
    videos: int = 3
    """Successes to film, and failures: so many of each."""
    environments: int | None = None
    """Episodes that run at once; None runs all. Changes memory and time, not the result."""
    policy_batch: int = 64
    """Episodes in each call of the policy; another number may change the last bits of an action."""
    device: str = "cpu"
    """Where the policy runs: `cpu`, where published figures are measured, `cuda`, `mps`, or `auto` for the best."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="[ADDRESS]")] = None
    """Spread the episodes over a Ray cluster: HOST:PORT, `local`, or `auto`, which --ray alone means: the one that
    RAY_ADDRESS names or that runs here, else one for this command. POLICY stands before it."""


@dataclass(frozen=True)
class ExportOptions:
    """`visuomotor export`; the fields are the arguments of `visuomotor.deployment.export.export`."""

    policy_source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="POLICY")]
    """A run's folder (its newest checkpoint), a policy's folder, a policy that ships with Visuomotor, or a hub name."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """A new or an empty folder, or that of an earlier export, which is replaced."""
    format: Literal["onnx", "openvino", "torch"] = "onnx"
    """The engine that acts: ONNX Runtime, OpenVINO (fastest on processors), or torch, whose files are programs."""
    int8: tyro.conf.FlagCreatePairsOff[bool] = False
    """For openvino: weights and activations of eight bits, calibrated on real observations and noisy actions."""
    data: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None
    """For --int8: demonstrations to calibrate with, as for `visuomotor train`; None takes those of the run."""
    noise_scheduler_type: Literal["DDPM", "DDIM", "DPMSolverMultistep"] | None = None
    """The sampler of the folder's own act.py; None takes the policy's."""
    num_inference_steps: int | None = None
    """... its denoising steps."""
    n_action_steps: int | None = None
    """... its executed steps of each prediction."""


@dataclass(frozen=True)
class ConvertOptions:
    """`visuomotor convert`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Demonstrations: a LeRobot folder, a hub name, .zarr, .zarr.zip, robomimic .hdf5. For --to lerobot, a policy."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET")]
    """A new or an empty folder. It appears when it is whole."""
    to: Literal["v3.0", "lerobot"] = "v3.0"
    """`v3.0`: a LeRobot data set. `lerobot`: a policy as LeRobot 0.6 loads it."""
    episodes: tuple[int, ...] | None = None
    """Numbers of the episodes to take; None takes all."""
    noise_scheduler_type: Literal["DDPM", "DDIM"] | None = None
    """For --to lerobot: the sampler to write, where the policy acts with one that LeRobot does not know; with the
    policy's number of steps, evenly spaced, without eta and warm start. None keeps the policy's."""
    num_inference_steps: int | None = None
    """For --to lerobot: the number of denoising steps to write. None keeps the policy's."""
    images: tyro.conf.FlagCreatePairsOff[bool] = False
    """Store frames as PNG in parquet, without loss, and not as video."""
    video_codec: Literal["av1", "h264"] | None = None
    """The codec of videos; None copies videos, leaves PNG as it is, and encodes other frames as av1."""
    revision: str | None = None
    """Of a name on the hub, a branch, tag or commit; None takes the newest format that it has."""


@dataclass(frozen=True)
class AlignOptions:
    """`visuomotor align`; the fields are the arguments of `visuomotor.data.pusht_alignment.align`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Push-T with the block's corners: lerobot/pusht_keypoints, the original .zarr or .zarr.zip, a recorded .npz."""
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The .npz file to write, a SOURCE like any other; one that is there is replaced."""
    episodes: tuple[int, ...] | None = None
    """Numbers of the episodes to take; None takes all."""
    revision: str | None = None
    """Of a name on the hub, a branch, tag or commit; None takes the newest format that it has."""


@dataclass(frozen=True)
class InfoOptions:
    """`visuomotor info`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Demonstrations, as for `visuomotor train --data`."""
    episodes: tuple[int, ...] | None = None
    """Numbers of the episodes to look at; None takes all."""
    revision: str | None = None
    """Of a name on the hub, a branch, tag or commit; None takes the newest format that it has."""
    frames: bool = True
    """Look at the cameras' frames as well; they are decoded once, into the frame store."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON, which has every finding, in place of tables."""
    strict: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave with status 1 if something is found."""


@dataclass(frozen=True)
class DemoOptions:
    """`visuomotor demo`."""

    output: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("outputs/demo")
    """Where the run and the report go. A demo that was interrupted there goes on."""
    steps: int | None = None
    """Optimizer steps; None takes the preset's, which last some minutes."""
    episodes: int = 50
    """Episodes of the evaluation."""


@dataclass(frozen=True)
class RecordOptions:
    """`visuomotor record`."""

    policy: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="POLICY")]
    """The policy that demonstrates, as for `visuomotor eval`."""
    output: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The .npz file to write; one that is there is replaced."""
    episodes: int = 300
    """Successful episodes to keep."""
    seed: int = 1_000_000
    """Seed of the first episode; the others follow it. From 1000000 on, far from those of evaluations."""


@dataclass(frozen=True)
class ValidateOptions:
    """`visuomotor validate`; the fields are the arguments of `visuomotor.evaluation.open_loop.validate`."""

    policy_source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="POLICY")]
    """A run's folder (its newest checkpoint), a policy's folder, a policy that ships with Visuomotor, or a hub name."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for validation.json and validation.html."""
    data: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None
    """Demonstrations to compare with, as for `visuomotor train`; None takes the run's own."""
    episodes: tuple[int, ...] | None = None
    """Numbers of the episodes; None takes those that the run has held out (all, if it has none), or all of --data."""
    draws: int = 4
    """Noises that each chunk is predicted from."""
    seed: int = 0
    """Of the noises."""
    plots: int = 3
    """Episodes to draw, the first ones."""
    device: str = "auto"
    """Where the policy runs: `cpu`, `cuda`, `mps`, or `auto` for the best there is."""


@dataclass(frozen=True)
class ServeOptions:
    """`visuomotor serve`; the fields are the arguments of `visuomotor.deployment.serving.serve`."""

    policy_source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="POLICY")]
    """A run's folder (its newest checkpoint), a policy's folder, a policy that ships with Visuomotor, or a hub name."""
    host: str = "127.0.0.1"
    """Where to listen; anything but this machine needs a token. 0.0.0.0 is every network that it is in."""
    port: int = 8765
    """The port for WebSocket, /healthz and /metrics; 0 takes a free one and prints it."""
    token_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Holds the token that clients must send; None takes the environment variable VISUOMOTOR_TOKEN, if it is set."""
    certificate: Annotated[Path | None, tyro.conf.arg(metavar="PEM")] = None
    """For TLS: the server's certificate, and those that lead to its root."""
    key: Annotated[Path | None, tyro.conf.arg(metavar="PEM")] = None
    """For TLS: the certificate's private key, not encrypted."""
    fps: float | None = None
    """Actions a second, told to clients; None takes that of the run's demonstrations, if POLICY is a run's."""
    max_clients: int = 64
    """Clients at the same time."""
    max_batch: int = 64
    """Rows of one call of the network, and of one request."""
    batch_window: float = 0.002
    """Seconds that a request waits for others to share a call; nobody waits when all clients do."""
    max_message_mb: float = 16
    """Size of one message, in units of 2 ** 20 bytes."""
    request_timeout: float = 30.0
    """Seconds until a request that waits is given up, and until a client has taken its reply."""
    idle_timeout: float = 600.0
    """Seconds without a request after which a client is sent away."""
    noise_scheduler_type: Literal["DDPM", "DDIM", "DPMSolverMultistep"] | None = None
    """The sampler; None takes the policy's own."""
    num_inference_steps: int | None = None
    """Denoising steps; None takes the policy's own."""
    n_action_steps: int | None = None
    """Executed steps of each prediction; None takes the policy's own."""
    ddim_eta: float | None = None
    """Noise that DDIM adds at every step, 0 to 1; None takes the policy's own."""
    device: str = "auto"
    """Where the policy runs: `cpu`, `cuda`, `mps`, or `auto` for the best there is."""


@dataclass(frozen=True)
class StudioOptions:
    """`visuomotor studio`; the fields are the arguments of `visuomotor.studio.serving.studio`."""

    policy: Annotated[tuple[str, ...], tyro.conf.arg(metavar="POLICY")] = ()
    """Policies to watch: runs' folders, policies' folders or hub names. Those that ship with Visuomotor follow."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE")] = ()
    """Data sets to look at, as for `visuomotor train`. The bundled demonstrations follow."""
    reports: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER")] = ()
    """Evaluations to compare: folders that `visuomotor eval` wrote, or that hold such; none takes `outputs`, if any."""
    recordings: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "recordings/pusht"
    """The folder of the data set that is recorded into, new or existing; made when the first episode is kept."""
    runs: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("outputs/studio")
    """The folder that the page trains in, a folder for each run; policies trained there before can be watched again."""
    host: str = "127.0.0.1"
    """Where to listen; anything but this machine asks for the token in VISUOMOTOR_TOKEN, or one that is printed."""
    port: int = 8766
    """The page's port; 0 takes a free one and prints it."""
    browser: bool = True
    """Open the page in a browser."""
    device: str = "auto"
    """Where policies run: `cpu`, `cuda`, `mps`, or `auto` for the best there is."""


@dataclass(frozen=True)
class ReportOptions:
    """`visuomotor report`."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run's folder; the run may be under way."""


@dataclass(frozen=True)
class CacheOptions:
    """`visuomotor cache`."""

    action: tyro.conf.Positional[Literal["list", "clear"]]
    """`list`: each camera's stored frames, of what, how large, and when last used. `clear`: delete them all."""


@dataclass(frozen=True)
class ImproveOptions:
    """`visuomotor improve`; the fields are the arguments of `visuomotor.improvement.improve`."""

    policy_source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="POLICY")]
    """The policy to begin with: a run's folder, a policy's folder, one that ships with Visuomotor, or a hub name."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE")]
    """The demonstrations that it was trained on, as for `visuomotor train`; several are joined."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for improvement.json and the rounds."""
    rounds: int = 4
    """Rounds in all: roll out, keep the quick successes, train on them and on the demonstrations."""
    episodes_per_round: int = 400
    """Initial states a round, from seeds that no other round has."""
    attempts: int = 3
    """Episodes from each of them, with other noise; the shortest success counts."""
    keep: float = 0.8
    """Share of the solved initial states whose episode is kept, the shortest first."""
    from_scratch: tyro.conf.FlagCreatePairsOff[bool] = False
    """Train each round's policy from random weights, and not from those of the round before."""
    steps: int | None = None
    """Optimizer steps a round; None takes 4000, and from scratch the recipe's."""
    optimizer_lr: float | None = None
    """Highest learning rate; None takes 3e-4, and from scratch the recipe's."""
    preset_name: Annotated[str | None, tyro.conf.arg(name="preset")] = None
    """Preset whose batch size, augmentation and so on are taken; None takes those of the policy's own run, or of the
    preset with its name."""
    seed: int = 2_000_000
    """First seed of round 1; each round begins 100000 further on. From 1000000 on, far from those of evaluations."""
    evaluation_episodes: int = 200
    """Episodes of each round's policy from seed 500000 on, for comparisons; 0 leaves them out."""
    max_steps: int = 300
    """Steps after which an episode has failed."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with what --output holds; begin if it holds nothing."""
    threads: int = 0
    """Threads of torch on the processor; 0 leaves torch's choice. Results are equal for an equal number only."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="[ADDRESS]")] = None
    """Spread the rollouts over a Ray cluster, as `visuomotor eval --ray` does."""


@dataclass(frozen=True)
class DistillOptions:
    """`visuomotor distill`; the fields are the arguments of `visuomotor.distillation.distill`."""

    policy_source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="POLICY")]
    """The teacher: a run's folder, a policy's folder, one that ships with Visuomotor, or a hub name."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE")]
    """The demonstrations that it was trained on, as for `visuomotor train`; several are joined."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for distillation.json and the stages."""
    inference_steps: int = 2
    """Denoising steps of the last student."""
    halvings: int = 3
    """Students in all, each of half as many steps: 3 go from 16 to 2."""
    steps: int | None = None
    """Optimizer steps of each student; None takes 8000."""
    optimizer_lr: float | None = None
    """Highest learning rate; None takes 3e-4."""
    preset_name: Annotated[str | None, tyro.conf.arg(name="preset")] = None
    """Preset whose batch size, augmentation and so on are taken; None takes those of the policy's own run, or of the
    preset with its name."""
    evaluation_episodes: int = 200
    """Episodes of each student from seed 500000 on, for comparisons; 0 leaves them out."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with what --output holds; begin if it holds nothing."""
    threads: int = 0
    """Threads of torch on the processor; 0 leaves torch's choice. Results are equal for an equal number only."""
    device: str = "auto"
    """Where to train: `cpu`, `cuda`, `mps`, or `auto` for the best there is."""
