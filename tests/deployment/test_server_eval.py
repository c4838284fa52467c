"""`visuomotor eval --server` measures what `visuomotor eval` measures."""

import json
from contextlib import nullcontext

import pytest
import torch

from visuomotor.cli import main
from visuomotor.errors import ConfigError
from visuomotor.evaluation.evaluate import evaluate
from visuomotor.policy.checkpoint import save_policy

from ..simulation.acting import random_policy
from .running import Counting, running, started, until

SHORT = {"episodes": 3, "max_steps": 40, "videos": 0, "policy_batch": 4, "progress": False}


def test_a_shipped_policy_does_the_same_through_a_server(capsys, tmp_path):
    """To the last bit: each request has the rows of a batch here, and their noise."""
    flags = ["--episodes", "3", "--seed", "100000", "--max-steps", "120", "--videos", "1", "--policy-batch", "3"]
    here, there = tmp_path / "here", tmp_path / "there"
    assert main(["eval", "pusht-keypoints-small", "--output", str(here), *flags]) == 0
    with started("pusht-keypoints-small", OMP_NUM_THREADS=str(torch.get_num_threads())) as (_, url):
        assert main(["eval", "--server", url, "--output", str(there), *flags]) == 0
    ours, theirs = (json.loads((folder / "eval.json").read_text()) for folder in (here, there))
    assert theirs["episodes"] == ours["episodes"]
    assert any(episode["max_coverage"] > 0.3 for episode in ours["episodes"])
    assert theirs["settings"]["server"] == url
    assert theirs["settings"] | ours["settings"] == theirs["settings"]  # policy, weights and sampler too
    assert f"visuomotor eval --server {url} --episodes 3" in (there / "report.html").read_text()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_inference_steps": 3}, "--server: expected no other sampler, got flags for one"),
        ({"policy_batch": 9}, "policy_batch: expected at most the server's 8, got 9"),
    ],
)
def test_what_the_server_decides_is_not_asked_for(tmp_path, wrong, message):
    with running(Counting(random_policy()), max_batch=8) as server, pytest.raises(ConfigError, match=message):
        evaluate(None, server=server.url, output=tmp_path / "out", **(SHORT | wrong))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("source", "server"), [(None, None), ("pusht-keypoints-small", "ws://127.0.0.1:1")])
def test_a_policy_or_a_server(tmp_path, source, server):
    with pytest.raises(ConfigError, match=r"policy: expected POLICY or --server, got (none|both); give one"):
        evaluate(source, server=server, output=tmp_path / "out", **SHORT)


def test_the_server_is_left_when_all_is_measured_or_refused(tmp_path):
    with running(Counting(random_policy()), max_batch=8) as server:
        for batch in (4, 9):
            with pytest.raises(ConfigError) if batch == 9 else nullcontext():
                evaluate(None, server=server.url, output=tmp_path / "out", **(SHORT | {"policy_batch": batch}))
            until(lambda: not server.server.clients)


def test_a_server_that_says_it_starts_warm_is_asked_for_plans_from_noise(tmp_path, capsys):
    """Ours says 1; for another's rest there is no place in a request."""
    with running(Counting(random_policy(warm_start=0.5))) as server:
        result = evaluate(None, server=server.url, output=tmp_path / "out", **SHORT)
    assert capsys.readouterr().err == "warm_start: 1 here: a server plans each chunk from noise alone\n"
    assert result["settings"]["warm_start"] == 1
    cold = evaluate_here(tmp_path, random_policy())
    assert result["episodes"] == cold["episodes"]


def evaluate_here(tmp_path, policy):
    save_policy(policy, tmp_path / "policy")
    return evaluate(tmp_path / "policy", output=tmp_path / "here", **SHORT)


def test_a_server_that_is_not_there_and_one_that_goes(tmp_path):
    with pytest.raises(ConfigError, match=r"expected a server of Visuomotor, got .*; is it running"):
        evaluate(None, server="ws://127.0.0.1:1", output=tmp_path / "out", **SHORT)
    policy = Counting(random_policy())
    with running(policy) as server:
        policy.result = RuntimeError("broken")
        with pytest.raises(ConfigError, match="the policy failed: RuntimeError"):
            evaluate(None, server=server.url, output=tmp_path / "out", **SHORT)
    assert not list(tmp_path.iterdir())
