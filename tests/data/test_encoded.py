"""Frames that stay encoded are indexed as an array."""

import numpy as np
import pytest

from visuomotor.data import statistics
from visuomotor.data.encoded import EncodedFrames

IMAGES = np.arange(40 * 2 * 3 * 3).reshape(40, 2, 3, 3).astype(np.uint8)


@pytest.mark.parametrize(
    "rows",
    [
        3,
        np.int64(-1),
        slice(None),
        slice(5, 20, 3),
        slice(4, 4),
        np.array([7, 7, 2]),
        np.array([[39, 0], [1, -40], [0, 5]]),
        np.arange(40)[::-1],
    ],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 3])
def test_frames_are_those_of_an_array(rows, threads):
    found = EncodedFrames(IMAGES.shape, lambda rows: IMAGES[rows], threads)[rows]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, IMAGES[rows])


def test_each_row_is_decoded_once_and_in_order():
    asked = []

    def pick(rows):
        asked.append(rows.tolist())
        return IMAGES[rows]

    EncodedFrames(IMAGES.shape, pick, threads=2)[np.array([30, 2, 2, 9, 31, 1, 0, 3, 32])]
    assert sorted(asked) == [[0, 1, 2, 3], [9, 30, 31, 32]]


def test_rows_beyond_the_end_and_errors_of_the_decoder_are_raised():
    def fail(rows):
        raise OSError("damaged")

    frames = EncodedFrames(IMAGES.shape, fail)
    assert len(frames) == 40
    with pytest.raises(IndexError):
        frames[40]
    with pytest.raises(OSError, match="damaged"):
        frames[:12]


def test_statistics_read_a_few_frames_at_a_time(monkeypatch):
    asked = []

    def pick(rows):
        asked.append(len(rows))
        return IMAGES[rows]

    monkeypatch.setattr(statistics, "BYTES", 6 * IMAGES[0].nbytes)
    found = statistics.describe(EncodedFrames(IMAGES.shape, pick, threads=1))
    assert max(asked) == 6
    assert sum(asked) == 40 + 1  # one more to learn how large a frame is
    for name, value in statistics.describe(IMAGES).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)
