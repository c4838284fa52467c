"""Episodes depend on their own seed only; the policy sees what LeRobot's queue would show it."""

import dataclasses

import numpy as np
import pytest
import torch

from visuomotor.errors import CheckpointError, ConfigError
from visuomotor.simulation import rollout as module
from visuomotor.simulation.pusht import PushT, observe
from visuomotor.simulation.rollout import Episode, chunk_noise, rollout

from .acting import KEYPOINTS, ScriptedPolicy, random_policy

SEEDS = range(100_000, 100_100)


def assert_same(first: list[Episode], second: list[Episode]) -> None:
    assert [episode.seed for episode in first] == [episode.seed for episode in second]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.states, other.states)
        np.testing.assert_array_equal(one.actions, other.actions)
        assert (one.coverages, one.chunk_starts) == (other.coverages, other.chunk_starts)


@pytest.mark.parametrize("environments", [1, 7])
def test_episodes_are_the_same_however_many_run_at_once(environments):
    together = rollout(ScriptedPolicy(), SEEDS, max_steps=16, environments=100)
    assert len({tuple(episode.states[-1]) for episode in together}) == 100  # all differ
    assert_same(rollout(ScriptedPolicy(), SEEDS, max_steps=16, environments=environments), together)


@pytest.mark.parametrize("environments", [1, 7, 100])
def test_initial_states_and_noise_follow_from_the_seed(environments):
    policy = ScriptedPolicy(draws=3)
    rollout(policy, SEEDS, max_steps=16, environments=environments, policy_batch=16)
    first, second = {}, {}
    for observation, noise in policy.calls:
        for row, state in enumerate(observation["observation.state"][:, -1].numpy()):
            drawn = noise[:, row].numpy().tobytes()
            (first if drawn in FIRST_NOISE else second).setdefault(drawn, state.tobytes())
    expected = {chunk_noise(seed, 0, (3, 16, 2)).tobytes(): PushT().reset(seed) for seed in SEEDS}
    assert first == {noise: state[:2].astype(np.float32).tobytes() for noise, state in expected.items()}
    assert second.keys() == {chunk_noise(seed, 1, (3, 16, 2)).tobytes() for seed in SEEDS}


FIRST_NOISE = {chunk_noise(seed, 0, (3, 16, 2)).tobytes() for seed in SEEDS}


def test_the_order_of_seeds_does_not_matter():
    seeds = list(SEEDS[:9])
    backward = rollout(ScriptedPolicy(), seeds[::-1], max_steps=16, environments=4)
    assert_same(backward[::-1], rollout(ScriptedPolicy(), seeds, max_steps=16))


def test_outcomes_of_a_network_do_not_flip():
    """The shape of the batch never changes; what is left is rounding that depends on the row, if anything."""
    policy = random_policy()
    runs = [rollout(policy, SEEDS, max_steps=40, environments=at_once, policy_batch=8) for at_once in (100, 7)]
    flips = [one.seed for one, other in zip(*runs, strict=True) if one.success != other.success]
    drift = max(np.abs(np.subtract(one.states, other.states)).max() for one, other in zip(*runs, strict=True))
    print(f"{len(flips)} of 100 episodes flipped, largest difference of a state {drift:.1e}")
    assert not flips
    assert drift < 1e-3


def test_noise_is_gaussian_and_its_own_for_every_chunk():
    noise = np.stack([chunk_noise(seed, chunk, (16, 2)) for seed in range(50) for chunk in range(50)])
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert len(np.unique(noise.reshape(2500, -1), axis=0)) == 2500


def test_the_batch_has_one_shape():
    policy = ScriptedPolicy(draws=4)
    rollout(policy, SEEDS[:11], max_steps=16, policy_batch=8)
    assert len(policy.calls) == 4  # two groups, two chunks
    for observation, noise in policy.calls:
        assert observation["observation.state"].shape == (8, 2, 2)
        assert observation["observation.environment_state"].shape == (8, 2, 16)
        assert noise.shape == (4, 8, 16, 2)


def test_the_policy_sees_its_last_two_frames():
    """The first frame stands for those before it, as LeRobot's queue has it."""
    policy = ScriptedPolicy(observations=("observation.image", *KEYPOINTS))
    (episode,) = rollout(policy, [5], max_steps=20, policy_batch=1)
    assert episode.chunk_starts == [0, 8, 16]
    for (observation, _), (before, now) in zip(policy.calls, [(0, 0), (7, 8), (15, 16)], strict=True):
        states = np.array([[episode.states[before], episode.states[now]]])
        for name, values in observe(states, policy.config.input_features).items():
            np.testing.assert_array_equal(observation[name].numpy(), values)


def test_only_frames_that_are_looked_at_are_drawn(monkeypatch):
    drawn = []

    def count(states, features):
        drawn.append(states.shape)
        return observe(states, features)

    monkeypatch.setattr(module, "observe", count)
    rollout(ScriptedPolicy(), SEEDS[:3], max_steps=16)
    assert drawn == [(3, 2, 5), (3, 2, 5)]


def test_actions_are_executed_in_order_until_the_time_is_over():
    def script(observation, noise):
        return torch.stack([torch.arange(8.0) + 200, torch.full((8,), 300.0)], -1).expand(len(noise[0]), 8, 2)

    (episode,) = rollout(ScriptedPolicy(script), [1], max_steps=11)
    assert episode.steps == 11 and len(episode.states) == 12 and len(episode.coverages) == 11
    assert [action[0] for action in episode.actions] == [200, 201, 202, 203, 204, 205, 206, 207, 200, 201, 202]
    environment = PushT()
    np.testing.assert_array_equal(episode.states[0], environment.reset(1))
    for action, state, coverage in zip(episode.actions, episode.states[1:], episode.coverages, strict=True):
        expected, covered = environment.step(action)
        np.testing.assert_array_equal(state, expected)
        assert coverage == covered


def test_an_episode_ends_with_success(monkeypatch):
    monkeypatch.setattr(module, "PushT", Solved)
    (episode,) = rollout(ScriptedPolicy(), [1])
    assert (episode.steps, episode.success, episode.max_reward) == (5, True, 1.0)
    assert episode.max_coverage == 0.96


class Solved:
    """Covers 0.2 more of the goal with each step, 0.95 exactly at the fourth and 0.96 at the fifth."""

    def __init__(self) -> None:
        self.coverages = iter([0.2, 0.4, 0.6, 0.95, 0.96, 0.97])

    def reset(self, seed):
        return np.zeros(5)

    def step(self, action):
        return np.zeros(5), next(self.coverages)


def test_reward_is_coverage_against_the_threshold():
    episode = Episode(0, coverages=[0.1, 0.475, 0.2])
    assert episode.max_reward == 0.5
    assert (episode.max_coverage, episode.success) == (0.475, False)


def test_images_reach_a_network():
    policy = random_policy(("observation.image", "observation.state"))
    episodes = rollout(policy, SEEDS[:2], max_steps=9, policy_batch=2)
    assert all(episode.steps == 9 and np.isfinite(episode.actions).all() for episode in episodes)


def test_ddpm_takes_a_draw_for_every_step():
    policy = random_policy(noise_scheduler_type="DDPM", num_inference_steps=5)
    assert policy.noise_draws() > 1
    torch.manual_seed(1)
    first = rollout(policy, SEEDS[:3], max_steps=8, policy_batch=2)
    torch.manual_seed(2)  # torch's own generator has no say
    assert_same(rollout(policy, SEEDS[:3], max_steps=8, policy_batch=2), first)


@pytest.mark.parametrize("environments", [1, 7])
def test_warm_starts_are_each_episodes_own(environments):
    """However many run at once, whether they began together, or are in the last, smaller group."""
    together = rollout(WarmPolicy(), SEEDS[:20], max_steps=24, environments=100, policy_batch=8)
    assert_same(rollout(WarmPolicy(), SEEDS[:20], max_steps=24, environments=environments, policy_batch=8), together)


def test_an_episode_starts_warm_from_its_own_last_plan():
    policy = WarmPolicy()
    rollout(policy, [3, 4], max_steps=20, policy_batch=3)
    assert [previous is None for previous, _ in policy.plans] == [True, False, False]
    for (_, last), (previous, _) in zip(policy.plans, policy.plans[1:], strict=False):
        assert previous.shape == (3, 16, 2)
        assert torch.equal(previous[:, :8], last[:, 8:])  # 8 were executed
        assert torch.equal(previous[:, 8:], last[:, -1:].expand(3, 8, 2))
    assert not torch.equal(policy.plans[0][1][0], policy.plans[0][1][1])


def test_a_network_starts_warm():
    policy = random_policy(num_inference_steps=10, warm_start=0.3)
    steps = []
    policy.diffusion.denoiser.register_forward_pre_hook(lambda _, arguments: steps.append(int(arguments[1][0])))
    episodes = rollout(policy, SEEDS[:3], max_steps=24, policy_batch=4)
    assert steps == [*range(90, -1, -10), *[20, 10, 0] * 2]
    assert all(episode.chunk_starts == [0, 8, 16] for episode in episodes)


class WarmPolicy(ScriptedPolicy):
    """Runs at the block as far as its last plan let it, and remembers what it was given and what it planned."""

    def __init__(self) -> None:
        super().__init__()
        self.config = dataclasses.replace(self.config, warm_start=0.5)
        self.plans: list[tuple[torch.Tensor | None, torch.Tensor]] = []

    def plan(self, observation, noise, *, previous):
        corners = observation["observation.environment_state"][:, -1].unflatten(-1, (8, 2)).repeat(1, 2, 1)
        plan = corners + 20 * noise[-1]
        if previous is not None:
            plan = (plan + previous) / 2
        self.plans.append((previous, plan))
        return plan


def test_actions_that_are_no_numbers_are_refused():
    policy = ScriptedPolicy(lambda observation, noise: torch.full((len(noise[0]), 8, 2), torch.nan))
    with pytest.raises(CheckpointError, match="action: expected finite numbers, got NaN"):
        rollout(policy, [1])


def test_a_policy_with_other_actions_is_refused():
    from visuomotor.config import Feature

    policy = random_policy()
    object.__setattr__(policy.config, "output_features", {"action": Feature("ACTION", (7,))})
    with pytest.raises(ConfigError, match=r"action: expected \(2,\), got \(7,\)"):
        rollout(policy, [1])


def test_progress_is_told_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0)
    rollout(ScriptedPolicy(), SEEDS[:2], max_steps=8, progress=True)
    assert capsys.readouterr().err == "rolling out, 100%: 0 solved of 2 finished, 2 in all\n"
    rollout(ScriptedPolicy(), SEEDS[:2], max_steps=8)
    assert capsys.readouterr().err == ""


def test_an_episode_may_go_on_after_its_success(monkeypatch):
    monkeypatch.setattr(module, "SUCCESS_COVERAGE", 0.2)
    seeds = SEEDS[:16]
    short = rollout(ScriptedPolicy(), seeds, max_steps=24)
    long = rollout(ScriptedPolicy(), seeds, max_steps=24, steps_after=11)
    solved = [one.seed for one in short if one.success]
    assert 0 < len(solved) < len(seeds)
    for one, other in zip(short, long, strict=True):
        assert one.success == other.success
        assert other.steps == one.steps + (11 if one.success else 0)
        np.testing.assert_array_equal(other.states[: one.steps + 1], one.states)
        np.testing.assert_array_equal(other.actions[: one.steps], one.actions)
        if one.success:
            assert one.solved_in == other.solved_in == one.steps


def test_another_attempt_has_the_same_state_and_other_noise():
    first, second = (rollout(ScriptedPolicy(), SEEDS[:3], max_steps=8, attempt=attempt) for attempt in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert (one.seed, one.attempt, other.attempt) == (other.seed, 0, 1)
        np.testing.assert_array_equal(one.states[0], other.states[0])
        assert not np.array_equal(one.actions, other.actions)
    assert_same(first, rollout(ScriptedPolicy(), SEEDS[:3], max_steps=8))
