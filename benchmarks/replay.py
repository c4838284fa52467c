"""What Push-T's demonstrations do when their actions are replayed: does the block come to lie on the target?

    .venv/bin/python benchmarks/replay.py lerobot/pusht_keypoints
    .venv/bin/python benchmarks/replay.py outputs/aligned.npz

Each episode starts from its first state, at rest, in gym-pusht's own physics; the policy is left out, and so nothing
corrects what the replay loses.
"""

import argparse

import numpy as np

from visuomotor.data.dataset import read
from visuomotor.data.pusht_alignment import recorded
from visuomotor.evaluation.intervals import wilson_interval
from visuomotor.simulation.pusht import SUCCESS_COVERAGE, PushT


def replay(states: np.ndarray, actions: np.ndarray) -> list[float]:
    """The coverage after each action of one episode."""
    environment = PushT()
    environment.start(states[0])
    return [environment.step(action)[1] for action in actions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="Push-T with the block's corners, as for `visuomotor align`")
    demonstrations = read(parser.parse_args().data)
    states, action = recorded(demonstrations)
    starts = np.cumsum(demonstrations.lengths)[:-1]
    coverages = list(map(replay, np.split(states, starts), np.split(action, starts)))
    highest, last = (np.array([pick(one) for one in coverages]) for pick in (max, lambda one: one[-1]))
    solved = int((highest > SUCCESS_COVERAGE).sum())
    low, high = (100 * bound for bound in wilson_interval(solved, len(highest)))
    print(f"solved:           {solved} of {len(highest)} ({low:.1f} to {high:.1f} %)")
    for name, values in (("highest coverage", highest), ("last coverage", last)):
        print(f"{name + ':':17} mean {values.mean():.3f}, from {values.min():.3f} to {values.max():.3f}")


if __name__ == "__main__":
    main()
