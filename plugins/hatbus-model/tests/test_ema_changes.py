"""ExponentialMovingAverage of a model that changes: averages stay with their tensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from hatbus import Trainer, hookimpl, plugin
from hatbus.loop import plain_name, structure_changed
from hatbus_model import moving_average
from hatbus_model.ema import ExponentialMovingAverage
from hatbus_model.freeze_module import FreezeModule
from hatbus_model.fuse_bn import FuseBN
from hatbus_model.moving_average import not_finite

torch.set_num_threads(1)
D = 0.5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@plugin(stage="setup")
class Change:
    """Changes the model once; keeps every parameter as it is after each update."""

    def __init__(self, what: Callable[[Any], object], event: str, at: int = 2) -> None:
        self.what, self.event, self.at = what, event, at
        self.after: list[dict[str, torch.Tensor]] = []

    @hookimpl
    def on_step_begin(self, ctx: Any) -> None:
        if self.event == "on_step_begin" and ctx.global_step_id == self.at:
            self._change(ctx)
        self.after.append({n: p.detach().clone() for n, p in ctx.model.named_parameters()})

    @hookimpl
    def on_epoch_begin(self, ctx: Any) -> None:
        if self.event == "on_epoch_begin" and ctx.global_step_id == self.at:
            self._change(ctx)

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        if self.event == "on_step_end" and ctx.global_step_id == self.at - 1:
            self._change(ctx)

    def _change(self, ctx: Any) -> None:
        known = {id(p) for p in ctx.model.parameters()}
        self.what(ctx.model)
        new = [p for p in ctx.model.parameters() if id(p) not in known]
        if new:
            ctx.optimizer.add_param_group({"params": new})


def run(change: Change, *more: object, steps: int = 5) -> tuple[Trainer, ExponentialMovingAverage]:
    ema, model = ExponentialMovingAverage(D, 0), Net()
    seeded = torch.Generator().manual_seed(1)
    data = [(torch.randn(4, 3, generator=seeded), torch.randn(4, 1, generator=seeded))] * 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, data, nn.functional.mse_loss, [change, ema, *more])
    trainer.fit(num_steps=steps)
    change.after.append({n: p.detach().clone() for n, p in model.named_parameters()})
    return trainer, ema


def averaged(values: list[torch.Tensor]) -> torch.Tensor:
    """By hand: ``v = d * v + (1 - d) * m``, beginning with the first."""
    average = values[0]
    for value in values[1:]:
        average = D * average + (1 - D) * value
    return average


def wrapped_in_sequential(model: Net) -> None:
    model.head = nn.Sequential(model.head, nn.Identity())


def new_head(model: Net) -> None:
    model.head = nn.Linear(4, 1)


def other_head(model: Net) -> None:
    model.head = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))


def compiled(model: Net) -> None:
    model.body = torch.compile(model.body, backend="eager")


def pruned(model: Net) -> None:
    prune.l1_unstructured(model.body, "weight", amount=0.5)


def normed(model: Net) -> None:
    parametrizations.weight_norm(model.body)


def without_bias(model: Net) -> None:
    model.body.bias = None


def removed(model: Net) -> None:
    del model.body.bias
    model.body.register_parameter("bias", None)


# what is done to the model; names of tensors that go on, to the names that they had; new tensors
CHANGES = {
    "new head": (new_head, {"body.weight": "body.weight"}, ["head.weight"]),
    "other head": (other_head, {"body.bias": "body.bias"}, ["head.0.weight", "head.1.bias"]),
    "in a container": (wrapped_in_sequential, {"head.0.weight": "head.weight"}, []),
    "compiled part": (compiled, {"body.weight": "body._orig_mod.weight"}, []),
    "pruned": (pruned, {"body.weight_orig": "body.weight", "head.bias": "head.bias"}, []),
    "weight norm": (
        normed,
        {"body.bias": "body.bias"},
        ["body.parametrizations.weight.original0", "body.parametrizations.weight.original1"],
    ),
    "no bias": (without_bias, {"body.weight": "body.weight"}, []),
    "removed bias": (removed, {"body.weight": "body.weight"}, []),
}


@pytest.mark.parametrize("event", ["on_epoch_begin", "on_step_begin", "on_step_end"])
@pytest.mark.parametrize("name", CHANGES)
def test_averages_go_on_with_their_tensors_and_new_ones_begin(name: str, event: str) -> None:
    what, same, new = CHANGES[name]
    trainer, ema = run(change := Change(what, event))
    averages = ema.averages()
    assert averages.keys() == set(map(plain_name, trainer.ctx.model.state_dict()))
    for now, before in same.items():
        values = [found.get(now, found.get(before)) for found in change.after]
        assert torch.allclose(averages[now], averaged(values), rtol=0, atol=1e-6), now
    for now in new:
        values = [found[now] for found in change.after[2:]]
        if event == "on_step_end":  # of the step before
            assert values[0].shape == averages[now].shape
        assert torch.allclose(averages[now], averaged(values), rtol=0, atol=1e-6), now


def test_the_view_and_the_state_hold_what_the_model_has_after_an_unsaid_removal() -> None:
    class Shows:
        @hookimpl
        def on_loop_end(self, ctx: Any) -> None:
            ctx.model.extra = None
            del ctx.model.head
            ctx.model.forward = ctx.model.body
            with ctx.weights.showing("ema"):
                self.shown = ctx.model.body.weight.clone()

    trainer, ema = run(Change(lambda _: None, "never"), shows := Shows())
    assert ema.state_dict()["averages"].keys() == {"body.weight", "body.bias"}
    assert torch.equal(shows.shown, ema.averages()["body.weight"])
    assert not torch.equal(shows.shown, trainer.ctx.model.body.weight)


def test_a_head_that_is_replaced_between_two_fits_begins_an_average_of_its_own() -> None:
    change = Change(lambda _: None, "never")
    trainer, ema = run(change, steps=2)
    trainer.ctx.model.head = nn.Linear(4, 1)
    trainer.ctx.optimizer.add_param_group({"params": list(trainer.ctx.model.head.parameters())})
    del change.after[:]
    trainer.fit(num_steps=4)
    change.after.append({n: p.detach().clone() for n, p in trainer.ctx.model.named_parameters()})
    expected = averaged([found["head.weight"] for found in change.after])
    assert torch.allclose(ema.averages()["head.weight"], expected, rtol=0, atol=1e-6)


class Odd(nn.Module):
    """Buffers that take their shape, kind or first value in forward passes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.line, self.kind, self.step = nn.Linear(3, 1), kind, 0
        first = {"late": None, "infinite": torch.tensor(float("inf"))}
        self.register_buffer("seen", first.get(kind, torch.zeros(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.step += 1
        value = float(self.step)
        if self.kind == "resized":  # as a fake quantisation does it
            self.seen.resize_(4).fill_(value)
        if self.kind == "shrinks":
            self.seen = torch.full((4 if self.step < 3 else 1,), value)
        if self.kind in ("late", "replaced"):
            self.seen = torch.full((1,), value)
        if self.kind == "infinite" and self.step > 1:  # as an observer that has seen nothing
            self.seen.fill_(value)
        return self.line(x)


@pytest.mark.parametrize(
    ("kind", "shape", "values"),
    [
        ("resized", (4,), [1, 2, 3, 4]),
        ("shrinks", (1,), [3, 4]),
        ("late", (1,), [1, 2, 3, 4]),
        ("replaced", (1,), [0, 1, 2, 3, 4]),
        ("infinite", (), [2, 3, 4]),
    ],
)
def test_a_buffer_of_a_new_shape_begins_its_average_anew(
    kind: str, shape: tuple[int, ...], values: list[float]
) -> None:
    model, ema = Odd(kind), ExponentialMovingAverage(D, 0)
    data = [(torch.ones(2, 3), torch.ones(2, 1))] * 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(model, optimizer, data, nn.functional.mse_loss, [ema]).fit(num_steps=4)
    average = ema.averages()["seen"]
    assert tuple(average.shape) == shape
    expected = averaged([torch.tensor(float(v)) for v in values]).expand(shape)
    assert torch.allclose(average, expected, rtol=0, atol=1e-6)


def test_lazy_modules_are_averaged_from_their_first_weights_on() -> None:
    torch.manual_seed(0)
    model, ema = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1)), ExponentialMovingAverage(D, 0)
    seen: list[torch.Tensor] = []

    class Sees:
        @hookimpl
        def on_optimizer_step_begin(self) -> None:
            if not seen:
                seen.append(model[0].weight.detach().clone())

        @hookimpl
        def on_optimizer_step_end(self) -> None:
            seen.append(model[0].weight.detach().clone())

    data = [(torch.ones(2, 3), torch.ones(2, 1))] * 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(model, optimizer, data, nn.functional.mse_loss, [ema, Sees()]).fit(num_epochs=1)
    assert torch.allclose(ema.averages()["0.weight"], averaged(seen), rtol=0, atol=1e-6)


def test_a_fold_goes_on_with_the_average_beside_another_change() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 1, 1))

    @plugin(stage="setup")
    class NewEnd:
        @hookimpl
        def on_step_begin(self, ctx: Any) -> None:
            if ctx.global_step_id == 2:
                ctx.model[2] = nn.Conv1d(4, 1, 1)
                ctx.optimizer.add_param_group({"params": list(ctx.model[2].parameters())})

        @hookimpl
        def on_forward_begin(self, ctx: Any) -> None:
            if ctx.global_step_id == 2:
                self.ema = {n: v.clone() for n, v in ema.averages().items()}
                ema._follow(ctx)
                self.folded = {n: v.clone() for n, v in ema.averages().items()}

    ema, new = ExponentialMovingAverage(D, 0), NewEnd()
    data = [(torch.randn(4, 3, 2), torch.randn(4, 1, 2)) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = [new, FuseBN([[""]], [2], "step"), ema]
    Trainer(model, optimizer, data, nn.functional.mse_loss, plugins).fit(num_epochs=1)
    factor = new.ema["1.weight"] / (new.ema["1.running_var"] + 1e-5).sqrt()
    expected = new.ema["0.weight"] * factor[:, None, None]
    assert torch.allclose(new.folded["0.weight"], expected, rtol=0, atol=1e-6)
    assert new.folded.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


def adapted() -> nn.Module:
    """A frozen model with an adapter beside one layer, as PEFT makes it, and a buffer."""
    model = Net()
    model.requires_grad_(False)
    model.adapter = nn.Linear(4, 1, bias=False)
    model.register_buffer("seen", torch.zeros(1))
    model.forward = lambda x: model.head(y := model.body(x)) + model.adapter(y)
    return model


def averaged_run(*plugins: object, **options: Any) -> tuple[nn.Module, ExponentialMovingAverage]:
    model, ema = adapted(), ExponentialMovingAverage(D, 0, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seeded = torch.Generator().manual_seed(1)
    draw = [torch.randn(4, n, generator=seeded) for n in (3, 1) * 6]
    data = list(zip(draw[::2], draw[1::2], strict=True))
    Trainer(model, optimizer, data, nn.functional.mse_loss, [*plugins, ema]).fit(num_epochs=1)
    return model, ema


def test_frozen_parameters_can_be_left_out_and_show_themselves() -> None:
    whole, every = averaged_run()
    model, some = averaged_run(trained_only=True)
    assert some.averages().keys() == {"adapter.weight", "seen"}
    assert every.averages().keys() == set(whole.state_dict())
    assert torch.equal(some.averages()["adapter.weight"], every.averages()["adapter.weight"])
    with some.shown():
        shown = {n: v.clone() for n, v in model.state_dict().items()}
    for name, value in every.averages().items():
        assert torch.allclose(shown[name], value, rtol=0, atol=1e-6), name


@plugin(stage="setup")
class Trains:
    """Lets the body train before the run begins; what freezes it comes later."""

    @hookimpl
    def on_loop_begin(self, model: nn.Module) -> None:
        model.body.requires_grad_(True)


def test_what_is_unfrozen_in_the_run_is_averaged_as_if_it_had_been_all_along() -> None:
    found = []
    for trained_only in (False, True):
        unfreeze = FreezeModule([["body"]], [0], "step", unfreeze_at=[2])
        _, ema = averaged_run(Trains(), unfreeze, trained_only=trained_only)
        found.append(ema.averages())
    every, some = found
    assert some.keys() == {"body.weight", "body.bias", "adapter.weight", "seen"}
    for name, value in some.items():
        assert torch.allclose(value, every[name], rtol=0, atol=1e-6), name


def test_averages_of_trained_parameters_go_on_from_their_state() -> None:
    model, ema = averaged_run(trained_only=True)
    state = copy.deepcopy(ema.state_dict())
    assert state["averages"].keys() == {"adapter.weight", "seen"}
    again = ExponentialMovingAverage(D, 0, trained_only=True)
    again.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    data = [(torch.ones(4, 3), torch.ones(4, 1))]
    trainer = Trainer(model, optimizer, data, nn.functional.mse_loss, [again])
    trainer.fit(num_epochs=1)
    expected = D * state["averages"]["adapter.weight"] + (1 - D) * model.adapter.weight
    assert torch.allclose(again.averages()["adapter.weight"], expected, rtol=0, atol=1e-6)


def test_what_was_looked_at_once_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking whether a new average is finite waits for the device."""
    looked_at: list[set[str]] = []

    def noting(averages: Any, followed: Any) -> set[str]:
        looked_at.append(set(averages))
        return not_finite(averages, followed)

    class Grows:
        @hookimpl
        def on_step_begin(self, ctx: Any) -> None:
            if ctx.global_step_id == 2:
                ctx.model.register_buffer("seen", torch.full((2,), math.inf))
            if ctx.global_step_id == 3:
                ctx.model.seen.fill_(1.0)
            structure_changed(ctx)

    monkeypatch.setattr(moving_average, "not_finite", noting)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    average = ExponentialMovingAverage(decay=0.5, decay_base=0)
    data = [(torch.randn(4, 3), torch.randn(4, 1))] * 3
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    Trainer(model, optimizer, data, nn.functional.mse_loss, [average, Grows()]).fit(num_epochs=2)
    names = {*model.state_dict()} - {"seen"}
    assert [one for one in looked_at if one] == [names, {"seen"}]
    assert average.averages()["seen"].equal(torch.ones(2))  # it was healed


def test_a_buffer_of_another_type_is_followed() -> None:
    class Changes:
        @hookimpl
        def on_step_begin(self, ctx: Any) -> None:
            kind = torch.float16 if ctx.global_step_id < 3 else torch.bfloat16
            ctx.model.kept = torch.full((1,), 2.0**ctx.global_step_id, dtype=kind)

    model = nn.Linear(3, 1)
    model.register_buffer("kept", torch.ones(1, dtype=torch.float16))
    average = ExponentialMovingAverage(decay=0.5, decay_base=0)
    data = [(torch.randn(4, 3), torch.randn(4, 1))] * 3
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    Trainer(model, optimizer, data, nn.functional.mse_loss, [average, Changes()]).fit(num_epochs=2)
    expected = 1.0
    for step in range(6):
        expected = (expected + 2.0**step) / 2
    assert float(average.averages()["kept"]) == expected
