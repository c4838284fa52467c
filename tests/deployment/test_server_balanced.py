"""Several servers behind a load balancer: each client has one, and another one after its own is lost."""

from contextlib import ExitStack

import numpy as np
import pytest
from visuomotor_client import ConnectionLost, RemotePolicy

from .balancing import balanced
from .running import in_process, observations, running

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""Requests that are computed together may differ in their last bits."""


def test_sessions_stay_with_their_server_and_move_when_it_is_lost():
    with running() as first, running() as second, balanced(first.port, second.port) as balancer, ExitStack() as open_:
        clients = [open_.enter_context(RemotePolicy(balancer.url)) for _ in range(4)]
        assert list(balancer.chosen.values()) == [[0], [1], [0], [1]]
        steps = [observations(first.policy.config, 6, seed) for seed in range(4)]

        def act(numbers: list[int]) -> None:
            for number in numbers:
                clients[number].reset(number)
            actions = [[clients[number].select_action(steps[number][k]) for number in numbers] for k in range(6)]
            for place, number in enumerate(numbers):
                expected = in_process(first.policy.policy, number, steps[number])
                np.testing.assert_allclose([row[place] for row in actions], expected, **CLOSE)

        act([0, 1, 2, 3])
        assert len(first.policy.rows) == len(second.policy.rows) == 4  # two clients, two chunks each
        first.ask_to_stop()
        assert first.ended()
        with pytest.raises(ConnectionLost, match=r"the server is shutting down .*call reset\(\) to connect again"):
            clients[0].predict_action_chunk({name: np.stack([one, one]) for name, one in steps[0][0].items()})
        act([0, 1, 2, 3])  # each begins with a reset
        assert list(balancer.chosen.values()) == [[0, 1], [1], [0, 1], [1]]
        assert len(second.policy.rows) == 4 + 8
