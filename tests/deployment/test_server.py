"""A policy on the network does what it does in the process, for each client apart."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from visuomotor_client import RemotePolicy, RequestRefused
from visuomotor_client.protocol import array_from, pack, unpack
from websockets.sync.client import connect

from .running import Running, counting, in_process, observations, running, until

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""Frames that are encoded together, and requests that are computed together, may differ in their last bits."""


def ask(connection, kind: str, number: int = 1, **fields) -> dict:
    connection.send(pack({"type": kind, "id": number, **fields}))
    return unpack(connection.recv(30))


# Acting


@pytest.mark.parametrize("cameras", [0, 1])
def test_actions_are_those_of_the_policy_in_the_process(cameras):
    with running(counting(cameras=cameras)) as server, RemotePolicy(server.url) as remote:
        steps = observations(server.policy.config, 11)
        for seed in (3, 4, 3):
            remote.reset(seed)
            actions = [remote.select_action(step) for step in steps]
            difference = np.abs(np.subtract(actions, in_process(server.policy.policy, seed, steps))).max()
            assert difference <= (1e-5 if cameras else 0)  # alone, without a frame that is encoded: the same bits
        assert server.policy.rows == [1] * 9  # a call for four actions, and no other


def test_the_server_can_keep_the_queues():
    """A request of `action`, for clients that hold nothing."""
    with running() as server, connect(server.url) as connection:
        connection.recv(30)
        steps = observations(server.policy.config, 11)
        for seed in (3, 4, 3):
            assert ask(connection, "reset", seed=seed) == {"type": "reset", "id": 1, "seed": seed}
            replies = [ask(connection, "action", observation={n: v[None] for n, v in step.items()}) for step in steps]
            actions = [array_from(reply["action"], "action")[0] for reply in replies]
            np.testing.assert_allclose(actions, in_process(server.policy.policy, seed, steps), **CLOSE)


def test_robots_in_lock_step_are_episodes_of_the_seeds_that_follow():
    with running() as server, RemotePolicy(server.url) as remote:
        episodes = [observations(server.policy.config, 6, seed) for seed in range(3)]
        remote.reset(7)
        actions = []
        for step in zip(*episodes, strict=True):
            actions.append(remote.select_action({name: np.stack([one[name] for one in step]) for name in step[0]}))
        assert np.shape(actions) == (6, 3, 3)
        for row, steps in enumerate(episodes):
            expected = in_process(server.policy.policy, 7 + row, steps)
            np.testing.assert_allclose(np.array(actions)[:, row], expected, **CLOSE)


def test_noise_may_be_given():
    with running() as server, RemotePolicy(server.url) as remote:
        (step,) = observations(server.policy.config, 1)
        stacked = {name: np.stack([values, values]) for name, values in step.items()}
        noise = np.random.default_rng(0).standard_normal((remote.metadata.noise_draws, 1, 8, 3), np.float32)
        first, again = (remote.predict_action_chunk(stacked, noise) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert first.shape == (4, 3)
        assert np.abs(first - remote.predict_action_chunk(stacked)).max() > 1e-3


def test_a_seed_of_the_servers_choice_can_be_used_again():
    with running() as server, RemotePolicy(server.url) as remote:
        (step,) = observations(server.policy.config, 1)
        first, seed = remote.select_action(step), remote.seed
        remote.reset()
        assert remote.seed != seed
        assert np.abs(remote.select_action(step) - first).max() > 1e-3
        remote.reset(seed)
        np.testing.assert_array_equal(remote.select_action(step), first)


def test_two_clients_do_not_mix():
    with running() as server, RemotePolicy(server.url) as one, RemotePolicy(server.url) as two:
        ours, theirs = (observations(server.policy.config, 9, seed) for seed in (1, 2))
        one.reset(1)
        two.reset(2)
        pairs = [(one.select_action(a), two.select_action(b)) for a, b in zip(ours, theirs, strict=True)]
        np.testing.assert_allclose([a for a, _ in pairs], in_process(server.policy.policy, 1, ours), **CLOSE)
        np.testing.assert_allclose([b for _, b in pairs], in_process(server.policy.policy, 2, theirs), **CLOSE)


def test_what_clients_are_told_of_the_policy():
    with running(max_batch=8) as server, RemotePolicy(server.url) as remote:
        told = remote.metadata
        assert (told.policy, told.weights_sha256, told.fps) == ("small", "0" * 64, 10.0)
        assert told.features == {"observation.images.a": (3, 32, 40), "observation.state": (2,)}
        assert told.cameras == ("observation.images.a",)
        assert (told.n_obs_steps, told.n_action_steps, told.horizon, told.action_shape) == (2, 4, 8, (3,))
        assert (told.noise_draws, told.max_batch) == (server.policy.noise_draws(), 8)


# Batches


def ask_at_once(server: Running, count: int, kinds: tuple[type, ...] = (np.uint8,)) -> None:
    """Holds the network while `count` clients ask; each gets what the policy in the process gives."""
    server.policy.go.clear()
    server.policy.entered.clear()

    def act(seed: int) -> None:
        with RemotePolicy(server.url) as remote:
            steps = observations(server.policy.config, 1, seed)
            if kinds[seed % len(kinds)] is np.float32:
                steps[0]["observation.images.a"] = (steps[0]["observation.images.a"] / 255).astype(np.float32)
            remote.reset(seed)
            action = remote.select_action(steps[0])
        np.testing.assert_allclose([action], in_process(server.policy.policy, seed, steps), **CLOSE)

    with ThreadPoolExecutor(count) as pool:
        first = pool.submit(act, 0)
        try:
            assert server.policy.entered.wait(30)  # the network is busy with the first
            others = [pool.submit(act, seed) for seed in range(1, count)]
            until(lambda: len(server.server._batcher._waiting) == count - 1)
        finally:
            server.policy.go.set()  # or a failure would wait for ever
        for future in (first, *others):
            future.result(30)


def test_requests_that_wait_share_a_call():
    with running() as server:
        ask_at_once(server, 6)
        assert server.policy.rows == [1, 5]
        assert server.metric("visuomotor_network_calls_total") == 2
        assert server.metric("visuomotor_rows_total") == 6


def test_a_call_has_a_limit():
    with running(max_batch=3) as server:
        ask_at_once(server, 6)
        assert server.policy.rows == [1, 3, 2]


def test_images_of_bytes_and_of_numbers_do_not_share_a_call():
    with running() as server:
        ask_at_once(server, 5, (np.uint8, np.float32))  # which compares the actions
        assert sum(server.policy.rows) == 5 and len(server.policy.rows) >= 3


def test_a_request_waits_for_those_that_come_within_the_window():
    with running(batch_window=20) as server, RemotePolicy(server.url) as one, RemotePolicy(server.url) as two:
        (step,) = observations(server.policy.config, 1)
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(remote.select_action, step) for remote in (one, two)]
            [future.result(10) for future in futures]  # all clients wait: nobody waits for the window's end
        assert server.policy.rows == [2]


def test_one_client_alone_waits_for_nobody():
    with running(batch_window=20) as server, RemotePolicy(server.url, timeout=10) as remote:
        remote.select_action(observations(server.policy.config, 1)[0])


# Requests that are refused


def wrong_requests(config) -> list[tuple[dict, str]]:
    (step,) = observations(config, 1)
    good = {name: np.stack([values, values])[None] for name, values in step.items()}
    image, state = "observation.images.a", "observation.state"
    noise = np.zeros((1, 1, 8, 3), np.float32)
    array = {"dtype": "float32", "shape": [1, 2, 2], "data": bytes(16)}
    return [
        ({"type": "train"}, "type: expected one of ['reset', 'chunk', 'action'], got 'train'"),
        ({"type": ["chunk"]}, "type: expected one of"),
        ({"type": "chunk", "id": "a"}, "id: expected a whole number, got 'a'"),
        ({"type": "reset", "seed": -1}, "seed: expected 0 to 9223372036854775807, or null, got -1"),
        ({"type": "reset", "seed": True}, "seed: expected 0 to"),
        ({"type": "reset", "sed": 1}, "reset: expected only ['seed'], got ['sed']"),
        ({"type": "chunk"}, f"observation: expected ['{image}', '{state}'], got []"),
        ({"type": "chunk", "observation": {state: good[state]}}, f"got ['{state}']; send exactly these"),
        ({"type": "chunk", "observation": good | {"x": noise}}, "'x']; send exactly these"),
        ({"type": "chunk", "observation": good | {state: 5}}, f"{state}: expected an array"),
        ({"type": "chunk", "observation": good | {state: array | {"dtype": "object"}}}, "expected dtype uint8 or"),
        ({"type": "chunk", "observation": good | {state: array | {"data": b"123"}}}, "expected 16 bytes for float32"),
        ({"type": "chunk", "observation": good | {state: array | {"shape": [2**62, 2**62]}}}, "bytes for float32"),
        ({"type": "chunk", "observation": good | {state: array | {"shape": [1, 0, 2]}}}, "positive sizes"),
        ({"type": "chunk", "observation": good | {state: good[state][0]}}, f"{state}: expected (B, 2, 2) with B = 1"),
        (
            {"type": "chunk", "observation": good | {image: good[image].transpose(0, 1, 3, 4, 2)}},
            f"{image}: expected (B, 2, 3, 32, 40), got (1, 2, 32, 40, 3); move the channels first",
        ),
        ({"type": "chunk", "observation": good | {image: good[image] / 1.0}}, "expected uint8, or float in [0, 1]"),
        ({"type": "chunk", "observation": good | {state: good[image]}}, f"{state}: expected (B, 2, 2)"),
        (
            {"type": "chunk", "observation": good | {state: np.zeros((1, 2, 2), np.uint8)}},
            f"{state}: expected float32 or float64, got uint8",
        ),
        ({"type": "chunk", "observation": good | {state: good[state] * np.nan}}, f"{state}: expected finite numbers"),
        ({"type": "chunk", "observation": good | {state: np.full((1, 2, 2), 1e300)}}, "expected finite numbers"),
        (
            {"type": "chunk", "observation": {name: values.repeat(9, 0) for name, values in good.items()}},
            "expected at most 8 rows, got 9",
        ),
        ({"type": "chunk", "observation": good, "noise": noise[..., 0]}, "noise: expected float32 (K, B, Tp, Da)"),
        ({"type": "chunk", "observation": good, "noise": noise + np.inf}, "noise: expected finite numbers"),
        ({"type": "chunk", "observation": good, "options": {"prefix": 1}}, "options: expected none"),
        ({"type": "action", "observation": good}, f"{image}: expected (B, 3, 32, 40), got (1, 2, 3, 32, 40)"),
    ]


def test_a_bad_request_is_told_what_is_wrong_and_nothing_is_computed():
    with running(max_batch=8) as server, connect(server.url) as connection:
        connection.recv(30)
        cases = wrong_requests(server.policy.config)
        for number, (request, message) in enumerate(cases):
            connection.send(pack({"id": number} | request))
            reply = unpack(connection.recv(30))
            assert reply["type"] == "error" and message in reply["message"], request
            assert reply["id"] == (request.get("id", number) if "id" not in request else None)
        assert server.policy.rows == []
        assert ask(connection, "reset", seed=5)["seed"] == 5  # the connection stands


def test_the_client_raises_what_the_server_says():
    with running(max_batch=2) as server, RemotePolicy(server.url) as remote:
        (step,) = observations(server.policy.config, 1)
        with pytest.raises(RequestRefused, match="expected at most 2 rows, got 3"):
            remote.select_action({name: np.stack([values] * 3) for name, values in step.items()})
        remote.reset(1)
        remote.select_action(step)


def test_what_the_network_does_wrong_is_told_to_those_who_asked(caplog):
    with running() as server, RemotePolicy(server.url) as remote:
        (step,) = observations(server.policy.config, 1)
        server.policy.result = float("nan")
        with pytest.raises(RequestRefused, match="action: expected finite numbers, got NaN or infinity"):
            remote.select_action(step)
        server.policy.result = RuntimeError("out of memory at 0x1234")
        with pytest.raises(RequestRefused, match=r"chunk: the policy failed: RuntimeError$"):
            remote.select_action(step)
        assert "out of memory" in caplog.text
        server.policy.result = None
        remote.reset(1)
        np.testing.assert_allclose([remote.select_action(step)], in_process(server.policy.policy, 1, [step]), **CLOSE)
        assert server.metric("visuomotor_requests_total", kind="chunk", outcome="failed") == 2
