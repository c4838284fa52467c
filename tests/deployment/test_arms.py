"""A robot of LeRobot's interface acts: names, order, units, cameras; and the example's whole loop."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from visuomotor.config import DiffusionConfig, Feature
from visuomotor.deployment.arms import LeRobotArm, motor_names
from visuomotor.deployment.joining import RealtimeConfig
from visuomotor.deployment.limits import Limits
from visuomotor.deployment.realtime import VirtualClock
from visuomotor.errors import ConfigError
from visuomotor.policy.diffusion import DiffusionPolicy

MOTORS = ["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"]
CAMERA = "observation.images.front"


class SimulatedRobot:
    """An arm of three motors and a camera, as LeRobot 0.6 has them; no motor goes further than `reach` at once."""

    def __init__(self, reach: float = 1e9) -> None:
        self.reach, self.positions = reach, {"gripper.pos": 50.0, "shoulder_pan.pos": -10.0, "elbow_flex.pos": 90.0}
        self.received: list[dict[str, float]] = []
        self.observation_features = dict.fromkeys(self.positions, float) | {
            "front": (8, 12, 3),
            "front_depth": (8, 12, 1),
        }
        self.action_features = dict.fromkeys(self.positions, float)

    def get_observation(self) -> dict:
        picture = np.zeros((8, 12, 3), np.uint8)
        picture[2, 5] = (10, 20, 30)
        return dict(self.positions) | {"front": picture, "front_depth": np.zeros((8, 12, 1), np.uint16)}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        assert action.keys() == self.action_features.keys()
        assert all(type(value) is float for value in action.values())  # a bus takes no arrays
        self.received.append(action)
        for name, value in action.items():
            self.positions[name] += float(np.clip(value - self.positions[name], -self.reach, self.reach))
        return dict(self.positions)


def config(**changes: object) -> DiffusionConfig:
    inputs = {CAMERA: Feature("VISUAL", (3, 8, 12)), "observation.state": Feature("STATE", (3,))}
    defaults = {"input_features": inputs, "output_features": {"action": Feature("ACTION", (3,))}}
    small = {"down_dims": (16, 32), "diffusion_step_embed_dim": 16, "backbone_width": 16, "backbone_stages": 1}
    acting = {"noise_scheduler_type": "DDIM", "num_inference_steps": 2, "crop_shape": None}
    return DiffusionConfig(**(defaults | small | acting | changes))


def random_policy() -> DiffusionPolicy:
    ranges = {"min": np.full(3, -100.0), "max": np.full(3, 100.0)}
    pictures = {"mean": np.full((3, 1, 1), 0.5), "std": np.full((3, 1, 1), 0.25)}
    return DiffusionPolicy(config(), {CAMERA: pictures, "observation.state": ranges, "action": ranges}).eval()


def example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "lerobot_robot.py"
    spec = importlib.util.spec_from_file_location("lerobot_robot", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_observations_and_actions_are_in_the_data_sets_order():
    robot = SimulatedRobot()
    arm = LeRobotArm(robot, config(), MOTORS)
    seen = arm.observe()
    assert seen.keys() == {CAMERA, "observation.state"}  # depth is none of the policy's
    assert seen["observation.state"].tolist() == [-10, 90, 50] and seen["observation.state"].dtype == np.float32
    assert seen[CAMERA].shape == (3, 8, 12) and seen[CAMERA][:, 2, 5].tolist() == [10, 20, 30]
    assert arm.send(np.array([1, 2, 3], np.float32)).tolist() == [1, 2, 3]
    assert robot.received == [{"shoulder_pan.pos": 1.0, "elbow_flex.pos": 2.0, "gripper.pos": 3.0}]


def test_what_the_robot_really_did_is_told():
    arm = LeRobotArm(SimulatedRobot(reach=5), config(), MOTORS)
    assert arm.send(np.array([0, 0, 52.0])).tolist() == [-5, 85, 52]


def test_cameras_may_have_other_names():
    inputs = {"observation.image": Feature("VISUAL", (3, 8, 12)), "observation.state": Feature("STATE", (3,))}
    given = config(input_features=inputs)
    arm = LeRobotArm(SimulatedRobot(), given, MOTORS, cameras={"observation.image": "front"})
    assert arm.observe()["observation.image"].shape == (3, 8, 12)


@pytest.mark.parametrize(
    ("motors", "changes", "message"),
    [
        (None, {}, r"motors: expected the names of 3 motors in the order of the data set, got None; .*the robot has"),
        (MOTORS[:2], {}, "motors: expected 3 different names"),
        ([MOTORS[0]] * 3, {}, "motors: expected 3 different names"),
        (["main_shoulder_pan", *MOTORS[1:]], {}, "'main_shoulder_pan'; did you mean shoulder_pan.pos?"),
        (["front", *MOTORS[1:]], {}, "motors: expected some of"),
        (
            MOTORS,
            {"input_features": {CAMERA: Feature("VISUAL", (3, 480, 640))}},
            r"observation.images.front: expected a camera 'front' of \(480, 640, 3\), got {'front': \(8, 12, 3\)",
        ),
        (
            MOTORS,
            {"input_features": {"observation.images.wrist": Feature("VISUAL", (3, 8, 12))}},
            "expected a camera 'wrist'",
        ),
        (
            MOTORS,
            {"input_features": {"observation.environment_state": Feature("ENV", (16,))}},
            "observation.environment_state: expected a policy without it",
        ),
    ],
)
def test_a_robot_that_does_not_fit_is_refused(motors, changes, message):
    with pytest.raises(ConfigError, match=message):
        LeRobotArm(SimulatedRobot(), config(**changes), motors)


def test_states_may_be_others_than_motors():
    with pytest.raises(ConfigError, match="states: expected some of"):
        LeRobotArm(SimulatedRobot(), config(), MOTORS, states=["elbow_flex.vel", *MOTORS[1:]])
    arm = LeRobotArm(SimulatedRobot(), config(), MOTORS, states=MOTORS[::-1])
    assert arm.observe()["observation.state"].tolist() == [50, 90, -10]


def test_the_order_is_read_from_the_data_set(tmp_path):
    from visuomotor import DatasetWriter

    shape = {"dtype": "float32", "shape": (3,)}
    features = {"observation.state": shape | {"names": MOTORS[::-1]}, "action": shape | {"names": MOTORS}}
    with DatasetWriter.create(tmp_path / "set", fps=10, features=features) as writer:
        for _ in range(3):
            frame = {"observation.state": np.zeros(3, np.float32), "action": np.zeros(3, np.float32)}
            writer.add_frame(frame, task="wait")
        writer.save_episode()
    assert motor_names(tmp_path / "set") == (MOTORS, MOTORS[::-1])


def test_the_examples_loop_acts_within_its_limits():
    robot = SimulatedRobot()
    start = dict(robot.positions)
    settings = RealtimeConfig(fps=10)
    clock = VirtualClock(lambda number: 0.1)
    limits = Limits(speed=50, acceleration=400)
    report = example().act(random_policy(), robot, MOTORS, settings, limits, 3.0, clock)
    assert report.counts.ticks == 30 and report.counts.waited == 1 and report.counts.missed == 0
    assert len(robot.received) == 29
    moved = np.array([[one[name] for name in MOTORS] for one in [start, start, *robot.received]])
    assert np.abs(np.diff(moved, axis=0)).max() * 10 <= 50 + 1e-6
    assert np.abs(np.diff(moved, 2, axis=0)).max() * 100 <= 400 + 1e-6
    assert np.ptp(moved, axis=0).max() > 1  # it moves


def test_the_examples_loop_reckons_with_the_robots_own_limits():
    robot = SimulatedRobot(reach=0.5)
    example().act(
        random_policy(), robot, MOTORS, RealtimeConfig(fps=10), Limits(speed=50), 2.0, VirtualClock(lambda number: 0.1)
    )
    positions = np.array([-10.0, 90.0, 50.0])
    for one in robot.received:
        wanted = np.array([one[name] for name in MOTORS])
        assert np.abs(wanted - positions).max() <= 5 + 1e-9  # from where it is, not from where it was told to go
        positions += np.clip(wanted - positions, -0.5, 0.5)
