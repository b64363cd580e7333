"""Without being told, a run takes the accelerator that is there, or that the model is on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_trainer

from hatbus.errors import JobError
from hatbus.parallel.device import own_device, placed

META = torch.device("meta")


class On(torch.nn.Module):
    """Says that its parameters are on these devices."""

    def __init__(self, *devices: str) -> None:
        super().__init__()
        self.devices = devices

    def parameters(self, recurse: bool = True) -> Any:
        return [torch.empty(0, device=META)] + [Somewhere(d) for d in self.devices]

    def to(self, *_args: Any, **_more: Any) -> Any:
        raise AssertionError("it was moved")


class Somewhere:
    """A parameter on a device that this machine need not have."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two of CUDA's, and those that were made the process's own."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_auto_is_the_gpu_where_there_is_one_and_the_local_ranks_own(
    gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = torch.nn.Linear(1, 1)
    assert own_device("auto", host, 0, 1) == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("auto", host, 3, 4) == torch.device("cuda:1")
    assert own_device("auto", On("cuda:0"), 3, 4) == torch.device("cuda:1")
    assert gpus == [torch.device("cuda:0"), *[torch.device("cuda:1")] * 2]
    assert own_device("cpu", host, 0, 1) == torch.device("cpu")


def test_auto_is_where_the_model_was_put(gpus: list[torch.device]) -> None:
    for place in ("cuda:1", "mps:0"):
        assert own_device("auto", On(place), 0, 1) == torch.device(place)
    assert gpus == []
    spread = On("cuda:0", "cuda:1")
    assert placed(spread, own_device("auto", spread, 0, 1), "auto") is spread
    with pytest.raises(AssertionError, match="it was moved"):
        placed(spread, torch.device("cuda:1"), "cuda:1")


def test_without_a_gpu_it_is_the_cpu_and_asking_for_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tiny_trainer().ctx.device == torch.device("cpu")
    with pytest.raises(JobError, match="torch sees no GPU; accepted: 'auto', 'cpu'"):
        tiny_trainer(device="cuda")
