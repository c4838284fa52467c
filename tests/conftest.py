"""What all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .hub_server import HubServer


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data: `$VISUOMOTOR_SHARED`, or `../shared`. Skips where there is none."""
    folder = Path(os.environ.get("VISUOMOTOR_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder}: expected the reference data, got nothing; set VISUOMOTOR_SHARED")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VISUOMOTOR_CACHE", str(folder))
    return folder


@pytest.fixture
def hub_server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub of the test's own and an empty cache, for this process and for those that the test starts."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import close_session

    folder = tmp_path_factory.mktemp("hub")
    server, cache = HubServer(folder / "served"), str(folder / "cache")
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", cache)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # huggingface_hub read the environment when it was imported, perhaps long ago.
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
    close_session()  # it holds the proxies of before
    yield server
    server.close()
    close_session()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With `VISUOMOTOR_REQUIRE_SHARED`, as in CI, a skip fails the run: no test of equality is left out unseen."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("VISUOMOTOR_REQUIRE_SHARED") and reporter and reporter.stats.get("skipped"):
        reporter.write_line("\nerror: VISUOMOTOR_REQUIRE_SHARED: expected no skipped test, got those below", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
