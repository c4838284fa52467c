"""What all tests share."""

import os
from pathlib import Path

import pytest


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


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With `VISUOMOTOR_REQUIRE_SHARED`, as in CI, a skip fails the run: no test of equality is left out unseen."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("VISUOMOTOR_REQUIRE_SHARED") and reporter and reporter.stats.get("skipped"):
        reporter.write_line("\nerror: VISUOMOTOR_REQUIRE_SHARED: expected no skipped test, got those below", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
