"""Push-T, by gym-pusht's own physics: push the grey T onto the green one.

A state is five numbers: agent x, y, block x, y (pixels of a 512 x 512 table, y downward) and the block's angle in
radians. What a policy sees follows from states alone (`observe`), so that episodes are kept as states and drawn later.
"""

import os
import warnings
from types import ModuleType
from typing import Any

import numpy as np

from visuomotor.config import Feature
from visuomotor.data.pusht_geometry import block_keypoints
from visuomotor.errors import ConfigError, mismatch

SUCCESS_COVERAGE = 0.95
"""Share of the goal that the block has to exceed."""
MAX_STEPS = 300
"""Steps after which an episode has failed, 30 seconds."""
FPS = 10
"""Steps a second."""


class PushT:
    """One episode at a time."""

    def __init__(self) -> None:
        self._pusht = _gym_pusht()
        self._environment: Any = self._pusht.PushTEnv(obs_type="state")
        self._environment._get_coverage = self._coverage

    def reset(self, seed: int) -> np.ndarray:
        """Starts the episode that gym-pusht's `reset(seed=seed)` starts.

        Returns:
            The state (5,), float64.
        """
        state, _ = self._environment.reset(seed=seed)
        self._find_goal()
        return state

    def start(self, state: np.ndarray) -> None:
        """Starts an episode from a state (5,), everything at rest."""
        self._environment.reset(seed=0)
        self._find_goal()
        _place(self._environment, state.tolist())

    def _find_goal(self) -> None:
        goal = self._environment.get_goal_pose_body(self._environment.goal_pose)
        self._goal = self._pusht.pymunk_to_shapely(goal, self._environment._block_shapes)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        """Tells the agent for a tenth of a second to go to `action` (2,), in pixels.

        Returns:
            The state (5,) after it, and the share of the goal that the block covers: above `SUCCESS_COVERAGE` the
            task is solved. gym-pusht's reward is `clip(coverage / SUCCESS_COVERAGE, 0, 1)`.
        """
        # As a Vec2d the same sums are done on plain floats, which is faster than on arrays of two.
        target = self._pusht.Vec2d(float(action[0]), float(action[1]))
        state, _, _, _, info = self._environment.step(target)
        return state, float(info["coverage"])

    def _coverage(self) -> float:
        """gym-pusht's, with the T's two parts in a fixed order.

        gym-pusht takes them from a set, in the order of their addresses, so that its last bits differ between runs.
        """
        block = self._pusht.pymunk_to_shapely(self._environment.block, self._environment._block_shapes)
        return self._goal.intersection(block).area / self._goal.area


def observe(states: np.ndarray, features: dict[str, Feature]) -> dict[str, np.ndarray]:
    """What a policy sees in some states.

    Args:
        states: (..., 5).
        features: The observations wanted, by name: `observation.state` (2,), `observation.environment_state` (16,),
            `observation.image` (3, S, S).

    Returns:
        Arrays (..., *shape): float32 in pixels of the table, images uint8.

    Raises:
        ConfigError: Push-T has no such observation, or not in this shape.
    """
    leading, flat = states.shape[:-1], states.reshape(-1, 5)
    observation = {}
    for name, feature in features.items():
        size = feature.shape[-1]
        known = {
            "observation.state": (2,),
            "observation.environment_state": (16,),
            "observation.image": (3, size, size),
        }
        if known.get(name) != feature.shape:
            expected = "one of Push-T's observation.state (2), observation.environment_state (16), observation.image"
            raise ConfigError(mismatch(name, expected, feature.shape, "evaluate a policy trained on Push-T"))
        if name == "observation.state":
            values = flat[:, :2].astype(np.float32)
        elif name == "observation.environment_state":
            values = block_keypoints(flat[:, 2:])
        else:
            values = render_states(flat, size).transpose(0, 3, 1, 2)
        observation[name] = values.reshape(*leading, *feature.shape)
    return observation


def render_states(states: np.ndarray, size: int = 96) -> np.ndarray:
    """Draws states, to the pixel as gym-pusht draws them.

    Args:
        states: (N, 5), any states; no physics is run.
        size: Height and width of a picture.

    Returns:
        (N, size, size, 3) uint8, red first.
    """
    import cv2

    environment = _gym_pusht().PushTEnv(obs_type="state")
    environment.reset(seed=0)
    pictures = np.empty((len(states), size, size, 3), np.uint8)
    for state, picture in zip(np.asarray(states, np.float64).tolist(), pictures, strict=True):
        _place(environment, state)
        # Moves nothing, but finds where agent, block and walls touch: gym-pusht marks that in red.
        environment.space.step(1e-9)
        # The surface's own bytes (blue, green, red, unused): the same picture as gym-pusht's copy, three times faster.
        drawn = np.frombuffer(environment._draw().get_view("0"), np.uint8).reshape(512, 512, 4)
        picture[:] = cv2.resize(drawn, (size, size))[..., 2::-1]
    return pictures


def _place(environment: Any, state: list[float]) -> None:
    """Puts agent and block where a state has them, at rest."""
    agent, block = environment.agent, environment.block
    agent.position, agent.velocity = state[:2], (0, 0)
    block.angle = state[4]  # first: turning is about the centre of mass, and would move the position
    block.position = state[2:4]
    block.velocity, block.angular_velocity = (0, 0), 0


def _gym_pusht() -> ModuleType:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # drawing needs no screen
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pygame's and gym-pusht's use of old interfaces
            import pymunk
            from gym_pusht.envs import pusht
    except ModuleNotFoundError as error:
        advice = "pip install 'visuomotor[pusht]'"
        raise ConfigError(mismatch("Push-T", "gym-pusht to be installed", f"no module {error.name}", advice)) from error
    except ImportError as error:  # opencv-python where libGL or libX11 is missing
        advice = "pip uninstall --yes opencv-python && pip install opencv-python-headless"
        raise ConfigError(mismatch("Push-T", "OpenCV to load", str(error), advice)) from error
    if int(pymunk.version.split(".")[0]) >= 7:
        raise ConfigError(mismatch("pymunk", "a version below 7", pymunk.version, "pip install 'visuomotor[pusht]'"))
    return pusht
