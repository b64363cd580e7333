"""Checkpoints of these tests are written to memory where there is such a folder: fsync is quick."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """Return a folder in memory, for the whole session."""
    place = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(
        prefix="hatbus-", dir=place, ignore_cleanup_errors=True
    ) as path:
        yield Path(path)


@pytest.fixture
def tmp_path(memory: Path) -> Path:
    """Return a new folder in memory."""
    return Path(tempfile.mkdtemp(dir=memory))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
