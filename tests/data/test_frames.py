"""The frame store: decoded once, whole or not at all."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from functools import partial

import numpy as np
import pytest

from visuomotor.data import frames
from visuomotor.data.frames import Camera, fingerprint, open_frames
from visuomotor.errors import DatasetError

SHAPE = (7, 2, 3, 3)
IMAGES = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)


def camera(calls=None, fails_at=None, mark="a") -> Camera:
    """Seven images in segments of 2, 2, 2 and 1; counts how often each is decoded."""

    def segment(start):
        if calls is not None:
            calls.append(start)
        for row in range(start, min(start + 2, 7)):
            if row == fails_at:
                raise DatasetError(f"row {row} is damaged")
            yield row, IMAGES[row : row + 1]

    return Camera(SHAPE, fingerprint(mark), [partial(segment, start) for start in (0, 2, 4, 6)])


def test_frames_are_decoded_once(cache):
    calls = []
    first = open_frames("front", camera(calls))
    again = open_frames("front", camera(calls))
    np.testing.assert_array_equal(first, IMAGES)
    np.testing.assert_array_equal(again, IMAGES)
    assert sorted(calls) == [0, 2, 4, 6]
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    assert os.listdir(cache / "frames") == [f"{fingerprint('a')}.npy"]


def test_another_fingerprint_is_another_array(cache):
    open_frames("front", camera())
    open_frames("front", camera(mark="b"))
    assert len(os.listdir(cache / "frames")) == 2


@pytest.mark.parametrize("row", [0, 3, 6])
def test_an_error_leaves_nothing(cache, row):
    with pytest.raises(DatasetError, match=f"row {row} is damaged"):
        open_frames("front", camera(fails_at=row))
    assert os.listdir(cache / "frames") == []


def test_an_interrupt_ends_the_other_segments_and_leaves_nothing(cache):
    decoded = []

    def endless():
        while True:
            decoded.append(1)
            yield 0, IMAGES[:1]

    def interrupted():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        open_frames("front", Camera(SHAPE, "mark", [endless, interrupted], threads=2))
    assert os.listdir(cache / "frames") == []


def test_a_row_that_no_segment_yields_is_noticed():
    whole = camera()
    with pytest.raises(AssertionError, match="front: segments do not yield every row once"):
        open_frames("front", Camera(SHAPE, "mark", whole.segments[:-1]))


def test_a_full_disk_is_noticed_before_decoding(cache, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100))
    with pytest.raises(DatasetError, match=r"front: expected .* free for its frames, got .* VISUOMOTOR_CACHE"):
        open_frames("front", camera())


def test_drafts_of_killed_processes_are_deleted(cache):
    (cache / "frames").mkdir()
    for name, age in ((".old.tmp", frames.STALE + 60), (".new.tmp", 60)):
        (cache / "frames" / name).touch()
        past = (cache / "frames" / name).stat().st_mtime - age
        os.utime(cache / "frames" / name, (past, past))
    open_frames("front", camera())
    assert sorted(os.listdir(cache / "frames")) == [".new.tmp", f"{fingerprint('a')}.npy"]


def test_fingerprints_tell_parts_apart():
    array = np.arange(4)
    marks = [fingerprint(*parts) for parts in (("ab",), ("a", "b"), (array,), (array + 1,), (array, "ab"), ())]
    assert len(set(marks)) == len(marks)
    assert fingerprint("a", array) == fingerprint("a", array.copy())


PROCESS = """
import sys, time
import numpy as np
from visuomotor.data.frames import Camera, open_frames
def segment():
    for row in range(50):
        time.sleep(0.01)
        yield row, np.full((1, 8, 8, 3), row, np.uint8)
print("ready", flush=True)
sys.stdin.readline()
frames = open_frames("front", Camera((50, 8, 8, 3), "mark", [segment]))
assert (frames[:, 0, 0, 0] == np.arange(50)).all()
"""


def test_two_processes_may_build_at_once(cache):
    command = [sys.executable, "-c", PROCESS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert os.listdir(cache / "frames") == ["mark.npy"]
