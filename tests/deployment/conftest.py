"""What all tests of servers share."""

import pytest


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUOMOTOR_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
