"""Work spread over a local Ray of two workers is done as it is without. What uses it is tested here too: one start."""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch

from visuomotor.cli import main
from visuomotor.errors import CheckpointError, ConfigError
from visuomotor.evaluation.evaluate import evaluate
from visuomotor.simulation import cluster as module
from visuomotor.simulation import gathering
from visuomotor.simulation.cluster import Cluster, cluster, shares
from visuomotor.simulation.gathering import gather

from .acting import random_policy


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """A cluster here with two CPUs, to which this process is connected."""
    ray = pytest.importorskip("ray", reason="Ray: expected to be installed, got none; pip install '.[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for left in (2, 1, 0):
            try:
                ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
                break
            except Exception:  # its processes have half a minute to start, which a busy machine may not give them
                ray.shutdown()
                if not left:
                    raise
        yield
        ray.shutdown()


@pytest.fixture
def workers(two_workers, monkeypatch) -> Iterator[Cluster]:
    """Both workers, of one thread each, and a process that has as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with cluster("auto") as workers:
        yield workers
    torch.set_num_threads(before)


def done(workers: Cluster, work: Callable[[Any], Any], parts: list[Any], progress: bool = False) -> list[Any]:
    """The results in the order of the parts."""
    found: dict[int, Any] = {}
    workers.spread(work, parts, found.__setitem__, progress)
    return [found[number] for number in range(len(parts))]


# Parts


@pytest.mark.parametrize(
    ("count", "workers", "size", "lengths"),
    [
        (500, 2, 64, [256, 244]),
        (500, 3, 64, [128, 192, 180]),
        (500, 100, 64, [64] * 7 + [52]),
        (3, 2, 64, [3]),
        (10, 2, 4, [4, 6]),
        (8, 4, 2, [2] * 4),
        (1, 1, 1, [1]),
    ],
)
def test_shares_are_whole_batches(count, workers, size, lengths):
    parts = shares(range(7, 7 + count), workers, size)
    assert [len(part) for part in parts] == lengths
    assert [seed for part in parts for seed in part] == list(range(7, 7 + count))


# Spreading


@pytest.mark.slow
def test_two_parts_run_at_once_in_other_processes(workers, tmp_path, capsys):
    assert workers.workers == 2

    def meet(part: int) -> tuple[int, int, int]:
        (tmp_path / str(part)).touch()
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        return part, os.getpid(), torch.get_num_threads()

    numbers, processes, threads = zip(*done(workers, meet, [5, 3], progress=True), strict=True)
    assert numbers == (5, 3) and threads == (1, 1)
    assert len({*processes, os.getpid()}) == 3
    assert capsys.readouterr().err == "ray: 1 of 2 parts done\nray: 2 of 2 parts done\n"


@pytest.mark.slow
def test_what_comes_back_can_be_written_to(workers):
    (found,) = done(workers, lambda size: [np.zeros(size)], [100_000])
    found[0][:] = 1


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_the_part_of_a_worker_that_dies_is_done_again(workers, tmp_path, times):
    def die_at_first(part: int) -> int:
        tries = tmp_path / f"{part}_{time.time_ns()}"
        tries.touch()
        if part == 1 and len(list(tmp_path.glob("1_*"))) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        return 10 * part

    assert done(workers, die_at_first, [0, 1, 2]) == [0, 10, 20]
    assert len(list(tmp_path.glob("1_*"))) == times + 1


@pytest.mark.slow
def test_workers_that_die_again_and_again_are_told(workers, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 2)
    with pytest.raises(ConfigError, match=r"--ray: expected a Ray cluster that does the work, got WorkerCrashedError"):
        done(workers, lambda part: os.kill(os.getpid(), signal.SIGKILL), [0])


@pytest.mark.slow
def test_what_the_work_raises_is_raised_and_the_rest_is_given_up(workers):
    def work(part: int) -> None:
        for _ in range(600 * part):
            time.sleep(1)
        raise CheckpointError(f"action: expected {part}, got nothing; train again")

    with pytest.raises(CheckpointError, match=r"^action: expected 0, got nothing; train again$"):
        done(workers, work, [0, 1, 2])
    assert done(workers, lambda part: part, [4, 5]) == [4, 5]  # nobody sleeps any more


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda part: 1 / part, r"got .*ZeroDivisionError: division by zero; the same Python, packages"),
        (
            partial(max, Lock()),
            r"--ray: expected a Ray cluster that does the work, got TypeError: .*; a policy of torch",
        ),
    ],
)
def test_what_goes_wrong_otherwise_is_told(workers, work, message):
    with pytest.raises(ConfigError, match=message):
        done(workers, work, [0])


@pytest.mark.slow
def test_a_cluster_without_room(two_workers, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with (
        pytest.raises(ConfigError, match=r"expected a node with 3 CPUs, got \[\{'CPU': 2.0, 'GPU': 0\}\]; set OMP_NUM"),
        cluster("auto"),
    ):
        pass
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with cluster("auto") as workers:
        assert workers.workers == 1
    with pytest.raises(ConfigError, match="expected a node with 2 CPUs and a GPU"), cluster("auto", "cuda:0"):
        pass


# Before there is a cluster


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", "--ray: expected host:port, ray://host:port, auto or local, got 'nonsense'; 6379 is"),
        ("127.0.0.1:1", r"expected a Ray cluster at 127\.0\.0\.1:1, got .*refused.*; start one there with `ray start"),
        ("ray://[::1]:1", r"expected a Ray cluster at ray://\[::1\]:1, got "),
        ("auto", r"expected a Ray cluster at 127\.0\.0\.1:2, got "),
    ],
)
def test_an_address_where_no_cluster_is(monkeypatch, address, message):
    ray = pytest.importorskip("ray", reason="Ray: expected to be installed, got none; pip install '.[ray]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    with pytest.raises(ConfigError, match=message), cluster(address):
        pass


def test_without_ray(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["eval", "pusht-keypoints-small", "--output", str(tmp_path / "out"), "--episodes", "1", "--ray"]
    assert main(command) == 2
    said = "error: --ray: expected Ray to be installed, got no module ray; pip install 'visuomotor[ray]', here"
    assert capsys.readouterr().err.startswith(said)
    assert not list(tmp_path.iterdir())


# What is spread


def figures(folder: Path) -> dict[str, Any]:
    """eval.json without what may differ, and the videos' bytes."""
    content = json.loads((folder / "eval.json").read_text())
    content["settings"].pop("ray", None)
    videos = {path.name: path.read_bytes() for path in (folder / "videos").iterdir()}
    return {name: value for name, value in content.items() if name != "seconds"} | {"videos": videos}


@pytest.mark.slow
def test_an_evaluation_is_the_same_as_without(workers, tmp_path):
    """To the last bit. Episodes end at different times, so that batches are made up otherwise than without."""
    flags = ["--episodes", "20", "--policy-batch", "8", "--max-steps", "140", "--videos", "1"]
    here, there = tmp_path / "here", tmp_path / "there"
    assert main(["eval", "pusht-keypoints-small", "--output", str(here), *flags]) == 0
    assert main(["eval", "pusht-keypoints-small", "--output", str(there), *flags, "--ray"]) == 0
    assert json.loads((there / "eval.json").read_text())["settings"]["ray"] == "auto"
    assert figures(there) == figures(here)
    episodes = figures(here)["episodes"]
    assert len({episode["steps"] for episode in episodes}) > 3
    assert {len(part) for part in shares(range(20), 2, 8)} == {8, 12}


@pytest.mark.slow
def test_gathered_episodes_are_the_same_as_without(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "WAVE", 4)
    policy, seeds, options = random_policy(), range(1_000_000, 1_000_010), {"steps_after": 5, "max_steps": 24}
    here, _ = gather(policy, seeds, 2, tmp_path / "here", **options)
    write, written = gathering._write_wave, []

    def fail_at_the_third(file: Path, *wave: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(file.name)
        write(file, *wave)

    with monkeypatch.context() as broken:
        broken.setattr(gathering, "_write_wave", fail_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            gather(policy, seeds, 2, tmp_path / "there", ray="auto", **options)
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(written)
    there, seconds = gather(policy, seeds, 2, tmp_path / "there", ray="auto", **options)
    assert seconds > 0 and [len(episodes) for episodes in there] == [10, 10]
    for ours, theirs in zip(here, there, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one.seed, one.attempt, one.coverages) == (other.seed, other.attempt, other.coverages)
            np.testing.assert_array_equal(one.states, other.states)
            np.testing.assert_array_equal(one.actions, other.actions)


def test_a_server_has_batches_of_its_own(tmp_path):
    with pytest.raises(ConfigError, match="--ray: expected no --server, got one; a server has batches of its own"):
        evaluate(None, server="ws://127.0.0.1:1", ray="auto", output=tmp_path / "out")
