"""Where curves are shown beside metrics.jsonl: TensorBoard, and Weights & Biases on request."""

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from visuomotor.errors import ConfigError, mismatch
from visuomotor.files import write_bytes
from visuomotor.recipe import Recipe
from visuomotor.serialization import to_json


class TensorBoard:
    """Event files in RUN/tensorboard; what a resumed run takes again is hidden."""

    def __init__(self, run: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a Weights & Biases project, the same one each time the run is resumed; its files go to RUN/wandb.

    Raises:
        ConfigError: The extra is not installed, or the service does not take us.
    """

    def __init__(self, run: Path, project: str, recipe: Recipe):
        wandb = import_wandb()
        name = run / "wandb_run_id"
        if not name.exists():
            write_bytes(name, uuid4().hex[:8].encode())
        try:
            self._run: Any = wandb.init(
                project=project,
                name=run.resolve().name,
                id=name.read_text(),
                resume="allow",
                dir=str(run),
                config=to_json(recipe),
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            advice = "`wandb login`, or set WANDB_MODE=offline"
            found = " ".join(str(error).split())
            raise ConfigError(mismatch("wandb_project", "a project that takes this run", found, advice)) from error
        # A step of our own: the service's must rise, but a resumed run takes some again, and evaluations come late.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Writes what is left."""
        self._run.finish()


def import_wandb() -> ModuleType:
    """The package.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return import_module("wandb")
    except ImportError:
        advice = "pip install 'visuomotor[wandb]', or leave it out"
        raise ConfigError(mismatch("wandb_project", "the package wandb", "none", advice)) from None


def open_boards(run: Path, first_step: int, recipe: Recipe) -> list[TensorBoard | WeightsAndBiases]:
    """TensorBoard if it is installed, Weights & Biases if the recipe names a project."""
    boards: list[TensorBoard | WeightsAndBiases] = []
    if recipe.training.wandb_project is not None:
        boards.append(WeightsAndBiases(run, recipe.training.wandb_project, recipe))
    with suppress(ImportError):  # the extra `tensorboard` is not installed
        boards.append(TensorBoard(run, first_step))
    return boards
