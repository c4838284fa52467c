"""Plans that continue the chunk before: what is frozen is exact, the rest is drawn towards it, less with distance."""

import numpy as np
import pytest
import torch

from visuomotor.deployment.guidance import plan
from visuomotor.deployment.joining import Prior, RealtimeConfig, soft_mask
from visuomotor.policy.checkpoint import load_policy
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.simulation.pusht import PushT, observe

from ..simulation.acting import random_policy

CONFIG = RealtimeConfig(fps=10)
FLOW = "FlowMatchEuler"


def observation(policy: DiffusionPolicy, count: int) -> dict[str, torch.Tensor]:
    """Of some initial states, twice each."""
    states = np.stack([[PushT().reset(seed)] * 2 for seed in range(count)])
    return {name: torch.from_numpy(values) for name, values in observe(states, policy.config.input_features).items()}


def prior(actions: np.ndarray, frozen: int, known: int) -> Prior:
    """The first `frozen` of a horizon are executed, `known` of the chunk before are there."""
    weights = np.zeros(16, np.float32)
    weights[:known] = soft_mask(frozen, known)
    return Prior(actions.astype(np.float32), weights, np.arange(16) < frozen)


@pytest.mark.parametrize(
    ("prediction_type", "sampler", "steps"),
    [
        ("epsilon", "DDIM", 10),
        ("sample", "DDIM", 10),
        ("v_prediction", "DDIM", 10),
        ("epsilon", "DDPM", 100),
        ("v_prediction", FLOW, 5),
        ("sample", FLOW, 1),
    ],
)
def test_what_is_frozen_is_kept_to_the_last_digits(prediction_type, sampler, steps):
    policy = random_policy(prediction_type=prediction_type, noise_scheduler_type=sampler, num_inference_steps=steps)
    frozen = 4
    executed = np.random.default_rng(0).uniform(0, 512, (3, 16, 2))
    priors = [prior(executed[0], frozen, 8), None, prior(executed[2], frozen, 8)]
    torch.manual_seed(0)
    found = plan(policy, observation(policy, 3), priors, CONFIG)
    assert found.shape == (3, 16, 2) and np.isfinite(found).all()
    for row in (0, 2):
        expected = executed[row, :frozen]
        assert np.all(np.abs(found[row, :frozen] - expected) <= 1e-5 * np.maximum(1, np.abs(expected)))
        assert np.abs(found[row, frozen:8] - executed[row, frozen:8]).max() > 1  # it is a plan, not a copy


def test_the_rest_is_drawn_towards_the_chunk_before_and_less_with_distance():
    policy = load_policy("pusht-keypoints-small")
    seen = observation(policy, 8)
    noise = torch.randn(2, 8, 16, 2, generator=torch.Generator().manual_seed(0))
    before = plan(policy, seen, [None] * 8, CONFIG, noise[0])
    free = plan(policy, seen, [None] * 8, CONFIG, noise[1])
    # The chunk before lies 20 pixels to the side of what the policy might want.
    priors = [prior(row + np.array([12, 16]), 3, 10) for row in before]
    guided = plan(policy, seen, priors, CONFIG, noise[1])
    wanted = np.stack([one.actions for one in priors])
    left = np.linalg.norm(guided - wanted, axis=-1).mean(0) / np.linalg.norm(free - wanted, axis=-1).mean(0)
    assert left[:3].max() < 1e-4
    assert left[3] < 0.5
    assert np.all(np.diff(left[3:10]) > 0)
    assert np.abs(guided - free)[:, 12:].mean() < np.abs(guided - free)[:, 3:6].mean() / 2


def test_a_smaller_spread_draws_more_and_no_guidance_not_at_all():
    policy = load_policy("pusht-keypoints-small")
    seen = observation(policy, 4)
    noise = torch.randn(4, 16, 2, generator=torch.Generator().manual_seed(0))
    free = plan(policy, seen, [None] * 4, CONFIG, noise)
    priors = [prior(row + 20, 0, 8) for row in free]

    def moved(**changes: float) -> float:
        guided = plan(policy, seen, priors, RealtimeConfig(fps=10, **changes), noise)
        return float(np.abs(guided - free)[:, :8].mean())

    assert moved(max_guidance=0) < 1e-2
    assert moved(max_guidance=0) < moved(plan_spread=1, max_guidance=5) < moved(plan_spread=0.04)


def test_plans_without_a_prior_are_the_policys_own():
    policy = random_policy(num_inference_steps=5)
    seen, noise = observation(policy, 2), torch.randn(2, 16, 2)
    alone = plan(policy, seen, [None, None], CONFIG, noise)
    np.testing.assert_array_equal(alone, policy.plan(seen, noise).numpy())
    actions = np.full((16, 2), 256.0)
    beside = plan(policy, seen, [prior(actions, 4, 8), None], CONFIG, noise)
    np.testing.assert_allclose(beside[1], alone[1], atol=0.01)  # pixels
    assert np.abs(beside[0] - alone[0]).max() > 1


def test_the_policys_weights_are_left_as_they_were():
    policy = random_policy()
    next(policy.parameters()).requires_grad_(False)
    before = [weight.requires_grad for weight in policy.parameters()]
    plan(policy, observation(policy, 1), [prior(np.full((16, 2), 256.0), 2, 8)], CONFIG)
    assert [weight.requires_grad for weight in policy.parameters()] == before
    assert all(weight.grad is None for weight in policy.parameters())
