"""Plans: guided, from what was observed before, from the rest of an earlier plan, and with nothing computed twice."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from visuomotor.config import DiffusionConfig
from visuomotor.errors import CheckpointError, ConfigError
from visuomotor.policy.diffusion import DiffusionPolicy, moved_on
from visuomotor.policy.samplers import Predict
from visuomotor.policy.unet import ResidualBlock

from .lerobot_case import TOLERANCE, largest_error
from .small import observation, small_batch, small_config, small_policy

STATE = small_config(noise_scheduler_type="DDIM", num_inference_steps=10)
IMAGES = small_config(cameras=2, environment=4, noise_scheduler_type="DDIM", num_inference_steps=4)
SAMPLERS: list[dict[str, Any]] = [
    {"noise_scheduler_type": "DDPM"},
    {"noise_scheduler_type": "DDIM"},
    {"noise_scheduler_type": "DDIM", "ddim_eta": 0.5},
    {"noise_scheduler_type": "DPMSolverMultistep"},
    {"noise_scheduler_type": "FlowMatchEuler", "prediction_type": "v_prediction"},
]


def acting(config: DiffusionConfig) -> DiffusionPolicy:
    """With no weight at its beginning, where nothing but biases would show of a transformer."""
    policy = small_policy(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.diffusion.denoiser.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return policy


def noise_of(policy: DiffusionPolicy, size: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(policy.noise_draws(), size, 8, 3, generator=torch.Generator().manual_seed(seed))


def steps_of_calls(policy: DiffusionPolicy) -> list[float]:
    """A list that fills with the step of each call of the network."""
    steps: list[float] = []
    policy.diffusion.denoiser.register_forward_pre_hook(lambda _, arguments: steps.append(arguments[1][0].item()))
    return steps


def count_rows(*modules: nn.Module) -> list[int]:
    """A list that fills with the number of rows of each call of any of them."""
    rows: list[int] = []
    for module in modules:
        module.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    return rows


# What does not change between steps


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("changes", [{}, {"denoiser": "transformer"}, {"use_film_scale_modulation": False}], ids=str)
def test_computed_once_is_computed_right(changes: dict[str, Any], sampler: dict[str, Any]) -> None:
    """A guide that hides the steps' names makes the policy compute everything anew for every call."""
    policy = acting(small_config(environment=4, num_inference_steps=8, transformer_dim=16, **(sampler | changes)))
    seen, noise = observation(small_batch(policy.config)), noise_of(policy)

    def anew(predict: Predict) -> Predict:
        return lambda x, step: predict(x, torch.tensor(step))  # ty: ignore[invalid-argument-type]

    condition = policy.diffusion.global_cond(policy._prepare(seen, {}))
    again = count_rows(policy.diffusion.denoiser.diffusion_step_encoder)
    found = policy.sample(condition, noise)
    assert again == [8]
    again.clear()
    expected = policy.sample(condition, noise, guide=anew)
    assert again == [8, *[3] * 8]
    assert largest_error(found, expected) <= TOLERANCE


def test_no_film_layer_runs_between_steps() -> None:
    policy = acting(STATE)
    blocks = [module for module in policy.modules() if isinstance(module, ResidualBlock)]
    rows = count_rows(*(block.cond_encoder[1] for block in blocks))
    policy.predict_action_chunk(observation(small_batch(STATE)))
    assert not rows and len(blocks) == 8
    policy.compute_loss(small_batch(STATE))
    assert rows == [3] * 8


def test_new_weights_act_at_once() -> None:
    """Nothing that was computed from weights outlives a chunk."""
    policy, seen = acting(STATE), observation(small_batch(STATE))
    noise = noise_of(policy)
    before = policy.plan(seen, noise)
    other = small_policy(STATE, seed=1).eval()
    policy.load_state_dict(other.state_dict())
    assert torch.equal(policy.plan(seen, noise), other.plan(seen, noise))
    assert not torch.equal(policy.plan(seen, noise), before)


# Guides


def test_a_chunk_is_a_part_of_the_plan() -> None:
    policy, seen = acting(STATE), observation(small_batch(STATE))
    noise = noise_of(policy)
    plan = policy.plan(seen, noise)
    assert plan.shape == (3, 8, 3)
    assert torch.equal(policy.predict_action_chunk(seen, noise), plan[:, 1:5])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_guide_stands_between_network_and_sampler(sampler: dict[str, Any]) -> None:
    """One that holds the clean actions to a value leads every sampler there; one that does nothing changes nothing."""
    policy = acting(small_config(num_inference_steps=10, **sampler))
    seen, noise = observation(small_batch(policy.config)), noise_of(policy)
    assert torch.equal(policy.plan(seen, noise, guide=lambda predict: predict), policy.plan(seen, noise))

    def held(predict: Predict) -> Predict:
        def guided(x: Tensor, step: float) -> Tensor:
            clean = policy.schedule.clean(x, predict(x, step), step)
            clean[:, :3] = 0.25
            return policy.schedule.prediction(x, clean, step)

        return guided

    held_plan = policy.normalizer("action", policy.plan(seen, noise, guide=held))
    assert torch.allclose(held_plan[:, :3], torch.tensor(0.25), atol=1e-4)
    assert held_plan[:, 3:].std() > 0.01


def test_a_guide_may_differentiate_the_network() -> None:
    policy, gradients = acting(STATE), []

    def guide(predict: Predict) -> Predict:
        def guided(x: Tensor, step: float) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(predict(x, step).square().sum(), x)
            gradients.append(gradient)
            return predict(x.detach(), step)

        return guided

    plan = policy.plan(observation(small_batch(STATE)), noise_of(policy), guide=guide)
    assert len(gradients) == 10 and all(gradient.abs().max() > 0 for gradient in gradients)
    assert not plan.requires_grad


# What was observed


def frames(config: DiffusionConfig, count: int, size: int = 2) -> list[dict[str, Tensor]]:
    """`count` observations, no two alike."""
    batch = observation(small_batch(dataclasses.replace(config, n_obs_steps=count, n_action_steps=1, horizon=16), size))
    return [{name: values[:, i] for name, values in batch.items()} for i in range(count)]


@pytest.mark.parametrize("separate", [False, True])
def test_no_frame_is_encoded_twice(separate: bool) -> None:
    """Three steps observed, one executed: each plan sees two frames that the one before saw, or the first again."""
    config = dataclasses.replace(IMAGES, n_obs_steps=3, n_action_steps=1, use_separate_rgb_encoder_per_camera=separate)
    policy = acting(config)
    encoder = policy.diffusion.rgb_encoder
    rows = count_rows(*(encoder if isinstance(encoder, nn.ModuleList) else [encoder]))
    shown = frames(config, 6)
    actions = [policy.select_action(frame, noise_of(policy, 2, i)) for i, frame in enumerate(shown)]
    assert rows == ([2, 2] if separate else [4]) * 6  # two episodes, two cameras, one frame
    for now, action in enumerate(actions):
        past = [shown[max(0, now - back)] for back in (2, 1, 0)]
        stacked = {name: torch.stack([frame[name] for frame in past], 1) for name in shown[0]}
        expected = policy.predict_action_chunk(stacked, noise_of(policy, 2, now))[:, 0]
        found, expected = (policy.normalizer("action", values) for values in (action, expected))
        assert largest_error(found, expected) <= TOLERANCE


def test_frames_between_plans_are_encoded_when_a_plan_needs_them() -> None:
    policy, noise = acting(IMAGES), torch.zeros(2, 8, 3)
    rows = count_rows(policy.diffusion.rgb_encoder)
    shown = frames(IMAGES, 5)
    for frame in shown:
        policy.observe(frame)
    assert not rows
    plan = policy.plan(None, noise)
    assert rows == [2 * 2 * 2]  # frames, episodes, cameras
    assert torch.equal(policy.plan(None, noise), plan) and len(rows) == 1
    stacked = {name: torch.stack([frame[name] for frame in shown[-2:]], 1) for name in shown[0]}
    assert largest_error(plan, policy.plan(stacked, noise)) <= TOLERANCE


def test_planning_before_anything_was_observed() -> None:
    policy = acting(STATE)
    with pytest.raises(CheckpointError, match=r"observation: expected one or more, got none; call observe\(\) first"):
        policy.plan(None)
    policy.observe({"observation.state": torch.zeros(1, 2)})
    policy.reset()
    with pytest.raises(CheckpointError, match="observation: expected one or more"):
        policy.plan(None)


def test_an_observation_of_another_shape_is_refused_when_it_arrives() -> None:
    policy = acting(STATE)
    with pytest.raises(CheckpointError, match=r"^observation.state: expected \(B, 2, 2\), got \(1, 2, 3\); give To"):
        policy.observe({"observation.state": torch.zeros(1, 3)})


# Warm starts


def test_a_plan_moved_on() -> None:
    plan = torch.arange(10.0).reshape(1, 5, 2)
    assert moved_on(plan, 2).tolist() == [[[4, 5], [6, 7], [8, 9], [8, 9], [8, 9]]]
    assert torch.equal(moved_on(plan, 0), plan)
    assert moved_on(plan, 5).tolist() == [[[8, 9]] * 5]


@pytest.mark.parametrize(
    ("changes", "warm_start", "expected"),
    [
        ({"noise_scheduler_type": "DDIM"}, 0.5, [8, 6, 4, 2, 0]),  # 18 to 0 by 2, of 19
        ({"noise_scheduler_type": "DDPM", "num_inference_steps": None}, 0.25, [4, 3, 2, 1, 0]),
        ({"noise_scheduler_type": "DPMSolverMultistep", "num_inference_steps": 4}, 0.8, [13, 7, 2]),
        ({"noise_scheduler_type": "FlowMatchEuler", "prediction_type": "v_prediction"}, 0.3, [5.7, 3.8, 1.9]),
        ({"noise_scheduler_type": "DDIM"}, 0.01, [0]),
        ({"noise_scheduler_type": "DPMSolverMultistep", "num_inference_steps": 1}, 0.1, [17]),  # the last one always
    ],
)
def test_steps_of_a_warm_start(changes: dict[str, Any], warm_start: float, expected: list[float]) -> None:
    policy = acting(dataclasses.replace(STATE, warm_start=warm_start, **changes))
    seen, steps = observation(small_batch(STATE)), steps_of_calls(policy)
    first = policy.plan(seen, noise_of(policy))
    assert steps == pytest.approx(policy.denoising_steps()) and len(steps) == (policy.config.num_inference_steps or 20)
    steps.clear()
    policy.plan(seen, noise_of(policy, seed=1), previous=moved_on(first, 4))
    assert steps == pytest.approx(expected) == policy.denoising_steps(warm=True)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_where_a_warm_start_starts(sampler: dict[str, Any]) -> None:
    """The previous plan, normalised, noised as in training to the first step that is taken."""
    policy = acting(small_config(num_inference_steps=10, warm_start=0.5, **sampler))
    seen, noise, entered = observation(small_batch(policy.config)), noise_of(policy), []
    policy.diffusion.denoiser.register_forward_pre_hook(lambda _, arguments: entered.append(arguments[:2]))
    previous = policy.normalizer.inverse("action", torch.rand(3, 8, 3) * 2 - 1)
    plan = policy.plan(seen, noise, previous=previous)
    x, step = entered[0]
    expected = policy.schedule.add_noise(policy.normalizer("action", previous), noise[0], step)
    assert torch.allclose(x, expected, atol=1e-5)
    assert torch.equal(policy.plan(seen, noise, previous=previous), plan)  # noise decides the rest
    assert not torch.equal(policy.plan(seen, noise), plan)


def test_select_action_starts_warm_but_after_reset() -> None:
    policy = acting(dataclasses.replace(STATE, warm_start=0.5))
    steps, shown = steps_of_calls(policy), frames(STATE, 9)
    noises = [noise_of(policy, 2, seed) for seed in range(9)]
    actions = [policy.select_action(frame, noise) for frame, noise in zip(shown, noises, strict=True)]
    cold, warm = policy.denoising_steps(), policy.denoising_steps(warm=True)
    assert steps == [*cold, *warm, *warm]

    def stacked(now: int) -> dict[str, Tensor]:
        return {name: torch.stack([shown[max(0, now - 1)][name], shown[now][name]], 1) for name in shown[0]}

    plan = policy.plan(stacked(0), noises[0])
    for begin in (0, 4):
        assert torch.equal(torch.stack(actions[begin : begin + 4], 1), plan[:, 1:5])
        plan = policy.plan(stacked(begin + 4), noises[begin + 4], previous=moved_on(plan, 4))
    assert torch.equal(actions[8], plan[:, 1])
    policy.reset()
    steps.clear()
    assert torch.equal(policy.select_action(shown[0], noises[0]), actions[0])
    assert steps == cold


def test_without_a_warm_start_the_previous_plan_has_no_say() -> None:
    policy, seen = acting(STATE), observation(small_batch(STATE))
    noise = noise_of(policy)
    assert torch.equal(policy.plan(seen, noise, previous=torch.ones(3, 8, 3)), policy.plan(seen, noise))


def test_a_previous_plan_of_another_shape() -> None:
    policy, seen = acting(dataclasses.replace(STATE, warm_start=0.5)), observation(small_batch(STATE))
    with pytest.raises(
        CheckpointError, match=r"^previous: expected \(3, 8, 3\), got \(3, 4, 3\); give the earlier plan"
    ):
        policy.plan(seen, previous=torch.zeros(3, 4, 3))


# Settings


def test_with_sampler_takes_every_setting() -> None:
    policy = acting(STATE).with_sampler("DDIM", 5, 2, ddim_eta=0.3, warm_start=0.5)
    config = policy.config
    assert (config.num_inference_steps, config.n_action_steps, config.ddim_eta, config.warm_start) == (5, 2, 0.3, 0.5)
    assert policy.noise_draws() == 5
    assert policy.with_sampler(ddim_eta=0).noise_draws() == 1
    assert policy.with_sampler("DPMSolverMultistep", 3, ddim_eta=0, warm_start=1).denoising_steps() == [17, 12, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda policy: policy.with_sampler(ddim_eta=1.1), "ddim_eta: expected 0 to 1, got 1.1; 0 adds no noise"),
        (lambda policy: policy.with_sampler("DDPM", ddim_eta=0.5), "ddim_eta: expected 0 with any sampler but DDIM"),
        (
            lambda policy: policy.with_sampler(warm_start=0),
            r"warm_start: expected a share in \(0, 1\], got 0; 1 starts",
        ),
        (lambda policy: policy.with_sampler(warm_start=1.5), r"warm_start: expected a share in \(0, 1\], got 1.5"),
    ],
)
def test_settings_out_of_range(change: Callable[[DiffusionPolicy], DiffusionPolicy], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        change(acting(STATE))
