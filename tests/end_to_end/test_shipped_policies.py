"""The policies that ship are the golden checkpoints: every later version must load them and act as this one did."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.cli import main
from visuomotor.policy.checkpoint import ASSETS, load_policy
from visuomotor.policy.lerobot_export import save_lerobot
from visuomotor.simulation.pusht import observe
from visuomotor.simulation.rollout import rollout

NAMES = [
    *("pusht-image-improved", "pusht-image-small"),
    *("pusht-keypoints-aligned", "pusht-keypoints-improved", "pusht-keypoints-improved-2", "pusht-keypoints-small"),
]
STATES = np.array([[[222.0, 97.0, 222.0, 381.0, 3.0], [230.0, 110.0, 222.0, 381.0, 3.0]]])  # (1, To, 5)


def plan(name: str) -> torch.Tensor:
    """The chunk (Ta, 2) for one observation and one noise."""
    policy = load_policy(name)
    observation = observe(STATES[:, -policy.config.n_obs_steps :], policy.config.input_features)
    noise = np.random.default_rng(0).standard_normal((1, policy.config.horizon, 2), dtype=np.float32)
    given = {key: torch.from_numpy(values) for key, values in observation.items()}
    return policy.predict_action_chunk(given, torch.from_numpy(noise))[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_is_the_one_it_always_was(name: str) -> None:
    golden = json.loads((Path(__file__).parent / "golden_plans.json").read_text())
    torch.testing.assert_close(plan(name), torch.tensor(golden[name]), rtol=0, atol=0.05)  # pixels of 512


def test_these_are_all_that_ship() -> None:
    assert sorted(path.parent.name for path in ASSETS.glob("*/model.safetensors")) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_policy_pushes_the_block_onto_its_target(name: str) -> None:
    episodes = rollout(load_policy(name), range(200_000, 200_012), policy_batch=12)
    assert np.mean([episode.max_reward for episode in episodes]) > 0.9
    assert any(episode.success for episode in episodes)


if __name__ == "__main__":  # remakes golden_plans.json, when a shipped policy is replaced
    plans = {name: plan(name).tolist() for name in NAMES}
    (Path(__file__).parent / "golden_plans.json").write_text(json.dumps(plans, indent=1) + "\n")


def test_a_policy_in_lerobots_format_is_evaluated_by_the_same_command(tmp_path: Path) -> None:
    """And does what it did: LeRobot's folder has the same float32 weights and statistics."""
    save_lerobot(load_policy("pusht-keypoints-small").with_sampler("DDIM"), tmp_path / "lerobot")
    episodes = []
    for number, source in enumerate(("pusht-keypoints-small", str(tmp_path / "lerobot"))):
        output = tmp_path / f"evaluation{number}"
        flags = ["--episodes", "2", "--seed", "500000", "--max-steps", "16", "--videos", "0", "--output", str(output)]
        assert main(["eval", source, *flags, "--noise-scheduler-type", "DDIM"]) == 0
        episodes.append(json.loads((output / "eval.json").read_text())["episodes"])
    assert len(episodes[0]) == 2
    for found, expected in zip(*episodes, strict=True):
        assert found == pytest.approx(expected)
