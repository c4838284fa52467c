"""The policy: its loss, and how it acts. The network's numbers are in test_lerobot.py, test_unet.py, test_vision.py."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from visuomotor.config import DiffusionConfig, Feature
from visuomotor.data.order import run_leaders, shared_frames
from visuomotor.errors import CheckpointError, ConfigError
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.draws import Shared

from .small import observation, small_batch, small_config, small_policy

STATE = small_config()
IMAGES = small_config(cameras=2)
FLOW = small_config(prediction_type="v_prediction", noise_scheduler_type="FlowMatchEuler")
UNET_CALL = list[tuple[Tensor, Tensor, Tensor]]


def watch_network(policy: DiffusionPolicy) -> UNET_CALL:
    """A list that fills with (x, step, condition) of every call of the denoiser."""
    calls: UNET_CALL = []
    policy.diffusion.denoiser.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    return calls


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


# The loss


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_loss_by_its_formula(prediction_type: str, masked: bool) -> None:
    """Mean of the squared error over everything; a masked action counts as an error of 0."""
    config = small_config(prediction_type=prediction_type, do_mask_loss_for_padding=masked)
    policy = small_policy(config)
    generator = seeded()
    clean, noise = torch.randn(2, 3, 8, 3, generator=generator)
    steps, condition = torch.tensor([0, 7, 19]), torch.randn(3, 4, generator=generator)
    pad = torch.zeros(3, 8, dtype=torch.bool)
    pad[0, 5:], pad[2, 1:] = True, True
    a = policy.schedule.alphas_cumprod[steps]
    with torch.no_grad():
        x = torch.stack([a[i] ** 0.5 * clean[i] + (1 - a[i]) ** 0.5 * noise[i] for i in range(3)])
        prediction = policy.diffusion.unet(x, steps, condition)
        found = policy.denoising_loss(condition, clean, noise, steps, {"action_is_pad": pad})
    velocity = a.sqrt()[:, None, None] * noise - (1 - a).sqrt()[:, None, None] * clean
    target = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[prediction_type]
    total = 0.0
    for i in range(3):
        for j in range(8):
            if not (masked and pad[i, j]):
                total += ((prediction[i, j] - target[i, j]) ** 2).sum().item()
    assert found.item() == pytest.approx(total / (3 * 8 * 3), rel=1e-5)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_loss_of_a_flow_by_its_formula(prediction_type: str) -> None:
    """x_s = (1 - s) clean + s noise, told as 19 s of 20 levels; the velocity is noise - clean."""
    policy = small_policy(small_config(prediction_type=prediction_type, noise_scheduler_type="FlowMatchEuler"))
    generator = seeded()
    clean, noise = torch.randn(2, 3, 8, 3, generator=generator)
    s, condition = torch.tensor([0.0, 0.3, 1.0]), torch.randn(3, 4, generator=generator)
    with torch.no_grad():
        x = torch.stack([(1 - s[i]) * clean[i] + s[i] * noise[i] for i in range(3)])
        prediction = policy.diffusion.unet(x, 19 * s, condition)
        found = policy.denoising_loss(condition, clean, noise, 19 * s, {})
    target = clean if prediction_type == "sample" else noise - clean
    assert found.item() == pytest.approx(((prediction - target) ** 2).mean().item(), rel=1e-5)


def test_times_and_noise_that_the_loss_of_a_flow_draws() -> None:
    policy, batch = small_policy(FLOW), small_batch(FLOW, size=400)
    calls = watch_network(policy)
    with torch.no_grad():
        policy.compute_loss(batch, seeded())
    x, steps, _ = calls[0]
    assert len(steps.unique()) == 400 and steps.max() < 19  # not rounded
    assert steps.mean().item() == pytest.approx(9.5, abs=0.6)
    s = (steps / 19)[:, None, None]
    noise = ((x - (1 - s) * policy.normalizer("action", batch["action"])) / s)[steps > 1]
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_a_padded_action_teaches_nothing_when_masked() -> None:
    for masked in (True, False):
        policy = small_policy(small_config(do_mask_loss_for_padding=masked))
        batch = small_batch(STATE, size=2)
        batch["action_is_pad"][:] = True
        policy.compute_loss(batch, seeded()).backward()
        largest = max(p.grad.abs().max().item() for p in policy.parameters() if p.grad is not None)
        assert (largest == 0) == masked


def test_noise_and_steps_that_the_loss_draws() -> None:
    """Steps uniform over all levels, each sample its own; the noise is standard normal."""
    policy = small_policy(STATE)
    calls = watch_network(policy)
    batch = small_batch(STATE, size=400)
    with torch.no_grad():
        policy.compute_loss(batch, seeded())
    x, steps, _ = calls[0]
    counts = torch.bincount(steps, minlength=20)
    assert len(counts) == 20
    assert counts.min() > 5 and counts.max() < 40  # 20 expected
    a = policy.schedule.alphas_cumprod[steps][:, None, None]
    noise = (x - a.sqrt() * policy.normalizer("action", batch["action"])) / (1 - a).sqrt()
    noisy = noise[steps > 0]  # at step 0 the division magnifies rounding
    assert noisy.mean().item() == pytest.approx(0, abs=0.05)
    assert noisy.std().item() == pytest.approx(1, abs=0.05)


def test_loss_follows_its_generator() -> None:
    policy, batch = small_policy(IMAGES), small_batch(IMAGES)
    first, again, other = (policy.compute_loss(batch, seeded(s)).item() for s in (1, 1, 2))
    assert first == again != other
    torch.manual_seed(1)
    without = policy.compute_loss(batch).item()
    torch.manual_seed(1)
    assert policy.compute_loss(batch).item() == without  # torch's own generator


@pytest.mark.parametrize("masked", [False, True])
def test_several_draws_for_each_window(masked: bool) -> None:
    """The loss is the mean over K noisy copies of the batch, and the encoder runs once."""
    config = small_config(cameras=1, do_mask_loss_for_padding=masked)
    policy = small_policy(config)
    calls, encoded = watch_network(policy), []
    policy.diffusion.rgb_encoder.register_forward_pre_hook(lambda _, arguments: encoded.append(len(arguments[0])))
    batch = small_batch(config)
    with torch.no_grad():
        found = policy.compute_loss(batch, seeded(), noise_draws=4)
    assert encoded == [3 * 2]  # images, once
    (x, steps, condition) = calls[0]
    assert x.shape == (4 * 3, 8, 3)
    clean = policy.normalizer("action", batch["action"])
    losses = []
    for k in range(4):
        part = slice(3 * k, 3 * (k + 1))
        assert torch.equal(condition[part], condition[:3])
        a = policy.schedule.alphas_cumprod[steps[part]][:, None, None]
        noise = (x[part] - a.sqrt() * clean) / (1 - a).sqrt()
        with torch.no_grad():
            losses.append(policy.denoising_loss(condition[:3], clean, noise, steps[part], batch).item())
    assert len(set(losses)) == 4  # each copy with its own noise
    assert found.item() == pytest.approx(sum(losses) / 4, rel=1e-4)


def test_random_crop_is_for_training_only() -> None:
    for training, random, same in [(True, True, False), (True, False, True), (False, True, True)]:
        config = small_config(cameras=1, crop_is_random=random)
        policy = small_policy(config).train(training)
        calls = watch_network(policy)
        with torch.no_grad():
            for seed in (1, 2):
                policy.compute_loss(small_batch(config), seeded(seed))
        assert torch.equal(calls[0][2], calls[1][2]) == same


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prediction_type": "sample"},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "noise_scheduler_type": "FlowMatchEuler"},
        {"denoiser": "transformer", "transformer_dim": 32, "transformer_layers": 2},
    ],
    ids=["noise", "sample", "velocity", "flow", "transformer"],
)
def test_training_on_one_batch_lowers_the_loss(changes: dict[str, Any]) -> None:
    config = small_config(environment=4, **changes)
    policy, batch = small_policy(config), small_batch(config)
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = policy.compute_loss(batch, seeded(), noise_draws=4)  # the same noise each time
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_gradient_checkpointing_gives_the_same_loss_and_gradients() -> None:
    results = []
    for checkpointing in (False, True):
        policy = small_policy(small_config(gradient_checkpointing=checkpointing))
        loss = policy.compute_loss(small_batch(STATE), seeded())
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in policy.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Acting


@pytest.mark.parametrize(
    "config",
    [
        small_config(),
        small_config(state=0, environment=5),
        small_config(cameras=1, state=0),
        small_config(cameras=2, environment=4),
        small_config(n_obs_steps=1, n_action_steps=8),
        small_config(n_obs_steps=3, n_action_steps=6),
        small_config(prediction_type="v_prediction"),
        small_config(prediction_type="v_prediction", noise_scheduler_type="FlowMatchEuler", num_inference_steps=5),
    ],
    ids=["state", "environment", "image", "everything", "one step", "three steps", "velocity", "flow"],
)
def test_chunk_is_the_part_of_the_prediction_from_now_on(config: DiffusionConfig) -> None:
    policy = small_policy(config).eval()
    seen = observation(small_batch(config))
    noise = torch.randn(policy.noise_draws(), 3, 8, 3, generator=seeded())
    calls = watch_network(policy)
    chunk = policy.predict_action_chunk(seen, noise)
    assert chunk.shape == (3, config.n_action_steps, 3)
    with torch.no_grad():
        whole = policy.sample(calls[0][2], noise)
    now = config.n_obs_steps - 1
    expected = policy.normalizer.inverse("action", whole)[:, now : now + config.n_action_steps]
    assert torch.equal(chunk, expected)
    assert whole.abs().max() <= 1  # clipped


def test_bytes_and_floats_give_the_same_actions() -> None:
    policy = small_policy(IMAGES).eval().with_sampler("DDIM", 5)
    as_bytes = observation(small_batch(IMAGES))
    as_floats = {name: x / 255 if x.dtype == torch.uint8 else x for name, x in as_bytes.items()}
    noise = torch.randn(3, 8, 3, generator=seeded())
    assert torch.allclose(
        policy.predict_action_chunk(as_bytes, noise), policy.predict_action_chunk(as_floats, noise), atol=1e-3
    )  # of some ten units


def test_float64_states_are_taken() -> None:
    """Simulators give them."""
    policy = small_policy(STATE).eval().with_sampler("DDIM", 5)
    seen, noise = observation(small_batch(STATE)), torch.randn(3, 8, 3, generator=seeded())
    found = policy.predict_action_chunk({name: x.double() for name, x in seen.items()}, noise)
    assert found.dtype == torch.float32
    assert torch.equal(found, policy.predict_action_chunk(seen, noise))


def test_predictions_track_no_gradient() -> None:
    policy = small_policy(STATE).eval()
    assert not policy.predict_action_chunk(observation(small_batch(STATE))).requires_grad


def test_select_action_works_off_a_chunk_before_it_predicts_again() -> None:
    config = small_config(cameras=1, n_obs_steps=3, noise_scheduler_type="DDIM", num_inference_steps=4)
    policy = small_policy(config).eval()
    generator = seeded()
    frames = [
        {
            "observation.images.a": torch.randint(256, (2, 3, 32, 40), generator=generator, dtype=torch.uint8),
            "observation.state": torch.randn(2, 2, generator=generator),
        }
        for _ in range(10)
    ]
    noises = torch.randn(10, 2, 8, 3, generator=generator)
    calls = watch_network(policy)
    actions, predicted_at = [], []
    for i, (frame, noise) in enumerate(zip(frames, noises, strict=True)):
        before = len(calls)
        actions.append(policy.select_action(frame, noise))
        predicted_at += [i] * (len(calls) > before)
    assert predicted_at == [0, 4, 8]

    def chunk(past: list[int], noise: Tensor) -> Tensor:
        stacked = {name: torch.stack([frames[i][name] for i in past], 1) for name in frames[0]}
        return policy.predict_action_chunk(stacked, noise)

    # The first call repeats the first frame; later ones see the frames between the predictions too.
    expected = [chunk([0, 0, 0], noises[0]), chunk([2, 3, 4], noises[4]), chunk([6, 7, 8], noises[8])]
    assert torch.equal(torch.stack(actions, 1), torch.cat(expected, 1)[:, :10])


def test_reset_forgets_the_past() -> None:
    policy = small_policy(STATE).eval()
    noise = torch.randn(policy.noise_draws(), 1, 8, 3, generator=seeded())
    first, second = torch.zeros(1, 2), torch.full((1, 2), 3.0)
    fresh = policy.select_action({"observation.state": second}, noise)
    policy.reset()
    policy.select_action({"observation.state": first}, noise)
    policy.reset()
    assert torch.equal(policy.select_action({"observation.state": second}, noise), fresh)
    policy.reset()
    assert policy.select_action({"observation.state": torch.zeros(5, 2)}).shape == (5, 3)  # another number of episodes


# Noise


def test_given_noise_decides_everything() -> None:
    policy = small_policy(STATE).eval()
    seen, draws = observation(small_batch(STATE)), policy.noise_draws()
    assert draws == 20  # DDPM: the start and one a step but the last
    noise = torch.randn(draws, 3, 8, 3, generator=seeded())
    first = policy.predict_action_chunk(seen, noise)
    assert torch.equal(first, policy.predict_action_chunk(seen, noise))
    for k in (0, 1, draws - 1):
        other = noise.clone()
        other[k] += 1
        assert not torch.equal(first, policy.predict_action_chunk(seen, other)), f"draw {k} is not used"


def test_episodes_do_not_share_noise() -> None:
    """Each row's actions depend on its own observation and noise alone."""
    policy = small_policy(STATE).eval()
    seen, noise = observation(small_batch(STATE)), torch.randn(policy.noise_draws(), 3, 8, 3, generator=seeded())
    together = policy.predict_action_chunk(seen, noise)
    for i in range(3):
        alone = policy.predict_action_chunk({n: x[i : i + 1] for n, x in seen.items()}, noise[:, i : i + 1])
        assert torch.allclose(alone, together[i : i + 1], atol=1e-4)


def test_where_to_start_alone_may_be_given() -> None:
    """The rest then comes from torch's generator; with DDIM there is no rest."""
    seen, start = observation(small_batch(STATE)), torch.randn(3, 8, 3, generator=seeded())
    ddpm = small_policy(STATE).eval()
    ddim = ddpm.with_sampler("DDIM")
    torch.manual_seed(0)
    rest = torch.randn(19, 3, 8, 3)
    torch.manual_seed(0)
    found = ddpm.predict_action_chunk(seen, start)
    assert torch.equal(found, ddpm.predict_action_chunk(seen, torch.cat([start[None], rest])))
    assert not torch.equal(found, ddpm.predict_action_chunk(seen, start))
    assert ddim.noise_draws() == 1
    assert torch.equal(ddim.predict_action_chunk(seen, start), ddim.predict_action_chunk(seen, start[None]))
    torch.manual_seed(0)
    drawn = torch.randn(1, 3, 8, 3)
    torch.manual_seed(0)
    assert torch.equal(ddim.predict_action_chunk(seen), ddim.predict_action_chunk(seen, drawn))


@pytest.mark.parametrize("shape", [(2, 8, 3), (3, 4, 3), (19, 3, 8, 3), (2, 3, 8, 3), (8, 3), (20, 3, 8, 2)])
def test_noise_of_another_shape(shape: tuple[int, ...]) -> None:
    policy = small_policy(STATE).eval()
    with pytest.raises(CheckpointError, match=r"^noise: expected \(3, 8, 3\) or \(20, 3, 8, 3\), got \("):
        policy.predict_action_chunk(observation(small_batch(STATE)), torch.zeros(shape))


# Other samplers with the same weights


def test_with_sampler_shares_the_weights() -> None:
    policy = small_policy(STATE).eval()
    noise, seen = torch.randn(3, 8, 3, generator=seeded()), observation(small_batch(STATE))
    other = policy.with_sampler("DDIM", 5, 6)
    assert (other.config.noise_scheduler_type, other.config.num_inference_steps, other.config.n_action_steps) == (
        "DDIM",
        5,
        6,
    )
    assert (policy.config.noise_scheduler_type, policy.noise_draws()) == ("DDPM", 20)
    assert other.predict_action_chunk(seen, noise).shape == (3, 6, 3)
    calls = watch_network(policy)
    other.predict_action_chunk(seen, noise)
    assert [int(step[0]) for _, step, _ in calls] == [16, 12, 8, 4, 0]
    assert all(a is b for a, b in zip(policy.parameters(), other.parameters(), strict=True))
    assert not other.training


def test_a_flow_acts_from_noise_in_equal_steps() -> None:
    policy = small_policy(FLOW).eval().with_sampler(num_inference_steps=4)
    calls = watch_network(policy)
    policy.predict_action_chunk(observation(small_batch(FLOW)), torch.randn(3, 8, 3, generator=seeded()))
    assert policy.noise_draws() == 1
    assert [step.tolist() for _, step, _ in calls] == [[told] * 3 for told in (19, 14.25, 9.5, 4.75)]


def test_with_sampler_has_a_queue_of_its_own() -> None:
    policy = small_policy(STATE).eval()
    policy.select_action({"observation.state": torch.zeros(1, 2)})
    other = policy.with_sampler("DDIM", 2)
    calls = watch_network(policy)
    other.select_action({"observation.state": torch.zeros(2, 2)})
    assert len(calls) == 2  # it predicted, for two episodes
    policy.select_action({"observation.state": torch.zeros(1, 2)})
    assert len(calls) == 2  # the first one still had actions, for one episode


def test_with_sampler_refuses_the_impossible() -> None:
    policy = small_policy(STATE)
    with pytest.raises(ConfigError, match=r"noise_scheduler_type: .* got 'DDIN'; did you mean DDIM"):
        policy.with_sampler("DDIN")
    with pytest.raises(ConfigError, match="noise_scheduler_type: expected DDPM, DDIM, DPMSolverMultistep, got Flow"):
        policy.with_sampler("FlowMatchEuler")
    with pytest.raises(ConfigError, match="noise_scheduler_type: expected FlowMatchEuler, got DDIM; rectified flow"):
        small_policy(FLOW).with_sampler("DDIM")
    with pytest.raises(ConfigError, match="num_inference_steps: expected 1 to num_train_timesteps = 20, got 21; "):
        policy.with_sampler(num_inference_steps=21)
    with pytest.raises(ConfigError, match="n_action_steps: expected 1 to 7 = "):
        policy.with_sampler(n_action_steps=8)


# Bad input


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (3, 2, 32, 40, 3),
            "observation.images.a: expected (B, 2, 3, 32, 40), got (3, 2, 32, 40, 3); move the channels first",
        ),
        (
            (3, 1, 3, 32, 40),
            "observation.images.a: expected (B, 2, 3, 32, 40), got (3, 1, 3, 32, 40); give To steps of",
        ),
        ((2, 3, 32, 40), "observation.images.a: expected (B, 2, 3, 32, 40), got (2, 3, 32, 40); "),
        ((3, 2, 3, 40, 32), "observation.images.a: expected (B, 2, 3, 32, 40), got (3, 2, 3, 40, 32); "),
    ],
)
def test_observation_of_another_shape(shape: tuple[int, ...], message: str) -> None:
    seen = observation(small_batch(IMAGES)) | {"observation.images.a": torch.zeros(shape)}
    with pytest.raises(CheckpointError) as caught:
        small_policy(IMAGES).eval().predict_action_chunk(seen)
    assert str(caught.value).startswith(message)


def test_observation_that_is_missing() -> None:
    seen = observation(small_batch(IMAGES))
    seen["observation.image"] = seen.pop("observation.images.b")
    policy = small_policy(IMAGES).eval()
    expected = "observation.images.b: expected an observation of that name, got ['observation.image', "
    for act in (policy.predict_action_chunk, policy.select_action):
        with pytest.raises(CheckpointError) as caught:
            act(seen)
        assert str(caught.value).startswith(expected)


def test_observations_of_different_batches() -> None:
    seen = observation(small_batch(IMAGES))
    seen["observation.images.b"] = seen["observation.images.b"][:2]
    with pytest.raises(CheckpointError, match=r"images\.b: expected \(3, 2, 3, 32, 40\), got \(2, 2, 3, 32, 40\)"):
        small_policy(IMAGES).eval().predict_action_chunk(seen)


def test_acting_on_another_batch_without_reset() -> None:
    policy = small_policy(STATE).eval()
    policy.select_action({"observation.state": torch.zeros(1, 2)})
    with pytest.raises(CheckpointError, match=r"expected \(1, 2\) as before, got \(3, 2\); call reset"):
        policy.select_action({"observation.state": torch.zeros(3, 2)})


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("action", torch.zeros(3, 7, 3), r"action: expected \(3, 8, 3\), got \(3, 7, 3\)"),
        ("action", torch.zeros(2, 8, 3), r"action: expected \(3, 8, 3\), got \(2, 8, 3\)"),
        ("action", None, r"action: expected \(3, 8, 3\), got \['action_is_pad', "),
        ("action_is_pad", None, r"action_is_pad: expected \(3, 8\), got \['action', "),
        ("action_is_pad", torch.zeros(3, 8, 3, dtype=torch.bool), r"action_is_pad: expected \(3, 8\), got \(3, 8, 3\)"),
    ],
)
def test_targets_that_do_not_fit(name: str, values: Tensor | None, message: str) -> None:
    config = small_config(do_mask_loss_for_padding=True)
    batch = small_batch(config)
    if values is None:
        del batch[name]
    else:
        batch[name] = values
    with pytest.raises(CheckpointError, match=message):
        small_policy(config).compute_loss(batch)


def test_config_without_features() -> None:
    with pytest.raises(CheckpointError, match="config: expected observations in and `action` out"):
        DiffusionPolicy(DiffusionConfig(), {})


# The config's fields reach the network


@pytest.mark.parametrize(
    ("changes", "name", "shape"),
    [
        ({}, "unet.down_modules.0.0.conv1.block.0.weight", (16, 3, 3)),
        ({"kernel_size": 5}, "unet.down_modules.0.0.conv1.block.0.weight", (16, 3, 5)),
        ({}, "unet.mid_modules.0.cond_encoder.1.weight", (64, 16 + 2 * (2 + 2 * 8))),
        ({"use_film_scale_modulation": False}, "unet.mid_modules.0.cond_encoder.1.weight", (32, 52)),
        ({"n_obs_steps": 1}, "unet.mid_modules.0.cond_encoder.1.weight", (64, 16 + 2 + 2 * 8)),
        ({"diffusion_step_embed_dim": 8}, "unet.diffusion_step_encoder.1.weight", (32, 8)),
        ({"spatial_softmax_num_keypoints": 6}, "rgb_encoder.out.weight", (12, 12)),
        ({"use_separate_rgb_encoder_per_camera": True}, "rgb_encoder.1.out.weight", (8, 8)),
        ({"down_dims": (16, 24, 48)}, "unet.mid_modules.0.conv1.block.0.weight", (48, 48, 3)),
        ({"vision_backbone": "resnet34"}, "rgb_encoder.backbone.5.3.conv2.weight", (32, 32, 3, 3)),
        ({"backbone_width": 32}, "rgb_encoder.pool.nets.weight", (4, 64, 1, 1)),
        ({"backbone_stages": 3}, "rgb_encoder.pool.nets.weight", (4, 64, 1, 1)),
        ({"use_group_norm": False}, "rgb_encoder.backbone.1.running_var", (16,)),
    ],
    ids=str,
)
def test_fields_shape_the_network(changes: dict[str, Any], name: str, shape: tuple[int, ...]) -> None:
    weights = small_policy(dataclasses.replace(IMAGES, **changes)).state_dict()
    assert tuple(weights[f"diffusion.{name}"].shape) == shape


def test_cameras_of_different_sizes_are_resized_to_one() -> None:
    features = {"observation.a": Feature("VISUAL", (3, 32, 40)), "observation.b": Feature("VISUAL", (3, 64, 48))}
    config = dataclasses.replace(small_config(), input_features=features, resize_shape=(30, 30), crop_ratio=0.9)
    chunk = small_policy(config).eval().predict_action_chunk(observation(small_batch(config)))
    assert chunk.shape == (3, 4, 3)


def test_a_copy_is_independent() -> None:
    """As the average of the weights needs it."""
    policy = small_policy(IMAGES)
    twin = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1)
    assert not any(torch.equal(a, b) for a, b in zip(policy.parameters(), twin.parameters(), strict=True))


def test_frames_that_windows_share_are_encoded_once() -> None:
    """The loss and gradients are those without sharing, given that the crops are the same."""
    config = small_config(cameras=2, use_separate_rgb_encoder_per_camera=True)
    policy = small_policy(config)
    batch = small_batch(config, size=5)
    rows = np.array([7, 8, 9, 3, 4])  # two runs, of 3 and of 2 windows
    shared = Shared(*map(torch.from_numpy, shared_frames(rows, np.stack([rows - 1, rows], axis=1))))
    for name in config.image_features:
        images = batch[name].flatten(0, 1)
        batch[name] = images[shared.first][shared.index]  # as consecutive windows of a recording have them
    drawn = policy.draw(5, seeded(), noise_draws=2)
    draws = drawn.following(torch.from_numpy(run_leaders(rows)))
    assert any(not torch.equal(drawn.offsets[name], draws.offsets[name]) for name in draws.offsets)

    seen: list[int] = []
    for encoder in policy.diffusion.rgb_encoder:
        encoder.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    found = policy(batch, draws.part(slice(None), shared))
    found.backward()
    gradients = [parameter.grad.clone() for parameter in policy.parameters()]
    policy.zero_grad()
    expected = policy(batch, draws)
    expected.backward()
    assert seen == [7, 7, 10, 10]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    for gradient, parameter in zip(gradients, policy.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
