"""What every core test starts from."""

import os
import sys
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def _no_modules_of_a_job_left() -> Iterator[None]:
    """A job's `train.py` that one test has imported must not be another test's."""
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if "/docs/examples/" in file or Path(file).name == "train.py":
            del sys.modules[name]
