"""Validation, averages and checkpoints together: where other trainers have their worst bugs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from hatbus import Context, Trainer, hookimpl
from hatbus.callbacks import (
    Checkpoint,
    ExponentialMovingAverage,
    FuseBN,
    MeanTeacher,
    MeanTeacherValidation,
    Validation,
)
from hatbus.cli import main
from hatbus.data.loaders import loader

ROWS = 22
HALVES = ("student", "teacher")


def rows(seed: int) -> TensorDataset:
    inputs = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


class Net(nn.Module):
    """Random numbers in training, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(inputs))


class Draws:
    """A callback of a validation that moves the random state, and may fail in a batch."""

    def __init__(self, fails_at: int = -1) -> None:
        self.left = fails_at

    @hookimpl
    def on_batch_end(self) -> None:
        torch.rand(3)
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("midway")


def run_of(*validations: object, folder: Path, exact: bool, **options: Any) -> Trainer:
    """Six batches an epoch, with an average and a checkpoint."""
    torch.manual_seed(0)
    model = Net()
    data: Any = loader(rows(0), 4) if exact else DataLoader(rows(0), 4, shuffle=True)
    options = {"save_interval": 5, "interval_by": "step", "resume": "auto", **options}
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        data,
        nn.functional.mse_loss,
        [ExponentialMovingAverage(0.9, 2), *validations, Checkpoint(str(folder), **options)],
    )


def end_of(run: Trainer) -> dict[str, Any]:
    """All that the end of a run is made of."""
    run.fit(num_epochs=4)
    average = run.bus.members["ema"].plugin.state_dict()["averages"]  # type: ignore[attr-defined]
    model = {name: value.clone() for name, value in run.ctx.model.state_dict().items()}
    return {**model, **{f"ema {name}": value.clone() for name, value in average.items()}}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("exact", [True, False], ids=["hatbus loader", "shuffling DataLoader"])
def test_a_run_ends_in_the_same_bits_whatever_is_validated(tmp_path: Path, exact: bool) -> None:
    held_out = DataLoader(rows(1), 8, shuffle=True)  # draws from the global generator
    without = end_of(run_of(folder=tmp_path / "without", exact=exact))

    def validated(name: str, *callbacks: object, **options: Any) -> dict[str, Any]:
        validation = Validation(held_out, callbacks=list(callbacks) or [Draws()], **options)
        return end_of(run_of(validation, folder=tmp_path / name, exact=exact))

    by_step = {"interval_by": "step"}
    assert same(validated("every epoch"), without)
    assert same(validated("every step", val_interval=1, **by_step), without)
    assert same(validated("every 4 steps", val_interval=4, **by_step), without)
    with pytest.raises(RuntimeError, match="midway"):
        validated("raising", Draws(fails_at=11), val_interval=4, **by_step)
    names = [path.name for path in (tmp_path / "raising").glob("checkpoint-step-*")]
    assert [name.rpartition("-")[0] for name in sorted(names)] == [
        "checkpoint-step-10",
        "checkpoint-step-15",
        "checkpoint-step-5",
    ]
    assert same(validated("raising", Draws(), val_interval=4, **by_step), without)


class Shown:
    """Keeps what a validation sees of the model's weights, by step."""

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, torch.Tensor]] = {}

    @hookimpl
    def on_batch_end(self, ctx: Context, model: nn.Module) -> None:
        step = ctx.outer.position.global_step  # type: ignore[attr-defined]
        self.by_step[step] = {n: p.detach().clone() for n, p in model.named_parameters()}


class Raw:
    """Keeps the trained weights, by step."""

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, torch.Tensor]] = {}

    @hookimpl
    def on_optimizer_step_end(self, ctx: Context, model: nn.Module) -> None:
        copied = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.by_step[ctx.position.global_step] = copied


@pytest.mark.parametrize(
    ("when", "numbers", "steps"),
    [
        ({"save_interval": 4, "save_on_train_end": False}, [4, 8, 12], [4, 8, 12]),
        ({"interval_by": "epoch", "save_interval": 1, "save_on_train_end": False}, [1, 2], [6, 12]),
        ({"save_interval": None}, [14], [14]),
    ],
    ids=["step", "epoch", "loop end"],
)
def test_the_average_is_validated_and_raw_weights_are_saved(
    tmp_path: Path, when: dict[str, Any], numbers: list[int], steps: list[int]
) -> None:
    shown, raw = Shown(), Raw()
    often = Validation(loader(rows(1), 8), callbacks=[shown], val_interval=1, interval_by="step")
    run = run_of(often, raw, folder=tmp_path, exact=True, **when)
    run.fit(num_steps=14)
    saved = sorted(tmp_path.glob("checkpoint-*/"), key=lambda one: one.stat().st_mtime_ns)
    assert sorted(int(one.name.split("-")[2]) for one in saved) == numbers
    for step, folder in zip(steps, saved, strict=True):
        model = load_file(folder / "model.safetensors")
        assert same({n: model[n] for n in raw.by_step[step]}, raw.by_step[step])
        taken = {"resume": str(folder), "drop_plugin_state": ["validation"]}
        resumed = run_of(folder=tmp_path / "resumed", exact=True, **taken)
        resumed.fit(num_steps=step)
        average = resumed.bus.members["ema"].plugin.state_dict()["averages"]
        validated = shown.by_step[step]
        assert same({n: average[n] for n in validated}, validated)
        assert not any(validated[n].equal(raw.by_step[step][n]) for n in validated)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = Net(), Net()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.student(inputs)


def test_the_metrics_of_student_and_teacher_are_those_found_by_hand() -> None:
    torch.manual_seed(0)
    model, data = Pair(), loader(rows(1), 8)
    halves = {half: MeanTeacherValidation(half, data_loader=data, name=half) for half in HALVES}
    run = Trainer(
        model,
        torch.optim.SGD(model.student.parameters(), lr=0.05),
        loader(rows(0), 4),
        nn.functional.mse_loss,
        {"mean_teacher": MeanTeacher(0.5, 0), **halves},
    )
    run.fit(num_epochs=2)
    inputs, target = rows(1).tensors
    with torch.no_grad():
        by_hand = {
            half: float((getattr(model, half).eval()(inputs) - target).square().mean())
            for half in HALVES
        }
    assert by_hand["student"] != by_hand["teacher"]
    for half in HALVES:
        assert float(run.ctx.latest[f"{half}/loss"]) == pytest.approx(by_hand[half], rel=1e-6)


MEAN_LOSS = {
    "metric_update_func": lambda metrics, batch, outs, losses: metrics[0].update(
        losses["loss"], len(outs)
    ),
    "metrics": ["loss"],
}


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
        self.head = nn.Linear(4, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(inputs[:, None])[:, :, 0])


def quantized(model: nn.Module) -> nn.Module:
    """Weights of linear layers as 8-bit integers."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            scale = module.weight.detach().abs().max() / 127
            module.weight.data = (module.weight / scale).round() * scale
    return model


def test_a_fused_and_quantized_copy_is_validated_and_the_model_stays_as_it_is() -> None:
    seen: list[list[str]] = []

    class Sees:
        @hookimpl
        def on_loop_begin(self, model: nn.Module) -> None:
            seen.append([type(module).__name__ for module in model.body])

    losses = {}
    for name, pipeline in {
        "plain": None,
        "fused": FuseBN([[""]], [0], "step"),
        "both": [FuseBN([["body"]], [0], "step"), quantized],
    }.items():
        torch.manual_seed(0)
        model = Convolutions()
        run = Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.05),
            loader(rows(0), 4),
            nn.functional.mse_loss,
            [
                Validation(
                    loader(rows(1), 8),
                    callbacks=[{"use": "metric_updater", **MEAN_LOSS}, Sees()],
                    model_convert_pipeline=pipeline,
                )
            ],
        )
        run.fit(num_epochs=2)
        losses[name] = float(run.ctx.latest["val/loss"])
        assert isinstance(model.body[1], nn.BatchNorm1d)
    assert [one[1] for one in seen] == 2 * ["BatchNorm1d"] + 4 * ["Identity"]
    assert losses["fused"] == pytest.approx(losses["plain"], rel=1e-5)
    assert losses["both"] != losses["fused"]
    assert losses["both"] == pytest.approx(losses["fused"], rel=0.2)


class NewTensors(TorchDispatchMode):
    """Notes the bytes of the largest tensor that some operation made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        old = {id(one) for one in tree_leaves((args, kwargs))}
        is_view = any(r.alias_info is not None for r in func._schema.returns)
        for one in tree_leaves(found):
            if isinstance(one, torch.Tensor) and id(one) not in old and not is_view:
                self.largest = max(self.largest, one.untyped_storage().nbytes())
        return found


@pytest.mark.parametrize("average", [True, False], ids=["average", "trained model"])
def test_a_validation_makes_no_tensor_as_large_as_a_weight(average: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 1000), nn.Linear(1000, 1))
    big = model[0].weight.nbytes
    run = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=1e-3),
        loader(rows(0), 2),
        nn.functional.mse_loss,
        [*[ExponentialMovingAverage(0.9, 2)] * average, Validation(loader(rows(1), 1))],
    )
    run.fit(num_steps=3)
    pointers = [p.data_ptr() for p in model.parameters()]
    with NewTensors() as made:
        run.ctx.emit.validate(run.ctx, "counted")
    assert 0 < made.largest < big
    assert [p.data_ptr() for p in model.parameters()] == pointers
    with NewTensors() as made:
        nn.Linear(3, 1000).weight.detach().clone()
    assert made.largest >= big


class Tied(nn.Module):
    """Two layers with one weight, in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.to(torch.bfloat16)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs.to(torch.bfloat16))).sum(1, keepdim=True).float()


@pytest.mark.parametrize("model", [Net, Tied])
def test_exported_averages_are_what_the_view_shows(
    model: type[nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = model()
    plugins = {
        "mean": ExponentialMovingAverage(decay=0.5),
        "checkpoint": Checkpoint(str(tmp_path / "saved")),
    }
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = Trainer(net, optimizer, loader(rows(1), 4), nn.functional.mse_loss, plugins)
    trainer.fit(num_epochs=1)
    target = tmp_path / "out.safetensors"
    export = ["export", str(tmp_path / "saved"), "--single", str(target)]
    assert main([*export, "--weights", "mean"]) == 0
    with trainer.ctx.weights.showing("ema"):
        shown = {n: v.clone() for n, v in net.state_dict().items()}
    found = load_file(target)
    assert found.keys() == shown.keys()
    assert all(torch.equal(found[n], v) and found[n].dtype == v.dtype for n, v in shown.items())
    assert main(export) == 0
    found = load_file(target)
    assert all(torch.equal(found[n], v) for n, v in net.state_dict().items())
    assert not all(torch.equal(found[n], v) for n, v in shown.items())
    assert main([*export, "--weights", "ema"]) == 4
    assert "--weights is 'ema'; " in (told := capsys.readouterr().err)
    assert "holds 'raw', 'mean'" in told


def test_averages_that_have_not_begun_are_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Net()
    plugins = {
        "ema": ExponentialMovingAverage(start_step=100),
        "checkpoint": Checkpoint(str(tmp_path / "saved")),
    }
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    Trainer(net, optimizer, loader(rows(1), 4), nn.functional.mse_loss, plugins).fit(num_epochs=1)
    target = tmp_path / "out.safetensors"
    export = ["export", str(tmp_path / "saved"), "--single", str(target), "--weights", "ema"]
    assert main(export) == 4
    assert "'ema' had no averages yet" in capsys.readouterr().err
    assert not target.exists()
