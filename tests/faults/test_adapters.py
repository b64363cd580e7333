"""Adapters on a frozen model: averaged alone, and exported alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import batches
from torch import nn

from hatbus import Trainer
from hatbus.callbacks import Checkpoint, ExponentialMovingAverage
from hatbus.cli import main


class Adapted(nn.Module):
    """A frozen layer and an adapter beside it, named as PEFT names one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(3, 1).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(3, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 1, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_B["default"](self.lora_A["default"](x))


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Adapted, ExponentialMovingAverage]:
    model, ema = Adapted(), ExponentialMovingAverage(0.5, 0, trained_only=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = [ema, Checkpoint(str(tmp_path / "saved"))]
    Trainer(model, optimizer, batches(4), nn.functional.mse_loss, plugins).fit(num_epochs=1)
    return model, ema


def exported(folder: Path, *words: str) -> dict[str, torch.Tensor]:
    target = folder / "out.safetensors"
    assert main(["export", str(folder / "saved"), "--single", str(target), *words]) == 0
    return load_file(target)


ADAPTER = {"lora_A.default.weight", "lora_B.default.weight"}


def test_an_adapter_is_exported_alone_raw_and_averaged(
    trained: tuple[Adapted, ExponentialMovingAverage], tmp_path: Path
) -> None:
    model, ema = trained
    raw = exported(tmp_path, "--only", "*lora_*")
    assert raw.keys() == ADAPTER
    assert all(torch.equal(raw[name], model.state_dict()[name]) for name in ADAPTER)
    averaged = exported(tmp_path, "--only", "lora_A*", "--only", "lora_B*", "--weights", "ema")
    assert averaged.keys() == ADAPTER == ema.averages().keys()
    assert all(torch.equal(averaged[name], ema.averages()[name]) for name in ADAPTER)


def test_the_whole_model_is_exported_with_the_average_of_the_adapter(
    trained: tuple[Adapted, ExponentialMovingAverage], tmp_path: Path
) -> None:
    model, ema = trained
    whole = exported(tmp_path, "--weights", "ema")
    expected = {**model.state_dict(), **ema.averages()}
    assert whole.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in whole.items())


def test_a_pattern_that_matches_nothing_is_refused(
    trained: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(tmp_path / "saved"), "--single", str(tmp_path / "out"), "--only", "lor"]
    assert main(words) != 0
    said = capsys.readouterr().err
    assert "--only is 'lor', which matches no name; such as 'base.bias', 'base.weight', " in said
    assert not (tmp_path / "out").exists()
