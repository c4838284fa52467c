"""The queue of one episode."""

import numpy as np
import pytest
from visuomotor_client.queue import ActionQueue


def seen(*numbers: float) -> dict[str, np.ndarray]:
    return {"a": np.array([numbers], np.float32)}


def test_the_first_step_counts_for_those_before_it():
    queue = ActionQueue(3)
    taken = []
    for number in range(4):
        queue.observe(seen(number))
        taken.append(queue.stacked()["a"].tolist())
    assert taken == [[[[0], [0], [0]]], [[[0], [0], [1]]], [[[0], [1], [2]]], [[[1], [2], [3]]]]


def test_clear_forgets():
    queue = ActionQueue(2)
    queue.observe(seen(1))
    queue.actions.append(np.zeros((1, 2)))
    queue.clear()
    assert not queue.actions
    queue.observe(seen(1, 2))
    assert queue.stacked()["a"].tolist() == [[[1, 2], [1, 2]]]


@pytest.mark.parametrize("other", [np.zeros((2, 1), np.float32), np.zeros((1, 1), np.uint8)])
def test_another_shape_or_dtype_is_refused_and_not_taken(other):
    queue = ActionQueue(2)
    queue.observe({"b": np.zeros((1, 1), np.float32)} | seen(1))
    with pytest.raises(ValueError, match=r"a: expected float32 \(1, 1\) as before, got .*; reset when an episode"):
        queue.observe({"b": np.ones((1, 1), np.float32), "a": other})
    assert queue.stacked()["b"].tolist() == [[[0], [0]]]
