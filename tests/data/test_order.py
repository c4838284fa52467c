import numpy as np
import pytest

from visuomotor.data.order import WindowOrder

ROWS = np.array([3, 5, 7, 11, 13, 17, 19])


def stream(order: WindowOrder, steps: int) -> list[int]:
    return np.concatenate([order.batch(step) for step in range(steps)]).tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_each_epoch_sees_every_row_once(batch_size: int) -> None:
    seen = stream(WindowOrder(ROWS, batch_size, seed=0), steps=42)
    epochs = [seen[i : i + 7] for i in range(0, len(seen) - 6, 7)]
    assert all(sorted(epoch) == ROWS.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_step_does_not_depend_on_those_before_it() -> None:
    order = WindowOrder(ROWS, 3, seed=0)
    straight = [order.batch(step).tolist() for step in range(30)]
    assert [WindowOrder(ROWS, 3, seed=0).batch(step).tolist() for step in reversed(range(30))] == straight[::-1]


def test_the_batch_size_does_not_change_the_order() -> None:
    assert stream(WindowOrder(ROWS, 2, seed=4), 30) == stream(WindowOrder(ROWS, 5, seed=4), 12)


def test_another_seed_is_another_order() -> None:
    assert stream(WindowOrder(ROWS, 7, seed=0), 3) != stream(WindowOrder(ROWS, 7, seed=1), 3)
