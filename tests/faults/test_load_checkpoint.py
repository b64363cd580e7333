"""``LoadCheckpoint`` reads what hatbus-checkpoint and HAT wrote, stage after stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatbus import Trainer, hookimpl
from hatbus.callbacks import Checkpoint
from hatbus.errors import CheckpointError
from hatbus_quantization import Calibration2QAT, Float2Calibration, Float2QAT, LoadCheckpoint

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant = torch.ao.quantization.QuantStub()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 4, 3))
        self.dequant = torch.ao.quantization.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dequant(self.head(self.body(self.quant(x))))
        return out


def batches(count: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 8, 1, 6, 6, generator=chance)
    return [(x, (x.mean((1, 2, 3)) > 0).long()) for x in inputs]


def train(model: nn.Module, *plugins: Any, steps: int = 6) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = Trainer(model, optimizer, batches(), nn.functional.cross_entropy, plugins)
    trainer.fit(num_steps=steps)
    return trainer.ctx.model


@pytest.mark.parametrize("form", ["hat", "safetensors", "checkpoint", "best", "marked", "run"])
def test_weights_come_from_every_form_of_a_checkpoint(tmp_path: Path, form: str) -> None:
    class Scores:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            ctx.log({"score": float(ctx.global_step_id == 2)})

    kept: dict[str, Tensor] = {}

    class Keeps:
        @hookimpl
        def on_checkpoint_saved(self, ctx: Any, path: Path) -> None:
            if ctx.position.global_step == 3:
                kept.update({n: v.clone() for n, v in ctx.model.state_dict().items()})

    checkpoint = Checkpoint(
        str(tmp_path),
        "float-",
        interval_by="step",
        mode="max",
        monitor_metric_key="score",
        save_hash=False,
    )
    last = train(Net(), Scores(), checkpoint, Keeps())
    torch.save({"state_dict": kept}, tmp_path / "weights.pth.tar")
    path = {
        "hat": tmp_path / "weights.pth.tar",
        "safetensors": tmp_path / "float-weights-best.safetensors",
        "checkpoint": tmp_path / "float-checkpoint-step-3",
        "best": tmp_path / "best",
        "marked": tmp_path / "float-checkpoint-best.pth.tar",
        "run": tmp_path,
    }[form]
    wanted = last.state_dict() if form == "run" else kept
    loaded = LoadCheckpoint(path)(Net()).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in wanted.items())


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    path = folder / "some.pth.tar"
    torch.save({"state_dict": state}, path)
    return path


def test_what_is_missing_or_left_over_is_refused_unless_allowed(tmp_path: Path) -> None:
    state = dict(Net().state_dict())
    state["extra"] = state.pop("body.0.bias")
    path = saved(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"1 missing .*body.0.bias.*allow_miss=True goes on"):
        LoadCheckpoint(path)(Net())
    with pytest.raises(CheckpointError, match=r"1 not in the model \(extra\); ignore_extra=True"):
        LoadCheckpoint(path, allow_miss=True)(Net())
    LoadCheckpoint(path, allow_miss=True, ignore_extra=True)(Net())

    def renamed(found: dict[str, Any]) -> dict[str, Any]:
        return {("body.0.bias" if n == "extra" else n): v for n, v in found.items()}

    LoadCheckpoint(path, renamed)(Net())
    state["head.1.weight"] = torch.zeros(3, 5)
    odd = saved(tmp_path, renamed(state))
    with pytest.raises(CheckpointError, match=r"head.1.weight \(3, 5\), \(3, 64\) in the model"):
        LoadCheckpoint(odd)(Net())
    LoadCheckpoint(odd, ignore_tensor_shape=True)(Net())
    with pytest.raises(CheckpointError, match="none of its weights is in the model"):
        LoadCheckpoint(saved(tmp_path, {"a": torch.ones(1)}), allow_miss=True, ignore_extra=True)(
            Net()
        )
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        LoadCheckpoint(tmp_path / "nowhere")(Net())
    with pytest.raises(CheckpointError, match="is marked 'best'; did the stage before end"):
        LoadCheckpoint(tmp_path / "float-checkpoint-best.pth.tar")(Net())


def test_a_qat_stage_takes_the_ranges_of_a_calibration_and_quantises_by_itself(
    tmp_path: Path,
) -> None:
    calibrated = Float2Calibration()(Net())
    for x, _ in batches():
        calibrated(x)
    path = saved(tmp_path, calibrated.state_dict())
    loaded, turned = LoadCheckpoint(path)(Float2QAT()(Net())), Calibration2QAT()(calibrated)
    x = batches(seed=3)[0][0]
    assert torch.equal(loaded.eval()(x), turned.eval()(x))
