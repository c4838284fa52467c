r"""A policy acts on an arm through LeRobot's robot classes. Needs LeRobot 0.6 beside Visuomotor.

    python examples/lerobot_robot.py outputs/cups --data recordings/cups --port /dev/ttyACM0 \
        --camera front=0 --camera wrist=1 --device cuda

Keep a hand on the emergency stop, and begin with low speeds. Other robots: replace `connect_so101`.
"""

import argparse

from visuomotor import Limits, RealtimeConfig, RealtimeRunner, load_policy
from visuomotor.deployment.arms import LeRobotArm, LeRobotRobot, motor_names
from visuomotor.deployment.realtime import Clock, RealtimeReport
from visuomotor.policy.diffusion import DiffusionPolicy


def act(
    policy: DiffusionPolicy,
    robot: LeRobotRobot,
    motors: list[str],
    config: RealtimeConfig,
    limits: Limits,
    seconds: float,
    clock: Clock | None = None,
    states: list[str] | None = None,
) -> RealtimeReport:
    """Acts for some seconds with a connected robot whose motors and states are named in the data set's order."""
    arm = LeRobotArm(robot, policy.config, motors, states=states)
    seen = arm.observe()
    # Where the arm is: its first step is then limited too. Only if its states are the motors' positions.
    start = seen["observation.state"] if arm.states == arm.motors else None
    with RealtimeRunner(policy, config, limits, start, clock) as runner:
        runner.prepare(seen)
        for _ in range(round(seconds * config.fps)):
            action = runner.step(arm.observe())
            if action is not None:
                runner.correct(arm.send(action))  # the robot may have limits of its own
            runner.wait()
        return runner.report()


def connect_so101(port: str, cameras: dict[str, int], fps: int) -> LeRobotRobot:
    """An SO-101 with cameras of 640 x 480 by their numbers, in degrees: all as while recording."""
    from lerobot.cameras.opencv import OpenCVCameraConfig
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    seen = {
        name: OpenCVCameraConfig(index_or_path=number, fps=fps, width=640, height=480)
        for name, number in cameras.items()
    }
    robot = SO101Follower(SO101FollowerConfig(port=port, id="follower", cameras=seen))
    robot.connect()
    return robot


def main() -> None:
    """Connects, acts, and says what has happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="as for visuomotor.load_policy")
    parser.add_argument("--data", required=True, help="folder of the demonstrations, for the order of the motors")
    parser.add_argument("--port", required=True)
    parser.add_argument("--camera", action="append", default=[], metavar="NAME=NUMBER")
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--speed", type=float, default=60, help="limit of every motor, in the data's units a second")
    parser.add_argument("--acceleration", type=float, default=300)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    motors, states = motor_names(options.data)
    cameras = {name: int(number) for name, number in (given.split("=") for given in options.camera)}
    policy = load_policy(options.policy, device=options.device)
    limits = Limits(speed=options.speed, acceleration=options.acceleration)
    robot = connect_so101(options.port, cameras, options.fps)
    try:
        config = RealtimeConfig(fps=options.fps)
        print(act(policy, robot, motors, config, limits, options.seconds, states=states or None))
    finally:
        robot.disconnect()


if __name__ == "__main__":
    main()
