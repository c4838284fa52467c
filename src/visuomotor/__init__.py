"""Visuomotor teaches robots from demonstrations with Diffusion Policy (Chi et al. 2023).

    dataset = visuomotor.load_dataset("lerobot/pusht_keypoints")
    visuomotor.train(visuomotor.preset("pusht-keypoints-small"), "lerobot/pusht_keypoints", "out")
    policy = visuomotor.load_policy("out")

Public names are imported when they are first used: `import visuomotor` loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visuomotor.config import DiffusionConfig, Feature
    from visuomotor.data.conversion import convert
    from visuomotor.data.dataset import Dataset, load_dataset
    from visuomotor.data.writer import DatasetWriter
    from visuomotor.deployment.joining import DeadlineMissed, RealtimeConfig
    from visuomotor.deployment.limits import Limits
    from visuomotor.deployment.realtime import RealtimeRunner
    from visuomotor.errors import CheckpointError, ConfigError, DatasetError, LossError, VisuomotorError
    from visuomotor.evaluation.evaluate import evaluate
    from visuomotor.policy.checkpoint import load_policy, save_policy
    from visuomotor.policy.diffusion import DiffusionPolicy
    from visuomotor.presets import preset
    from visuomotor.recipe import Recipe, TrainingConfig
    from visuomotor.training.loop import train

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "Dataset": "data.dataset",
    "DatasetError": "errors",
    "DatasetWriter": "data.writer",
    "DeadlineMissed": "deployment.joining",
    "DiffusionConfig": "config",
    "DiffusionPolicy": "policy.diffusion",
    "Feature": "config",
    "Limits": "deployment.limits",
    "LossError": "errors",
    "RealtimeConfig": "deployment.joining",
    "RealtimeRunner": "deployment.realtime",
    "Recipe": "recipe",
    "TrainingConfig": "recipe",
    "VisuomotorError": "errors",
    "convert": "data.conversion",
    "evaluate": "evaluation.evaluate",
    "load_dataset": "data.dataset",
    "load_policy": "policy.checkpoint",
    "preset": "presets",
    "save_policy": "policy.checkpoint",
    "train": "training.loop",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Dataset",
    "DatasetError",
    "DatasetWriter",
    "DeadlineMissed",
    "DiffusionConfig",
    "DiffusionPolicy",
    "Feature",
    "Limits",
    "LossError",
    "RealtimeConfig",
    "RealtimeRunner",
    "Recipe",
    "TrainingConfig",
    "VisuomotorError",
    "convert",
    "evaluate",
    "load_dataset",
    "load_policy",
    "preset",
    "save_policy",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'visuomotor' has no attribute {name!r}")
    return getattr(import_module(f"visuomotor.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
