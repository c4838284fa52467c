"""`visuomotor serve`, from its flags to its exit status."""

import re
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from visuomotor_client import ConnectionLost, RemotePolicy

from visuomotor.cli import main
from visuomotor.policy.checkpoint import load_policy

from ..policy.small import observation, small_batch
from .running import observations, started

SHIPPED = "pusht-keypoints-small"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_it_serves_until_a_signal_and_leaves_with_0(number):
    with started(SHIPPED) as (process, url):
        assert re.fullmatch(r"ws://127\.0\.0\.1:\d+", url)
        remote = RemotePolicy(url)
        assert remote.metadata.policy == SHIPPED
        assert len(remote.metadata.weights_sha256) == 64
        assert remote.select_action(observations(load_policy(SHIPPED).config, 1)[0]).shape == (2,)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "stopped: every client has been told\n", "")
        with pytest.raises(ConnectionLost, match="is it running"):
            remote.reset()


@pytest.mark.slow
def test_the_token_from_a_file_or_the_environment(tmp_path):
    (tmp_path / "token").write_text("from-file\n")
    with started(SHIPPED, "--token-file", str(tmp_path / "token"), VISUOMOTOR_TOKEN="other") as (_, url):
        with pytest.raises(ConnectionLost, match="token: expected"):
            RemotePolicy(url, "other")
        RemotePolicy(url, "from-file").close()
    with started(SHIPPED, VISUOMOTOR_TOKEN="from-environment") as (_, url):
        RemotePolicy(url, "from-environment").close()


@pytest.mark.slow
def test_of_a_run_the_rate_of_its_demonstrations_is_told(tmp_path):
    data = ROOT / "tests" / "data" / "reference" / "keypoints"
    assert main(["train", "debug", "--data", str(data), "--output", str(tmp_path / "run")]) == 0
    with started(str(tmp_path / "run"), "--n-action-steps", "3") as (_, url), RemotePolicy(url) as remote:
        assert (remote.metadata.policy, remote.metadata.fps, remote.metadata.n_action_steps) == ("run", 10.0, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "token: expected one, to listen on 0.0.0.0, got none; set VISUOMOTOR_TOKEN"),
        (["--host", "::"], "token: expected one, to listen on ::"),
        (["--host", "example.com"], "token: expected one, to listen on example.com"),
        (["--token-file", "nowhere"], "No such file or directory: 'nowhere'"),
        (["--token-file", "empty"], "empty: expected a token: one line of printable ASCII, got nothing"),
        (["--token-file", "two"], "two: expected a token: one line of printable ASCII, got other characters"),
        (["--certificate", "two"], "TLS: expected --certificate and --key, got --certificate alone"),
        (["--certificate", "two", "--key", "two"], "two, two: expected a PEM certificate and its key"),
        (["--port", "70000"], "port: expected 0 to 65535, got 70000"),
        (["--max-clients", "0"], "max_clients: expected a positive number, got 0"),
        (["--batch-window", "-1"], "batch_window: expected 0 or more, got -1"),
        (["--batch-window", "nan"], "batch_window: expected 0 or more, got nan"),
        (["--max-message-mb", "inf"], "max_message_mb: expected a positive number, got inf"),
        (["--fps", "0"], "fps: expected a positive number"),
        (["--fps", "nan"], "fps: expected a positive number, got nan"),
        (["--num-inference-steps", "101"], "num_inference_steps: expected 1 to num_train_timesteps"),
        (["--max-batches", "3"], "--max-batches: expected a flag of visuomotor serve, got an unknown one"),
    ],
)
def test_what_cannot_be_served_is_one_line(capsys, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "two").write_text("one\ntwo\n")
    assert main(["serve", SHIPPED, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert message in err


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(capsys):
    with started(SHIPPED) as (_, url):
        assert main(["serve", SHIPPED, "--port", url.rpartition(":")[2]]) == 2
        assert "address already in use" in capsys.readouterr().err


def test_without_its_packages_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "visuomotor.deployment.serving", None)
    assert main(["serve", SHIPPED]) == 2
    assert "pip install ./client '.[serve]'" in capsys.readouterr().err


def test_the_robot_loop_of_the_readme(monkeypatch):
    """As it stands there, with the address of a server that runs and a robot that counts."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "RemotePolicy" in block]
    assert len(block.splitlines()) <= 15
    config = load_policy(SHIPPED).config
    seen = {name: values[0, -1].numpy() for name, values in observation(small_batch(config, 1)).items()}
    moves: list[np.ndarray] = []
    robot = types.SimpleNamespace(
        is_running=lambda: len(moves) < 10,
        observe=lambda: (seen["observation.state"], seen["observation.environment_state"]),
        move_to=moves.append,
    )
    with started(SHIPPED, "--fps", "10", VISUOMOTOR_TOKEN="secret") as (_, url):
        monkeypatch.setenv("VISUOMOTOR_TOKEN", "secret")
        address = re.search(r'"(wss?://[^"]*)"', block).group(1)
        exec(block.replace(address, url), {"robot": robot})
    assert np.shape(moves) == (10, 2) and np.isfinite(moves).all()
