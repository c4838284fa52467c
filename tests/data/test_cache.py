"""The frame store's folder: its limit, what goes first, and the command."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from visuomotor.cli import main
from visuomotor.data import cache as folder
from visuomotor.data.frames import Camera, open_frames
from visuomotor.errors import ConfigError

SIZE = 128 + 10 * 8 * 8 * 3  # bytes of a store with its header


def store(name: str, used: float) -> None:
    """A store that was last used at a time, and is not in use."""
    frames = np.full((10, 8, 8, 3), 7, np.uint8)
    open_frames(f"camera {name}", Camera(frames.shape, name, [lambda: iter([(0, frames)])]), f"set {name}")
    os.utime(folder.folder() / f"{name}.json", (used, used))


def limit(monkeypatch, stores: float) -> None:
    described = sum(path.stat().st_size for path in folder.folder().glob("*.json"))
    monkeypatch.setenv("VISUOMOTOR_CACHE_LIMIT", repr((stores * SIZE + described + 0.5) / 1e9))


def names() -> list[str]:
    return [found.path.stem for found in folder.stores()]


def test_stores_say_what_they_are(cache):
    store("a", 1000)
    store("b", 500)
    found = folder.stores()
    assert [one.path for one in found] == [cache / "frames/b.npy", cache / "frames/a.npy"]
    assert [(one.camera, one.source, one.shape, one.kind, one.size, one.last_used) for one in found] == [
        ("camera b", "set b", (10, 8, 8, 3), "decoded", SIZE, 500),
        ("camera a", "set a", (10, 8, 8, 3), "decoded", SIZE, 1000),
    ]


def test_using_a_store_makes_it_the_last_to_go():
    for name, used in (("a", 1000), ("b", 2000)):
        store(name, used)
    open_frames("camera a", Camera((10, 8, 8, 3), "a", []))
    assert names() == ["b", "a"]


def test_the_least_recently_used_make_room(monkeypatch):
    for name, used in (("a", 3000), ("b", 1000), ("c", 2000)):
        store(name, used)
    limit(monkeypatch, 3.5)
    assert folder.make_room(SIZE // 2)
    assert names() == ["b", "c", "a"]
    assert folder.make_room(2 * SIZE)
    assert names() == ["a"]
    assert sorted(os.listdir(folder.folder())) == ["a.json", "a.npy"]


def test_stores_in_use_stay(monkeypatch):
    for name, used in (("a", 1000), ("b", 2000), ("c", 3000)):
        store(name, used)
    held = open_frames("camera a", Camera((10, 8, 8, 3), "a", []))
    os.utime(folder.folder() / "a.json", (1000, 1000))
    limit(monkeypatch, 3)
    assert folder.make_room(SIZE)
    assert names() == ["a", "c"]
    assert not folder.make_room(3 * SIZE)  # c alone would not be enough: it stays as well
    assert names() == ["a", "c"]
    del held
    assert folder.make_room(3 * SIZE)
    assert names() == []


HOLDER = """
import sys
from visuomotor.data.frames import Camera, open_frames
frames = open_frames("camera a", Camera((10, 8, 8, 3), "a", []))
print("ready", flush=True)
sys.stdin.readline()
print(int(frames.sum()), flush=True)
"""


def test_another_process_holds_its_stores_and_outlives_their_deletion(monkeypatch, capsys):
    store("a", 1000)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER], **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        monkeypatch.setenv("VISUOMOTOR_CACHE_LIMIT", "0")
        assert not folder.make_room(1)
        assert names() == ["a"]
        assert main(["cache", "clear"]) == 0
        assert capsys.readouterr().out == "deleted: 1, 0.0 MB\n"
        assert os.listdir(folder.folder()) == []
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"{7 * 10 * 8 * 8 * 3}\n"
    assert process.returncode == 0


def test_drafts_of_killed_processes_are_deleted(monkeypatch):
    drafts = {".killed.tmp": folder.DRAFT + 60, ".new.tmp": 0, ".written.tmp": folder.DRAFT + 60}
    for name, age in drafts.items():
        path = folder.folder() / name
        path.touch()
        past = path.stat().st_mtime - age
        os.utime(path, (past, past))
    lock = folder.hold(folder.folder() / ".written.tmp")
    folder.make_room(0)
    assert sorted(os.listdir(folder.folder())) == [".new.tmp", ".written.tmp"]
    os.close(lock)


def test_the_default_limit_is_half_of_what_could_be_free(monkeypatch):
    store("a", 1000)
    held = sum(path.stat().st_size for path in folder.folder().iterdir())
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**9}))
    assert folder.limit() == (10**9 + held) // 2
    monkeypatch.setenv("VISUOMOTOR_CACHE_LIMIT", "2.5")
    assert folder.limit() == 2_500_000_000


@pytest.mark.parametrize("given", ["much", "-1", "nan", "5 GB"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch, given):
    monkeypatch.setenv("VISUOMOTOR_CACHE_LIMIT", given)
    with pytest.raises(ConfigError, match=f"VISUOMOTOR_CACHE_LIMIT: expected a number of GB, 0 or more, got '{given}'"):
        folder.limit()


def test_the_command_lists_and_clears(capsys, cache):
    store("a", 1000)
    store("b", 2000)
    (cache / "frames/c.npy").write_bytes(b"of an earlier version")
    assert main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    rows = [re.split(r" {2,}", line.strip()) for line in out.splitlines() if "decoded" in line]
    assert [(row[0], row[1], row[2], row[4], row[-1]) for row in rows] == [
        ("?", "?", "?", "0.0 MB", rows[0][-1]),
        ("camera b", "10", "8x8x3", "0.0 MB", "set b"),
        ("camera a", "10", "8x8x3", "0.0 MB", "set a"),
    ]
    assert f"3 in {cache / 'frames'}: 0.0 MB of at most " in out
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "deleted: 3, 0.0 MB\n"
    assert os.listdir(cache / "frames") == []
