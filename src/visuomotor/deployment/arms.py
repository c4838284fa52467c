"""Robots of LeRobot's, as a policy sees and commands them.

LeRobot 0.6 (`lerobot.robots.Robot`): `get_observation()` is one flat dictionary: a float for each motor, such as
"shoulder_pan.pos" (degrees, or -100 to 100, and 0 to 100 for grippers, as the robot is configured), and an array
(H, W, 3) uint8 for each camera by its own name; depth cameras are (H, W, 1). `send_action` takes a dictionary of the
floats of `action_features`, and returns what was really sent. While recording, LeRobot puts the floats into
`observation.state` and `action` in the order in which the robot lists them, keeps that order as the features' `names`,
and calls a camera `observation.images.<its name>`. The units must be those of the recording: nothing here can tell.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from visuomotor.config import DiffusionConfig, nearest
from visuomotor.data.lerobot_meta import dimension_names, read_info
from visuomotor.errors import ConfigError, mismatch

CAMERA = "observation.images."


class LeRobotRobot(Protocol):
    """What is asked of a robot; every `lerobot.robots.Robot` does it."""

    @property
    def observation_features(self) -> Mapping[str, Any]: ...

    @property
    def action_features(self) -> Mapping[str, Any]: ...

    def get_observation(self) -> Mapping[str, Any]: ...

    def send_action(self, action: dict[str, Any]) -> Mapping[str, Any]: ...


class LeRobotArm:
    """A connected robot with the names and shapes of a policy.

    Args:
        robot: Of `lerobot.robots`.
        config: The policy's.
        motors: The data set's `names` of `action`: which of the robot's numbers each of the policy's is, in order. A
            policy does not hold them; `motor_names` reads them.
        states: The same of `observation.state`; None takes `motors`.
        cameras: The robot's name of each camera of the policy; None takes what follows `observation.images.`.

    Raises:
        ConfigError: The robot does not have one of them, or in another shape; or `motors` is not given.
    """

    def __init__(
        self,
        robot: LeRobotRobot,
        config: DiffusionConfig,
        motors: Sequence[str] | None = None,
        *,
        states: Sequence[str] | None = None,
        cameras: Mapping[str, str] | None = None,
    ):
        if config.env_state_feature is not None:
            found, advice = "a policy that observes it", "robots have cameras and motors only: train without it"
            raise ConfigError(mismatch("observation.environment_state", "a policy without it", found, advice))
        self.robot = robot
        self.motors = _known("motors", motors, config.output_features["action"].shape[0], robot.action_features)
        state = config.state_feature
        given = self.motors if states is None else states
        self.states = [] if state is None else _known("states", given, state.shape[0], robot.observation_features)
        self.cameras = {name: (cameras or {}).get(name, name.removeprefix(CAMERA)) for name in config.image_features}
        for name, feature in config.image_features.items():
            channels, *size = feature.shape
            found = robot.observation_features.get(self.cameras[name])
            if not isinstance(found, tuple) or tuple(found) != (*size, channels):
                has = {key: shape for key, shape in robot.observation_features.items() if isinstance(shape, tuple)}
                expected = f"a camera {self.cameras[name]!r} of {(*size, channels)}"
                raise ConfigError(mismatch(name, expected, has, "configure it as in the recording, or give `cameras`"))

    def observe(self) -> dict[str, np.ndarray]:
        """What the robot sees now: `observation.state` (D,) float32, cameras (C, H, W) uint8."""
        seen = self.robot.get_observation()
        observation = {name: np.moveaxis(np.asarray(seen[key]), -1, 0) for name, key in self.cameras.items()}
        if self.states:
            observation["observation.state"] = np.array([seen[key] for key in self.states], np.float32)
        return observation

    def send(self, action: np.ndarray) -> np.ndarray:
        """Commands the motors, (Da,).

        Returns:
            (Da,) what was really sent: a robot may have limits of its own.
        """
        wanted = dict(zip(self.motors, map(float, action), strict=True))
        sent = self.robot.send_action(dict(wanted)) or wanted
        return np.array([sent[key] for key in self.motors], np.float64)


def motor_names(folder: str | Path) -> tuple[list[str], list[str]]:
    """The `names` of `action` and of `observation.state` in a LeRobot data set's folder; empty where it has none.

    Raises:
        DatasetError: There is no such data set, or its meta/info.json is damaged.
    """
    features = read_info(Path(folder))["features"]
    found = [dimension_names(features[name]) if name in features else [] for name in ("action", "observation.state")]
    return found[0], found[1]


def _known(place: str, given: Sequence[str] | None, count: int, features: Mapping[str, Any]) -> list[str]:
    """Names, one for each of the policy's numbers, all of which the robot has."""
    numbers = [name for name, kind in features.items() if not isinstance(kind, tuple)]
    if given is None:
        feature = "action" if place == "motors" else "observation.state"
        advice = f"the policy does not hold them: give the data set's names of {feature}; the robot has {numbers}"
        raise ConfigError(mismatch(place, f"the names of {count} motors in the order of the data set", None, advice))
    if len(given) != count or len(set(given)) != count:
        advice = f"one for each of the policy's numbers; the robot has {numbers}"
        raise ConfigError(mismatch(place, f"{count} different names", list(given), advice))
    for name in given:
        if name not in numbers:
            advice = f"did you mean {nearest(name, numbers)}?" if numbers else "is this a robot?"
            raise ConfigError(mismatch(place, f"some of {numbers}", repr(name), advice))
    return list(given)
