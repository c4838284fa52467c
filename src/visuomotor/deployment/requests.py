"""What clients may ask: every part of a request is checked before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from visuomotor_client.protocol import ProtocolError, array_from
from visuomotor_client.queue import ActionQueue

from visuomotor.config import DiffusionConfig, Feature
from visuomotor.errors import ConfigError, mismatch
from visuomotor.simulation.rollout import chunk_noise

FIELDS = {"reset": {"seed"}, "chunk": {"observation", "noise", "options"}, "action": {"observation"}}
MAX_SEED = 2**63 - 1


@dataclass
class Episode:
    """What the server remembers of a client."""

    seed: int
    """Of the noise."""
    queue: ActionQueue
    """Used by requests for single actions."""
    chunks: int = 0
    """Planned so far with noise drawn here."""

    def noise(self, rows: int, shape: tuple[int, ...]) -> np.ndarray:
        """The next chunk's (K, rows, Tp, Da), float32; row r draws what an episode of seed + r would, as in rollouts.

        Args:
            rows: B.
            shape: (K, Tp, Da).
        """
        drawn = [chunk_noise(self.seed + row, self.chunks, shape) for row in range(rows)]
        self.chunks += 1
        return np.stack(drawn, axis=1)


@dataclass(frozen=True)
class Request:
    """A request that fits the policy."""

    kind: str
    """`reset`, `chunk` or `action`."""
    seed: int | None = None
    observation: dict[str, np.ndarray] = field(default_factory=dict)
    """Of a chunk (B, To, ...), of an action (B, ...); float32, images also uint8."""
    noise: np.ndarray | None = None
    """(K, B, Tp, Da) float32."""

    @property
    def rows(self) -> int:
        """B."""
        return len(next(iter(self.observation.values())))


def read_request(message: Mapping[str, Any], config: DiffusionConfig, noise_draws: int, max_batch: int) -> Request:
    """A client's message, checked against the policy.

    Raises:
        ConfigError: It asks for what there is not, or something is missing or has a wrong shape or dtype.
    """
    kind, number = message.get("type"), message.get("id")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ConfigError(mismatch("type", f"one of {list(FIELDS)}", _shown(kind), "correct it"))
    if type(number) is not int:
        raise ConfigError(mismatch("id", "a whole number", _shown(number), "number your requests"))
    if unknown := sorted(map(str, message.keys() - FIELDS[kind] - {"type", "id"})):
        raise ConfigError(mismatch(kind, f"only {sorted(FIELDS[kind])}", _shown(unknown), "leave the others out"))
    if kind == "reset":
        seed = message.get("seed")
        if seed is not None and (type(seed) is not int or not 0 <= seed <= MAX_SEED):
            raise ConfigError(mismatch("seed", f"0 to {MAX_SEED}, or null", _shown(seed), "choose another"))
        return Request(kind, seed=seed)
    if options := message.get("options", {}):
        raise ConfigError(mismatch("options", "none: this server knows none", _shown(options), "update the server"))
    steps = (config.n_obs_steps,) if kind == "chunk" else ()
    observation = _observation(message.get("observation"), config.input_features, steps, max_batch)
    rows = len(next(iter(observation.values())))
    noise = None
    if message.get("noise") is not None:
        shape = (noise_draws, rows, config.horizon, *config.output_features["action"].shape)
        noise = _array(message["noise"], "noise")
        if noise.shape != shape or noise.dtype != np.float32:
            found = f"{noise.dtype} {noise.shape}"
            raise ConfigError(mismatch("noise", f"float32 (K, B, Tp, Da) = {shape}", found, "draw it for this policy"))
        _check_finite("noise", noise)
    return Request(kind, observation=observation, noise=noise)


def _observation(
    found: Any, features: Mapping[str, Feature], steps: tuple[int, ...], max_batch: int
) -> dict[str, np.ndarray]:
    names = set(found) if isinstance(found, dict) else set()
    if names != features.keys():
        raise ConfigError(
            mismatch("observation", list(features), _shown(sorted(map(str, names))), "send exactly these")
        )
    observation, rows = {}, None
    for name, feature in features.items():
        values = _array(found[name], name)
        rows = rows or (values.shape[0] if values.ndim else 0)
        expected = (rows, *steps, *feature.shape)
        if values.shape != expected:
            wanted = f"(B, {', '.join(map(str, expected[1:]))})" + (f" with B = {rows}" if len(observation) else "")
            moved = feature.type == "VISUAL" and values.shape[-1:] == feature.shape[:1]
            raise ConfigError(
                mismatch(name, wanted, values.shape, "move the channels first" if moved else "correct it")
            )
        if rows > max_batch:
            raise ConfigError(mismatch(name, f"at most {max_batch} rows", rows, "send fewer at once"))
        observation[name] = _converted(name, feature, values)
    return observation


def _converted(name: str, feature: Feature, values: np.ndarray) -> np.ndarray:
    """As the policy takes it: uint8 images as they are, everything else float32."""
    if values.dtype == np.uint8:
        if feature.type == "VISUAL":
            return values
        raise ConfigError(mismatch(name, "float32 or float64", values.dtype, "convert it"))
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        values = values.astype(np.float32)
    _check_finite(name, values)
    if feature.type == "VISUAL" and not (values.min() >= 0 and values.max() <= 1):
        found = f"{values.min():g} to {values.max():g}"
        raise ConfigError(mismatch(name, "uint8, or float in [0, 1]", found, "divide by 255, or send uint8"))
    return values


def _check_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ConfigError(mismatch(name, "finite numbers", "NaN or infinity", "look at what measures it"))


def _array(value: Any, name: str) -> np.ndarray:
    try:
        return array_from(value, name)
    except ProtocolError as error:
        raise ConfigError(str(error)) from error


def _shown(value: Any) -> str:
    """A client's value, cut to a line."""
    return f"{value!r:.200}"
