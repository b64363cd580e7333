"""The same tests for every device: on a GPU, or with HATBUS_GPU_TESTS_ON=cpu on the host.

Without a GPU they are skipped as a whole. On the host, waits are those that ``hatbus.testing``
counts, so the tests themselves can be tried where there is no GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS is used at all

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is here where there is no such device; torch's own warnings there are no fault."""
    mine = [item for item in items if item.path.is_relative_to(HERE)]
    if not mine:
        return
    from gpu.on_device import DEVICE, is_here

    for item in mine:
        item.add_marker(pytest.mark.filterwarnings("default"))
        if not is_here():
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))
        elif DEVICE == "cpu" and item.get_closest_marker("needs_gpu"):
            item.add_marker(pytest.mark.skip(reason="only a GPU can do this"))


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """float32 is float32: no TF32 in convolutions and products."""
    import torch

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Every operation gives the same bits every time."""
    import torch

    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
