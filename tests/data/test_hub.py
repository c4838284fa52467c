"""Data sets from the hub: its cache serves without a network, and one error says what else to pass."""

import pytest

from visuomotor.data import hub
from visuomotor.data.dataset import load_dataset
from visuomotor.errors import DatasetError

from .synthetic import LENGTHS, write_lerobot

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0" * 40


@pytest.fixture(autouse=True)
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
def test_without_cache_and_network_the_error_says_what_to_pass(monkeypatch, how):
    if how == "unreachable":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
    message = r"lerobot/pusht: expected a folder, or .* got neither \(.*\); pass a folder of LeRobot v3.0, a \.zarr"
    with pytest.raises(DatasetError, match=message) as raised:
        load_dataset("lerobot/pusht")
    assert len(str(raised.value).splitlines()) == 1
