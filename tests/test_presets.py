import pytest

from visuomotor.config import Recipe, from_json, to_json
from visuomotor.errors import ConfigError
from visuomotor.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_recipe_that_survives_json(name: str) -> None:
    recipe = preset(name)
    assert from_json(Recipe, to_json(recipe), name) == recipe


def test_the_published_recipe() -> None:
    policy, training = preset("pusht-image").policy, preset("pusht-image").training
    assert (policy.horizon, policy.n_obs_steps, policy.n_action_steps, policy.drop_n_last_frames) == (16, 2, 8, 7)
    assert (policy.crop_shape, policy.use_group_norm, policy.pretrained_backbone_weights) == ((84, 84), True, None)
    assert (policy.down_dims, policy.spatial_softmax_num_keypoints) == ((512, 1024, 2048), 32)
    assert (policy.noise_scheduler_type, policy.num_train_timesteps, policy.prediction_type) == ("DDPM", 100, "epsilon")
    assert (training.batch_size, training.optimizer_lr, training.steps) == (64, 1e-4, 200_000)
    assert training.augmentation == "none"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"got 'pusht-imag-small'; did you mean pusht-image-small\?"):
        preset("pusht-imag-small")
