"""The policies that a studio was given, opened when they are first asked for."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from visuomotor.config import FLOW, DiffusionConfig
from visuomotor.errors import CheckpointError, VisuomotorError, mismatch
from visuomotor.policy.checkpoint import EXPORT, find_policy, load_policy, read_config
from visuomotor.policy.device import choose_device
from visuomotor.policy.diffusion import DiffusionModel, DiffusionPolicy

SHIPPED = (
    *("pusht-keypoints-small", "pusht-image-small", "pusht-keypoints-aligned"),
    *("pusht-keypoints-improved", "pusht-keypoints-improved-2", "pusht-image-improved"),
)


class Policies:
    """Policies by name.

    Attributes:
        names: Their names, the first one's first.
        device: Where they run.
        lock: Held while a policy plans: what the network finds on its way is read off it, one plan at a time.

    Args:
        sources: Each as for `load_policy`; those that ship with Visuomotor follow.
        device: `cpu`, `cuda`, `mps`, or `auto`.

    Raises:
        CheckpointError: One is nowhere to be found.
    """

    def __init__(self, sources: Sequence[str] = (), device: str = "auto"):
        for source in sources:
            find_policy(source)  # a name that is misspelt is told before a page opens
        self.device = choose_device(device)
        self._sources = {_name(source): source for source in dict.fromkeys([*sources, *SHIPPED])}
        self._opened: dict[str, DiffusionPolicy] = {}
        self._networks: dict[str, Any] = {}
        self.names = list(self._sources)
        self.lock = Lock()

    def open(self, name: str) -> DiffusionPolicy:
        """The policy of a name, the first one's of an empty name.

        Raises:
            CheckpointError: It cannot be loaded, or there is none of that name.
        """
        name = name or self.names[0]
        if name not in self._sources:
            advice = "start the studio with --policy"
            raise CheckpointError(mismatch("policy", f"one of {self.names}", repr(name), advice))
        with self.lock:
            if name not in self._opened:
                self._opened[name] = load_policy(self._sources[name], device=self.device)
            return self._opened[name]

    def add(self, source: str) -> None:
        """Takes in a policy's or a run's folder; one that is there already is opened anew when it is next asked for."""
        name = _name(source)
        with self.lock:
            self._sources[name] = source
            self._opened.pop(name, None)
            self.names = list(self._sources)

    def source(self, name: str) -> str:
        """What `load_policy` takes for a name."""
        return self._sources[name]

    def prediction_type(self, name: str) -> str:
        """What the policy of a name was trained to predict.

        Raises:
            CheckpointError: It is damaged.
        """
        return read_config(find_policy(self._sources[name])).prediction_type

    def like(self, config: DiffusionConfig) -> list[str]:
        """Names of those whose weights a policy of this config can begin with."""
        wanted, found = _network(config), []
        for name in self.names:
            if name not in self._networks:
                self._networks[name] = self._network_of(name)
            if self._networks[name] == wanted:
                found.append(name)
        return found

    def _network_of(self, name: str) -> Any:
        try:
            folder = find_policy(self._sources[name])
            return None if (folder / EXPORT).is_file() else _network(read_config(folder))
        except VisuomotorError:
            return None  # it is damaged, which `open` tells whoever wants to watch it


def _network(config: DiffusionConfig) -> Any:
    """What has to be the same: the shapes of all weights, and diffusion or flow."""
    with torch.device("meta"):
        model = DiffusionModel(config, pretrained=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return shapes, config.noise_scheduler_type == FLOW


def _name(source: str) -> str:
    """What a policy is called on the page: all of its path, since runs are often called alike."""
    return str(Path(source)) if Path(source).is_dir() else source
