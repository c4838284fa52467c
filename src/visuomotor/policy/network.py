"""The trained parts of a policy: encoders of what is observed, and the denoising network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from visuomotor.config import DiffusionConfig
from visuomotor.policy.transformer import DiffusionTransformer
from visuomotor.policy.unet import ConditionalUnet1d
from visuomotor.policy.vision import RgbEncoder, load_pretrained


class DiffusionModel(nn.Module):
    """Encoders and denoiser. Everything in and out is normalised."""

    def __init__(self, config: DiffusionConfig, pretrained: bool):
        super().__init__()
        self.config = config
        cameras = config.image_features
        size = sum(f.shape[0] for f in (config.state_feature, config.env_state_feature) if f is not None)
        if cameras:
            separate = config.use_separate_rgb_encoder_per_camera
            encoders = [RgbEncoder(config) for _ in range(len(cameras) if separate else 1)]
            if pretrained and config.pretrained_backbone_weights:
                for encoder in encoders:
                    load_pretrained(encoder.backbone, config.pretrained_backbone_weights)
            self.rgb_encoder = nn.ModuleList(encoders) if separate else encoders[0]
            size += encoders[0].feature_dim * len(cameras)
        action_size = config.output_features["action"].shape[0]
        if config.denoiser == "unet":  # LeRobot's name
            self.unet = ConditionalUnet1d(config, action_size, size * config.n_obs_steps)
        else:
            self.transformer = DiffusionTransformer(config, action_size, size * config.n_obs_steps)

    @property
    def denoiser(self) -> ConditionalUnet1d | DiffusionTransformer:
        """The denoising network: (x (B, Tp, Da), step (B,), global_cond (B, G)) -> (B, Tp, Da)."""
        return self.unet if self.config.denoiser == "unet" else self.transformer

    def global_cond(self, observation: Mapping[str, Tensor], image_features: Tensor | None = None) -> Tensor:
        """What the denoiser is told of the observation: per step state, key points of each camera, environment state.

        Args:
            observation: States (B, To, D); images (B, To, C, h, w), cropped.
            image_features: Of the images, which then are not looked at.

        Returns:
            (B, To * numbers a step).
        """
        parts = []
        if self.config.state_feature is not None:
            parts.append(observation["observation.state"])
        if self.config.image_features:
            parts.append(self.image_features(observation) if image_features is None else image_features)
        if self.config.env_state_feature is not None:
            parts.append(observation["observation.environment_state"])
        return torch.cat(parts, dim=-1).flatten(1)

    def image_features(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The key points of all cameras side by side: images (B, n, C, h, w), cropped -> (B, n, numbers a step)."""
        cameras = [observation[name] for name in self.config.image_features]
        steps = cameras[0].shape[:2]
        if isinstance(self.rgb_encoder, nn.ModuleList):
            features = [
                encoder(_nhwc(images.flatten(0, 1))) for encoder, images in zip(self.rgb_encoder, cameras, strict=True)
            ]
        else:  # one pass over all cameras, in LeRobot's order: batch, step, camera
            stacked = _nhwc(torch.stack(cameras, dim=2).flatten(0, 2))
            features = list(self.rgb_encoder(stacked).unflatten(0, (*steps, len(cameras))).flatten(0, 1).unbind(1))
        return torch.cat(features, dim=-1).unflatten(0, steps)


def _nhwc(images: Tensor) -> Tensor:
    """The same (B, C, H, W) with channels last in memory, which convolutions on CPUs and GPUs prefer."""
    return images.contiguous(memory_format=torch.channels_last)
