"""The policies that a studio was given, opened when they are first asked for."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from visuomotor.errors import CheckpointError, mismatch
from visuomotor.policy.checkpoint import find_policy, load_policy
from visuomotor.policy.device import choose_device
from visuomotor.policy.diffusion import DiffusionPolicy

SHIPPED = ("pusht-keypoints-small", "pusht-image-small")


class Policies:
    """Policies by name.

    Attributes:
        names: Their names, the first one's first.
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
        self._device = choose_device(device)
        self._sources = {_name(source): source for source in dict.fromkeys([*sources, *SHIPPED])}
        self._opened: dict[str, DiffusionPolicy] = {}
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
                self._opened[name] = load_policy(self._sources[name], device=self._device)
            return self._opened[name]


def _name(source: str) -> str:
    """What a policy is called on the page: all of its path, since runs are often called alike."""
    return str(Path(source)) if Path(source).is_dir() else source
