"""Data sets from the hub: what is downloaded and from which revision, and what is done without a network."""

import os
import subprocess
import sys

import numpy as np
import pytest

from visuomotor.data import hub
from visuomotor.data.dataset import load_dataset
from visuomotor.errors import DatasetError

from .synthetic import LENGTHS, edit_info, picture, write_legacy, write_lerobot

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0" * 40
NAME = "someone/things"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_names_on_the_hub():
    assert hub.is_name("lerobot/pusht")
    assert hub.is_name("some-one/data_set.v2")
    for name in ("pusht", "/lerobot/pusht", "./pusht", "../pusht", "a/b/c", "~/pusht", "lerobot/pusht "):
        assert not hub.is_name(name)


@pytest.mark.parametrize("revision", ["v3.0", "main"])
def test_the_cache_serves_without_a_network(hub_cache, revision):
    repository = hub_cache / "datasets--someone--things"
    write_lerobot(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / revision).write_text(COMMIT)
    assert len(load_dataset("someone/things")) == sum(LENGTHS)


@pytest.mark.parametrize("how", ["offline", "unreachable"])
def test_without_cache_and_network_the_error_says_what_to_pass(hub_cache, monkeypatch, how):
    if how == "unreachable":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
    message = r"lerobot/pusht: expected a folder, or .* got neither \(.*\); pass a folder of LeRobot v3.0, a \.zarr"
    with pytest.raises(DatasetError, match=message) as raised:
        load_dataset("lerobot/pusht")
    assert len(str(raised.value).splitlines()) == 1


@pytest.fixture
def served(hub_server):
    """The folder of the repository's revisions."""
    folder = hub_server.folder / "datasets" / NAME
    folder.mkdir(parents=True)
    return folder


DATA = [f"data/chunk-{file:03d}/file-000.parquet" for file in range(2)]
VIDEOS = [f"videos/observation.image/chunk-{file:03d}/file-000.mp4" for file in range(2)]
META = ["meta/episodes/chunk-000/file-000.parquet", "meta/info.json", "meta/tasks.parquet"]


def test_a_whole_data_set_is_downloaded_once(served, hub_server):
    write_lerobot(served / "v3.0", "video")
    (served / "v3.0/README.md").write_text("not needed")
    found = load_dataset(NAME)
    for row, image in enumerate(found.frames["observation.image"]):
        assert np.abs(image.astype(int) - picture(row)).mean() < 3
    assert hub_server.downloaded() == sorted([*DATA, *VIDEOS, *META])
    hub_server.requests.clear()
    assert len(load_dataset(NAME)) == sum(LENGTHS)
    assert hub_server.downloaded() == []


def test_some_episodes_download_their_files_only(served, hub_server):
    write_lerobot(served / "main", "video")
    assert load_dataset(NAME, episodes=[3, 2]).arrays["index"].tolist() == list(range(8, 18))
    assert hub_server.downloaded() == sorted([DATA[1], VIDEOS[1], *META])
    hub_server.requests.clear()
    load_dataset(NAME, episodes=[0])
    assert hub_server.downloaded() == [DATA[0], VIDEOS[0]]


def test_some_episodes_of_an_old_format_download_their_files_only(served, hub_server):
    write_legacy(served / "v2.1", "v2.1", "video")
    assert load_dataset(NAME, episodes=[3]).arrays["index"].tolist() == [14, 15, 16, 17]
    assert [file for file in hub_server.downloaded() if not file.startswith("meta/")] == [
        "data/chunk-001/episode_000003.parquet",
        "videos/chunk-001/observation.image/episode_000003.mp4",
    ]


def newest(folder):
    write_lerobot(folder)


def old(folder):
    write_legacy(folder, "v2.1")


def oldest(folder):
    write_legacy(folder, "v2.0")


def ancient(folder):
    write_lerobot(folder)
    edit_info(folder, codebase_version="v1.6")


def without_data(folder):
    folder.mkdir()
    (folder / "README.md").write_text("The data are under the tags.")


@pytest.mark.parametrize(
    ("revisions", "version"),
    [
        ({"v3.0": newest, "main": old, "v2.1": old}, "v3.0"),
        ({"main": newest, "v2.1": old}, "v3.0"),
        ({"main": old}, "v2.1"),
        ({"main": oldest, "v2.0": oldest}, "v2.0"),
        ({"main": oldest, "v2.1": old, "v2.0": oldest}, "v2.1"),
        ({"main": without_data, "v2.1": old, "v2.0": oldest}, "v2.1"),
        ({"main": ancient, "v2.0": oldest}, "v2.0"),
        ({"v2.0": oldest}, "v2.0"),
    ],
)
def test_the_newest_format_is_taken(served, revisions, version):
    for revision, write in revisions.items():
        write(served / revision)
    assert load_dataset(NAME).demonstrations.version == f"LeRobot {version}"


def test_a_format_that_is_not_read_is_named(served):
    ancient(served / "main")
    with pytest.raises(DatasetError, match=r"info\.json: codebase_version: expected v3\.0, got v1\.6; .* not read"):
        load_dataset(NAME)


def test_a_revision_is_taken_as_asked(served, hub_server):
    newest(served / "v3.0")
    old(served / "before")
    assert load_dataset(NAME, revision="before").demonstrations.version == "LeRobot v2.1"
    commit = next(key for key in hub_server.revisions("datasets", NAME) if len(key) == 40)
    assert len(load_dataset(NAME, revision=commit)) == sum(LENGTHS)
    with pytest.raises(
        DatasetError, match=r"neither \(after: 404 Client Error\. .*Revision Not Found for url: .*; pass"
    ):
        load_dataset(NAME, revision="after")


def test_local_sources_have_no_revision(tmp_path):
    message = "revision: expected a name on the Hugging Face hub with it, got .*; leave `revision` out"
    for source in (write_lerobot(tmp_path / "set"), "pusht-demonstrations", "some/pusht.zarr", "a/b/c"):
        with pytest.raises(DatasetError, match=message):
            load_dataset(source, revision="main")


@pytest.mark.parametrize("how", ["offline", "gone"])
def test_what_the_cache_holds_needs_no_network(served, hub_server, monkeypatch, how):
    write_lerobot(served / "main", "video")
    assert len(load_dataset(NAME, episodes=[2, 3])) == 10
    hub_server.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "offline")
    found = load_dataset(NAME, episodes=[2])
    assert found.arrays["index"].tolist() == list(range(8, 14))
    assert found.frames["observation.image"].shape[0] == 6
    with pytest.raises(
        DatasetError, match=r"someone/others: expected a folder, or .* in its cache, got neither \(v3\.0: "
    ):
        load_dataset("someone/others")


def test_what_the_cache_lacks_is_named_without_a_network(served, hub_server, monkeypatch):
    write_lerobot(served / "main")
    load_dataset(NAME, episodes=[2, 3])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match=r"1 file\(s\) are missing \(data/chunk-000/file-000\.parquet\)"):
        load_dataset(NAME, episodes=[0])


def test_an_unknown_repository_and_a_refusal_are_errors_of_ours(served, hub_server):
    with pytest.raises(DatasetError, match=r"someone/nothing: .* neither \(v3\.0: 404 .*Repository Not Found for url"):
        load_dataset("someone/nothing")
    write_lerobot(served / "main")
    hub_server.fail = lambda request: 403 if request.endswith(".parquet") else None
    with pytest.raises(DatasetError, match=r"someone/things: .* 403 Forbidden"):
        load_dataset(NAME)


def test_names_of_files_are_no_patterns(served, hub_server):
    folder = write_lerobot(served / "main")
    edit_info(folder, data_path="data/*[{chunk_index}]{file_index}.parquet")
    for file in range(2):
        (folder / DATA[file]).rename(folder / f"data/*[{file}]0.parquet")
    load_dataset(NAME, episodes=[0])
    assert [file for file in hub_server.downloaded() if file.startswith("data")] == ["data/*[0]0.parquet"]


@pytest.mark.slow
def test_another_process_finds_the_hub_by_its_environment(served, hub_server):
    write_lerobot(served / "main")
    program = f"import visuomotor; print(len(visuomotor.load_dataset({NAME!r}, episodes=[0])))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.stdout == f"{LENGTHS[0]}\n"
