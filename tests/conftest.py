"""What every core test starts from."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a worker, said before anybody imports torch
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that a developer has set must not decide what a test sees."""
    for name in [name for name in os.environ if name.startswith("HATBUS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Return the repository's root."""
    return Path(__file__).resolve().parent.parent
