from dataclasses import replace

import pytest
import torch

from visuomotor.config import Feature
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.recipe import Recipe
from visuomotor.training.average import WeightAverage


@pytest.fixture
def policy(recipe: Recipe) -> DiffusionPolicy:
    inputs = {"observation.environment_state": Feature("ENV", (3,))}
    config = replace(recipe.policy, input_features=inputs, output_features={"action": Feature("ACTION", (2,))})
    statistics = {
        "observation.environment_state": {"min": [0] * 3, "max": [1] * 3},
        "action": {"min": [0] * 2, "max": [1] * 2},
    }
    return DiffusionPolicy(config, statistics)


def test_follows_the_weights_with_the_decay_of_the_original_code(policy: DiffusionPolicy, recipe: Recipe) -> None:
    training = replace(recipe.training, ema_power=0.75, ema_max_decay=0.5)
    average = WeightAverage(policy, training)
    name = "diffusion.unet.final_conv.1.weight"
    weight = policy.get_parameter(name)
    expected = weight.detach().double().clone()
    for step in range(6):
        with torch.no_grad():
            weight.normal_(generator=torch.Generator().manual_seed(step))
        average.update(step)
        decay = min(1 - (1 + step) ** -0.75, 0.5)  # the cap is reached at step 2
        expected = decay * expected + (1 - decay) * weight.detach().double()
        torch.testing.assert_close(average.policy.get_parameter(name).double(), expected, rtol=0, atol=1e-6)


def test_without_decay_the_average_is_the_policy(policy: DiffusionPolicy, recipe: Recipe) -> None:
    average = WeightAverage(policy, replace(recipe.training, ema_max_decay=0))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1)
    average.update(1000)
    for name, parameter in policy.named_parameters():
        assert torch.equal(average.policy.get_parameter(name), parameter)


def test_the_average_is_a_copy_that_does_not_train(policy: DiffusionPolicy, recipe: Recipe) -> None:
    average = WeightAverage(policy, recipe.training)
    assert not average.policy.training
    assert not any(parameter.requires_grad for parameter in average.policy.parameters())
    own = {parameter.data_ptr() for parameter in policy.parameters()}
    assert not own & {parameter.data_ptr() for parameter in average.policy.parameters()}
