"""Windows: offsets in frames, and what happens at the episode's ends."""

import numpy as np
import pytest

from visuomotor.data.windows import steps_from_timestamps, window_rows
from visuomotor.errors import DatasetError


def test_windows_are_clamped_at_both_ends_and_marked():
    # Episodes of rows 0..3 and 4..6.
    rows, is_pad = window_rows(np.array([0, 3, 4, 6]), [-1, 0, 2], np.array([0, 0, 4, 4]), np.array([4, 4, 7, 7]))
    assert rows.tolist() == [[0, 0, 2], [2, 3, 3], [4, 4, 6], [5, 6, 6]]
    assert is_pad.tolist() == [
        [True, False, False],
        [False, False, True],
        [True, False, False],
        [False, False, True],
    ]


def test_seconds_become_frames():
    steps = steps_from_timestamps({"action": [-0.1, 0.0, 0.30000001], "b": [1 / 3]}, 30, ["action", "b"])
    assert steps == {"action": [-3, 0, 9], "b": [10]}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"action": [0.0, 0.15]}, r"'action': expected multiples of 1 / 10 s, within 0.0001 s, got 0.15; .* 0.2$"),
        ({"action": [0.1002]}, r"got 0.1002; the nearest is 0.1$"),
        ({"observation.imgae": [0.0]}, r"'observation.imgae': .* did you mean observation.image\?"),
        ({"action": []}, r"'action': expected one offset or more"),
    ],
)
def test_impossible_offsets_are_refused(wanted, message):
    with pytest.raises(DatasetError, match=message):
        steps_from_timestamps(wanted, 10, ["action", "observation.image", "observation.state"])


def test_the_tolerance_is_a_tenth_of_a_millisecond():
    assert steps_from_timestamps({"action": [0.10009]}, 10, ["action"]) == {"action": [1]}
