"""Batches gathered ahead are those of a plain loop."""

import threading

import numpy as np
import pytest
import torch

from visuomotor.data.dataset import load_dataset
from visuomotor.data.loading import prefetch
from visuomotor.data.order import WindowOrder

from .synthetic import write_lerobot


def test_values_come_in_order_and_ahead_of_the_loop():
    begun, ready = [], threading.Event()

    def gather(step):
        begun.append(step)
        if step == 4:
            ready.set()
        return step * step

    found = prefetch(gather, range(2, 9), ahead=2)
    assert begun == []  # nothing before the first is asked for
    assert next(found) == 4
    assert ready.wait(10)  # step 4 is gathered while the loop still has step 2
    assert 5 not in begun
    assert list(found) == [9, 16, 25, 36, 49, 64]
    assert begun == list(range(2, 9))


def test_an_error_is_raised_at_its_step():
    def gather(step):
        if step == 3:
            raise ValueError("damaged")
        return step

    found = prefetch(gather, range(10))
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="damaged"):
        next(found)


def test_leaving_early_drops_what_was_not_begun():
    begun, go_on = [], threading.Event()

    def gather(step):
        begun.append(step)
        assert step == 0 or go_on.wait(10)

    found = prefetch(gather, range(100), ahead=3)
    next(found)
    go_on.set()
    found.close()
    assert begun in ([0], [0, 1], [0, 1, 2])  # what was under way when the loop left has ended
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loading")]


def test_batches_of_a_run_are_those_of_each_step_alone(tmp_path):
    dataset = load_dataset(write_lerobot(tmp_path, "image"))
    steps = {"observation.image": [-1, 0], "observation.state": [-1, 0], "action": [0, 1, 2]}
    ahead = WindowOrder(dataset.anchors(1), 5, seed=3)
    found = list(prefetch(lambda step: dataset.batch(ahead.batch(step), steps), range(7, 15)))
    for step, batch in zip(range(7, 15), found, strict=True):
        alone = dataset.batch(WindowOrder(dataset.anchors(1), 5, seed=3).batch(step), steps)
        assert list(batch) == list(alone)
        assert all(torch.equal(batch[name], alone[name]) for name in alone)
    assert not np.array_equal(found[0]["action"], found[1]["action"])
