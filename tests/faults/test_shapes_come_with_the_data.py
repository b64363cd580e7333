"""Buffers and parameters whose shape the data decides are saved, resumed and averaged exactly."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from hatbus import Trainer, hookimpl, plugin
from hatbus.callbacks import Checkpoint, ExponentialMovingAverage, Validation
from hatbus.errors import CheckpointError, JobError
from hatbus.loop import structure_changed

torch.set_num_threads(1)

STEPS = 4


class Grows(nn.Module):
    """A buffer that a forward in training gives another shape or type, or makes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(2, 1), kind
        if kind != "registered":
            self.register_buffer("seen", None if kind == "lazy" else torch.zeros(1, 2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        first = inputs.detach()[:1]
        if self.kind == "registered" and not hasattr(self, "seen"):
            self.register_buffer("seen", first.repeat(3, 1))
        if self.kind == "lazy" and self.seen is None:
            self.seen = first.repeat(3, 1)
        if self.kind == "queue" and self.training:
            self.seen = torch.cat([self.seen, first])
        if self.kind == "batch" and self.training:  # 1 row may be taken for many
            self.seen = inputs.detach() + 0.0
        if self.kind == "type" and self.training:
            self.seen = (self.seen + first).double()
        return self.layer(inputs) + self.seen.sum().float() * 0.01


class Counted(nn.Module):
    """Fake quantization of weights whose scales get their number with the first batch."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver

            self.fake = FakeQuantize(
                MovingAveragePerChannelMinMaxObserver,
                quant_min=-128,
                quant_max=127,
                dtype=torch.qint8,
                qscheme=torch.per_channel_symmetric,
                ch_axis=0,
            )
        self.inner, self.layer = nn.Linear(2, 4), nn.Linear(4, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = self.fake(self.inner.weight)
        return self.layer(nn.functional.linear(inputs, weight, self.inner.bias))


def lazies() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(1))


KINDS: dict[str, Callable[[], nn.Module]] = {
    **{kind: lambda kind=kind: Grows(kind) for kind in ("lazy", "queue", "batch", "type")},
    "registered": lambda: Grows("registered"),
    "observers": Counted,
    "lazy modules": lazies,
}


def fitted(
    path: Path, make: Callable[[], nn.Module], steps: int, **options: Any
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model, ema = make(), ExponentialMovingAverage(0.5, 0)
    chance = torch.Generator().manual_seed(1)
    data = [(torch.randn(size, 2, generator=chance), torch.zeros(size, 1)) for size in (4, 4, 3, 2)]
    checkpoint = Checkpoint(str(path), resume="auto", **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    plugins = {"ema": ema, "val": Validation(data), "checkpoint": checkpoint}
    Trainer(model, optimizer, data, nn.functional.mse_loss, plugins).fit(num_steps=steps)
    return model, ema.averages()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore:.*ao")
@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_exactly_twice_and_is_averaged(tmp_path: Path, kind: str) -> None:
    whole, averages = fitted(tmp_path / "a", KINDS[kind], 3 * STEPS)
    fitted(tmp_path / "b", KINDS[kind], STEPS + 1, strict_match=kind not in {"lazy", "registered"})
    fitted(tmp_path / "b", KINDS[kind], 2 * STEPS + 2)
    parts, others = fitted(tmp_path / "b", KINDS[kind], 3 * STEPS)
    one, other = whole.state_dict(), parts.state_dict()
    assert one.keys() == other.keys()
    assert averages.keys() == others.keys() == one.keys()
    for name, value in one.items():
        assert (value.shape, value.dtype) == (other[name].shape, other[name].dtype)
        assert value.equal(other[name]), name
    for name, value in averages.items():
        assert value.shape == one[name].shape
        assert value.equal(others[name]), name


def test_the_average_of_a_lazy_module_begins_with_the_weights_before_the_first_update(
    tmp_path: Path,
) -> None:
    def eager() -> nn.Module:
        torch.manual_seed(5)
        return nn.Linear(2, 1)

    def seeded(*_: Any) -> None:
        torch.manual_seed(5)

    def lazy() -> nn.Module:
        model = nn.LazyLinear(1)
        model.register_forward_pre_hook(seeded, prepend=True)
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fitted(tmp_path / "a", lazy, 1)[1]
    expected = fitted(tmp_path / "b", eager, 1)[1]
    assert found["weight"].equal(expected["weight"])


def test_a_tied_buffer_that_grows_stays_one(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)
            self.one, self.two = nn.Module(), nn.Module()
            self.one.register_buffer("seen", torch.zeros(1, 2))
            self.two.register_buffer("seen", self.one.seen)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.one.seen = self.two.seen = torch.cat([self.one.seen, inputs.detach()[:1]])
            return self.layer(inputs)

    fitted(tmp_path, Tied, 3)
    model, _ = fitted(tmp_path, Tied, 3)
    assert model.one.seen is model.two.seen
    assert model.one.seen.shape == (4, 2)


def test_a_parameter_of_another_shape_is_refused_and_a_buffer_that_did_not_grow(
    tmp_path: Path,
) -> None:
    class Wide(Grows):
        def __init__(self) -> None:
            super().__init__("none")
            self.register_buffer("table", torch.zeros(7))

    class Narrow(Grows):
        def __init__(self) -> None:
            super().__init__("none")
            self.register_buffer("table", torch.zeros(3))

    fitted(tmp_path / "a", Wide, 1)
    with pytest.raises(CheckpointError, match=r"reshaped    table  \(7,\) in the checkpoint"):
        fitted(tmp_path / "a", Narrow, 2)
    fitted(tmp_path / "b", lambda: nn.Linear(2, 1), 1)
    with pytest.raises(CheckpointError, match=r"reshaped    weight  \(1, 2\) in"):
        fitted(tmp_path / "b", lambda: nn.Linear(1, 1), 2)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("kind", ["to_sparse", "to_sparse_csr"])
def test_a_sparse_buffer_is_named_before_the_first_step(kind: str) -> None:
    def fit(*, persistent: bool) -> int:
        model = nn.Linear(2, 1)
        buffer = getattr(torch.eye(2), kind)()
        model.register_buffer("graph", buffer, persistent=persistent)
        data = [(torch.ones(1, 2), torch.ones(1, 1))] * 2
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        listed = [ExponentialMovingAverage()]
        trainer = Trainer(model, optimizer, data, nn.functional.mse_loss, listed)
        return trainer.fit(num_epochs=1).updates

    with pytest.raises(JobError, match=r"ema: 'graph' is torch\.sparse_"):
        fit(persistent=True)
    assert fit(persistent=False) == 2


@plugin(stage="train")
class Prunes:
    """Prunes the first layer at epoch 1, and again when a run is resumed after that."""

    def __init__(self) -> None:
        self.ctx: Any = None
        self.done = False

    @hookimpl
    def on_loop_begin(self, ctx: Any) -> None:
        self.ctx = ctx

    @hookimpl
    def on_epoch_begin(self, epoch_id: int) -> None:
        if epoch_id == 1 and not self.done:
            self.prune()

    def prune(self) -> None:
        self.done = True
        prune.l1_unstructured(self.ctx.model[0], "weight", 0.5)
        structure_changed(self.ctx)

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["done"]:
            self.prune()


@pytest.mark.parametrize("when", ["before", "in the run"])
def test_a_pruned_model_goes_on_exactly_and_stays_pruned(tmp_path: Path, when: str) -> None:
    def run(folder: str, epochs: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        if when == "before":
            prune.l1_unstructured(model[0], "weight", 0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        listed = [Prunes()] if when == "in the run" else []
        checkpoint = Checkpoint(str(tmp_path / folder), resume="auto")
        data = [(torch.ones(4, 3), torch.ones(4, 1))] * 3
        plugins = [*listed, ExponentialMovingAverage(0.5, 0), checkpoint]
        Trainer(model, optimizer, data, nn.functional.mse_loss, plugins).fit(num_epochs=epochs)
        return model.state_dict()

    whole = run("a", 4)
    run("b", 2)
    parts = run("b", 4)
    assert whole["0.weight_mask"].sum() == 6
    assert whole.keys() == parts.keys()
    assert all(value.equal(parts[name]) for name, value in whole.items())
