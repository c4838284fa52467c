"""Files appear whole or not at all."""

import json
import os

import pytest

from visuomotor.files import atomic_folder, cache_folder, write_bytes, write_json


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
