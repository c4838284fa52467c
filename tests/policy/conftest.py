"""What policy tests share. They run on one thread: their networks are too small to share out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from visuomotor.policy.lerobot_export import save_lerobot

from .lerobot_folders import small, write_legacy


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A small policy with LeRobot's processors, that the test may change."""
    save_lerobot(small(), tmp_path / "new")
    return tmp_path / "new"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The same with its statistics among the weights."""
    return write_legacy(small(), tmp_path / "old")
