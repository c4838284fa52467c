import numpy as np
import pytest

from visuomotor.data.order import WindowOrder, run_leaders, shared_frames

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


@pytest.mark.parametrize("together", [2, 3, 4, 100])
def test_windows_that_stay_together_are_each_seen_once_an_epoch(together: int) -> None:
    rows = np.array([3, 4, 5, 6, 7, 20, 21, 22, 23, 40])
    seen = stream(WindowOrder(rows, 5, seed=0, together=together), steps=60)
    epochs = [seen[i : i + 10] for i in range(0, len(seen), 10)]
    assert all(sorted(epoch) == rows.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > min(together, 8)  # orders differ, and so do the cuts


def test_runs_are_of_the_length_asked_for() -> None:
    rows = np.arange(100, 1100)
    seen = WindowOrder(rows, 1000, seed=0, together=4).batch(0)
    assert (np.diff(seen.reshape(-1, 4)) == 1).sum() >= 3 * 250 - 1  # one run may lie over the end
    assert abs(np.corrcoef(seen[:-4:4], seen[4::4])[0, 1]) < 0.2


def test_frames_are_shared_within_a_run_and_not_between_runs() -> None:
    rows = np.array([5, 6, 7, 6, 9, 10])
    leaders, (first, index) = run_leaders(rows), shared_frames(rows, np.stack([rows - 1, rows], axis=1))
    assert leaders.tolist() == [0, 0, 0, 3, 4, 4]
    frames = np.stack([rows - 1, rows], axis=1).ravel()[first]
    assert sorted(frames.tolist()) == [4, 5, 5, 6, 6, 7, 8, 9, 10]
    assert frames[index].tolist() == np.stack([rows - 1, rows], axis=1).tolist()
    assert leaders[first // 2][index].tolist() == np.repeat(leaders[:, None], 2, 1).tolist()


def test_the_frame_that_stands_in_before_an_episode_is_encoded_once() -> None:
    first, index = shared_frames(np.array([0]), np.array([[0, 0]]))
    assert (first.tolist(), index.tolist()) == ([0], [[0, 0]])
