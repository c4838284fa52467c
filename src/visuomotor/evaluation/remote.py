"""A policy behind `visuomotor serve`, as rollouts want one: `--server`."""

import sys
from dataclasses import replace
from typing import Any

import torch

from visuomotor.config import DiffusionConfig
from visuomotor.errors import ConfigError, mismatch
from visuomotor.serialization import from_json


class RemoteChunks:
    """Sends each batch of a rollout with its noise, so that the server computes what a policy here would.

    Args:
        url: Of the server.
        policy_batch: Rows of the requests to come.

    Raises:
        ConfigError: The server does not answer, or takes no such batches.
    """

    def __init__(self, url: str, policy_batch: int) -> None:
        try:
            import visuomotor_client
        except ModuleNotFoundError as error:
            advice = "in a clone: pip install ./client"
            raise ConfigError(mismatch("--server", "visuomotor-client to be installed", "none", advice)) from error
        self._error = visuomotor_client.RemoteError
        try:
            self._policy = visuomotor_client.RemotePolicy(url, timeout=60)
        except (self._error, ValueError) as error:  # ValueError: a URL that is none
            raise ConfigError(str(error)) from error
        metadata = self._policy.metadata
        self.told: dict[str, Any] = metadata.server
        self.config = from_json(DiffusionConfig, self.told["config"], url)
        if self.config.warm_start < 1:  # other servers than ours may be told so
            print("warm_start: 1 here: a server plans each chunk from noise alone", file=sys.stderr)
            self.config = replace(self.config, warm_start=1.0)
        if policy_batch > metadata.max_batch:
            self.close()
            advice = "choose a smaller one, or serve with a larger --max-batch"
            raise ConfigError(
                mismatch("policy_batch", f"at most the server's {metadata.max_batch}", policy_batch, advice)
            )

    def noise_draws(self) -> int:
        """As `DiffusionPolicy.noise_draws`."""
        return self._policy.metadata.noise_draws

    def predict_action_chunk(self, observation: dict[str, torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
        """As `DiffusionPolicy.predict_action_chunk`.

        Raises:
            ConfigError: The server refuses, or has gone.
        """
        arrays = {name: values.numpy() for name, values in observation.items()}
        try:
            return torch.from_numpy(self._policy.predict_action_chunk(arrays, noise.numpy()))
        except self._error as error:
            raise ConfigError(str(error)) from error

    def close(self) -> None:
        """Leaves the server."""
        self._policy.close()
