"""Exported policies behind the methods of any other: the networks run in another engine, all else is as it was."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Generator, Tensor, nn

from visuomotor.config import DiffusionConfig
from visuomotor.errors import CheckpointError, mismatch
from visuomotor.files import HASHES, find_damage
from visuomotor.policy.checkpoint import EXPORT, read_config, read_json, read_statistics
from visuomotor.policy.diffusion import Batch, DiffusionPolicy
from visuomotor.policy.draws import Draws
from visuomotor.policy.network import DiffusionModel
from visuomotor.policy.normalization import Normalizer, Statistics
from visuomotor.policy.schedule import noise_schedule
from visuomotor.policy.standalone import ENGINES, Graphs, as_floats

FORMAT_VERSION = 1


class ExportedPolicy(DiffusionPolicy):
    """Acts as the policy that was exported, in any number of steps and with any sampler; it cannot be trained.

    Args:
        config: Of the policy.
        statistics: Of the policy.
        graphs: Of its folder.
    """

    def __init__(self, config: DiffusionConfig, statistics: Statistics, graphs: Graphs):
        nn.Module.__init__(self)  # the parent's own would make the network
        self.config, self.statistics = config, statistics
        self.normalizer, self.schedule = Normalizer(config, statistics), noise_schedule(config)
        self.diffusion = EngineModel(config, graphs)
        self.reset()

    @property
    def device(self) -> torch.device:
        """Where observations go."""
        return torch.device("cpu")

    def draw(self, count: int, generator: Generator | None = None, noise_draws: int = 1) -> NoReturn:
        """Refuses.

        Raises:
            CheckpointError: Always.
        """
        raise _refusal("training")

    def forward(self, batch: Batch, draws: Draws) -> NoReturn:
        """Refuses, as `draw`."""
        raise _refusal("training")

    def state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses, as `draw`: whoever asks would write or copy a policy without weights."""
        raise _refusal("weights")

    def _prepare(self, observation: Batch, offsets: dict[str, Tensor]) -> dict[str, Tensor]:
        """States normalised; images as they are, of the recorded size: the encoder does the rest."""
        prepared = {}
        for name, values in observation.items():
            feature = self.config.input_features.get(name)
            if feature is None:
                continue
            if feature.type != "VISUAL":
                prepared[name] = self.normalizer(name, values)
            elif tuple(values.shape[2:]) == feature.shape:
                prepared[name] = values
            else:
                expected, found = f"images of {feature.shape}", tuple(values.shape[2:])
                raise CheckpointError(mismatch(name, expected, found, "an exported policy resizes for itself"))
        return prepared


class EngineModel(DiffusionModel):
    """`DiffusionModel` by graphs. Not only its numbers are normalised: its images are as they were recorded."""

    def __init__(self, config: DiffusionConfig, graphs: Graphs):
        nn.Module.__init__(self)
        self.config, self._graphs, self._denoiser = config, graphs, EngineDenoiser(graphs)

    @property
    def denoiser(self) -> Any:
        """The denoising network."""
        return self._denoiser

    def image_features(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Images (B, n, C, H, W), uint8 or floats in [0, 1] -> (B, n, numbers a step)."""
        cameras = [observation[name] for name in self.config.image_features]
        images = [as_floats(values.flatten(0, 1).cpu().numpy()) for values in cameras]
        return torch.from_numpy(self._graphs("encoder", *images)).unflatten(0, cameras[0].shape[:2])


class EngineDenoiser:
    """The denoiser's two methods, by graphs."""

    def __init__(self, graphs: Graphs):
        self._graphs = graphs
        self._of_steps: dict[tuple[float, ...], Tensor] = {}  # weights never change here: once a policy is enough

    def prepare(self, steps: Tensor, global_cond: Tensor) -> Callable[[int], Tensor]:
        """As `ConditionalUnet1d.prepare`."""
        key = tuple(steps.tolist())
        if key not in self._of_steps:
            self._of_steps[key] = torch.from_numpy(self._graphs("steps", steps.float().numpy()))
        of_steps, of_cond = self._of_steps[key], torch.from_numpy(self._graphs("condition", global_cond.numpy()))
        return lambda i: of_steps[i] + of_cond

    def __call__(self, x: Tensor, step: Tensor, global_cond: Tensor, told: Tensor | None = None) -> Tensor:
        """As `ConditionalUnet1d.forward`, for rows that are all at one step.

        Raises:
            CheckpointError: A gradient is asked for.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise _refusal("gradients, as real-time chunking takes them")
        told = self.prepare(step[:1], global_cond)(0) if told is None else told
        return torch.from_numpy(self._graphs("denoiser", x.numpy(), told.numpy()))


def load_exported(folder: Path, device: str = "cpu") -> ExportedPolicy:
    """Opens an exported folder, whose files must be those that were written.

    Args:
        folder: With `export.json`.
        device: `cpu`; exported policies know no other.

    Raises:
        CheckpointError: A file is damaged or missing, the engine is not installed, or `device` is another.
    """
    told = read_json(folder / EXPORT)
    found = (told.get("format_version"), told.get("engine")) if isinstance(told, dict) else told
    engine = next((name for name in ENGINES if found == (FORMAT_VERSION, name)), None)
    if engine is None:
        expected = f"version {FORMAT_VERSION} of {' or '.join(ENGINES)}"
        raise CheckpointError(mismatch(f"{folder / EXPORT}", expected, found, "export the policy again"))
    if device != "cpu":
        raise CheckpointError(mismatch("device", "cpu for an exported policy", device, "leave it out"))
    damage = find_damage(folder) if (folder / HASHES).is_file() else f"no {HASHES}"
    if damage is not None:
        raise CheckpointError(mismatch(str(folder), "the files that were exported", damage, "copy the whole folder"))
    config = read_config(folder)
    graphs = Graphs(folder, engine, torch.get_num_threads())
    try:
        graphs("steps", np.zeros(1, np.float32))
    except ModuleNotFoundError as error:
        expected, advice = f"{engine} to be installed", f"pip install 'visuomotor[{engine}]'"
        raise CheckpointError(mismatch(str(folder), expected, f"no module {error.name}", advice)) from error
    return ExportedPolicy(config, read_statistics(folder / "statistics.json"), graphs).eval()


def _refusal(wanted: str) -> CheckpointError:
    return CheckpointError(mismatch("policy", f"one with {wanted}", "an export", "take the policy that was exported"))
