"""Files appear whole or not at all."""

import hashlib
import json
import os

import pytest

from visuomotor.files import (
    HASHES,
    atomic_folder,
    cache_folder,
    find_damage,
    hold,
    write_bytes,
    write_hashes,
    write_json,
)


def names(folder):
    return sorted(os.listdir(folder))


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with atomic_folder(tmp_path / "deep" / "new") as draft:
        (draft / "a").write_text("1")
        assert not (tmp_path / "deep" / "new").exists()
    assert (tmp_path / "deep" / "new" / "a").read_text() == "1"
    assert names(tmp_path / "deep") == ["new"]


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError, match="half way"), atomic_folder(tmp_path / "new") as draft:
        (draft / "a").write_text("1")
        raise RuntimeError("half way")
    assert names(tmp_path) == []


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder_as_it_was(tmp_path, failure):
    target = tmp_path / "run"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(failure), atomic_folder(target) as draft:
        (draft / "a").write_text("new")
        raise failure
    assert names(tmp_path) == ["run"]
    assert (target / "a").read_text() == "old"


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_folder(target) as draft:
        (draft / "new").write_text("new")
    assert names(tmp_path) == ["run"]
    assert names(target) == ["new"]


def test_the_draft_lies_beside_the_target_and_is_hidden(tmp_path):
    with atomic_folder(tmp_path / "run") as draft:
        assert draft.parent == tmp_path  # the same disk: renaming is one step
        assert draft.name.startswith(".")


def test_a_file_is_replaced_or_left(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "file"
    write_bytes(target, b"old")
    write_bytes(target, b"new")
    assert target.read_bytes() == b"new"

    def full_disk(self, other):
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_bytes(target, b"newer")
    assert target.read_bytes() == b"new"
    assert names(tmp_path / "deep") == ["file"]


def test_json_is_indented_and_strict(tmp_path):
    target = tmp_path / "config.json"
    write_json(target, {"a": [1, 2.5, None]})
    assert json.loads(target.read_text()) == {"a": [1, 2.5, None]}
    assert target.read_text().startswith('{\n  "a"')
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(target, {"a": float("nan")})
    assert json.loads(target.read_text()) == {"a": [1, 2.5, None]}
    assert names(tmp_path) == ["config.json"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"VISUOMOTOR_CACHE": "{}/mine", "XDG_CACHE_HOME": "{}/xdg"}, "mine"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/visuomotor"),
        ({"HOME": "{}"}, ".cache/visuomotor"),
    ],
)
def test_where_the_cache_is(tmp_path, monkeypatch, environment, expected):
    for name in ("VISUOMOTOR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert cache_folder() == tmp_path / expected
    assert (tmp_path / expected).is_dir()


@pytest.fixture
def hashed(tmp_path):
    folder = tmp_path / "hashed"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "one").write_bytes(b"1" * 5000)
    (folder / "two").write_bytes(b"")
    write_hashes(folder)
    return folder


def test_hashes_are_those_of_sha256sum(hashed):
    noted = json.loads((hashed / HASHES).read_text())
    assert noted["files"] == {
        "a/one": {"bytes": 5000, "sha256": hashlib.sha256(b"1" * 5000).hexdigest()},
        "two": {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    }
    assert find_damage(hashed) is None


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda folder: (folder / "a/one").write_bytes(b"1" * 10), "a/one has 10 bytes of 5000"),
        (lambda folder: (folder / "a/one").write_bytes(b"1" * 4999 + b"2"), "a/one has been altered (SHA-256 "),
        (lambda folder: (folder / "two").unlink(), "two is missing"),
        (lambda folder: (folder / HASHES).write_text('{"files": 3}'), "hashes.json is damaged"),
        (lambda folder: (folder / HASHES).write_text("{"), "hashes.json is damaged"),
    ],
)
def test_damage_is_found(hashed, damage, found):
    damage(hashed)
    assert str(find_damage(hashed)).startswith(found)


def test_damage_elsewhere_does_not_count(hashed):
    (hashed / "two").write_text("more")
    assert find_damage(hashed, "a") is None
    assert find_damage(hashed, "two") == "two has 4 bytes of 0"


def test_names_in_hashes_do_not_lead_out_of_the_folder(hashed):
    outside = hashed.parent / "secret"
    outside.write_bytes(b"")
    noted = json.loads((hashed / HASHES).read_text())
    noted["files"]["../secret"] = noted["files"]["two"]
    (hashed / HASHES).write_text(json.dumps(noted))
    assert find_damage(hashed) == "../secret is missing"


def test_without_hashes_nothing_is_compared(tmp_path):
    assert find_damage(tmp_path) is None


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of open files are read from /proc")
def test_a_folder_has_reached_the_disk_before_it_appears(tmp_path, monkeypatch):
    synced, there = [], []
    real = os.fsync

    def fsync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        there.append((tmp_path / "new").exists())
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_folder(tmp_path / "new") as draft:
        (draft / "deep").mkdir()
        (draft / "deep" / "a").write_text("1")
    assert synced == [str(draft / "deep"), str(draft / "deep" / "a"), str(draft), str(tmp_path)]
    assert there == [False, False, False, True]


def test_a_file_is_held_by_one(tmp_path):
    held = hold(tmp_path)
    assert held is not None and hold(tmp_path) is None
    os.close(held)
    again = hold(tmp_path)
    assert again is not None
    os.close(again)
