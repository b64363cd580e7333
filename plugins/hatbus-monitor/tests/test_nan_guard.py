"""NanGuard names the first bad tensor, wherever it is."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from hatbus import hookimpl, plugin
from hatbus.errors import JobError, NonFiniteError
from hatbus_monitor.first_bad import bad_count, described
from hatbus_monitor.nan_guard import NanGuard

NAN = float("nan")


class Net(nn.Module):
    """Three layers; the middle one can be told to go wrong."""

    def __init__(self, bad: str = "") -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(5, 8), Middle(bad), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)))


class Middle(nn.Module):
    def __init__(self, bad: str) -> None:
        super().__init__()
        self.bad, self.inner, self.calls = bad, nn.Linear(8, 8), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.bad == "output" and self.calls >= 4:
            return self.inner(x) * torch.tensor([1.0, NAN, *[1.0] * 6])
        if self.bad == "gradient" and self.calls >= 4:
            return self.inner(x) + torch.sqrt(x * 0)  # finite forward, infinite backward
        return self.inner(x)


def said(run: Any) -> str:
    with pytest.raises(NonFiniteError) as caught:
        run.fit(num_epochs=1)
    return str(caught.value)


def test_a_finite_run_is_left_alone(trainer, events) -> None:
    plain = type(events)()
    trainer([NanGuard(), events], model=None).fit(num_epochs=2)
    trainer([plain]).fit(num_epochs=2)
    assert events.losses == plain.losses


def test_bad_batch_is_named(trainer, data) -> None:
    batches = data()
    batches[2][0][3, 1] = NAN
    text = said(trainer([NanGuard()], batches))
    assert "step 2: the first tensor that is not finite is the batch, entry '0'" in text
    assert "of shape (8, 5): 1 of 40 entries are nan" in text


def test_task_of_a_bad_batch_is_named(trainer, data) -> None:
    batches = data()
    batches[1][0][0, 0] = float("inf")
    text = said(trainer([NanGuard()], {"a": data(), "b": batches}))
    assert "step 1: the first tensor that is not finite is the batch of task 'b', entry '0'" in text
    assert "are inf" in text


def test_first_module_with_a_bad_output_is_named(trainer) -> None:
    text = said(trainer([NanGuard()], model=Net("output")))
    assert "step 3" in text
    assert "the output of 'body' (Middle): of shape (8, 8): 8 of 64 entries are nan" in text


def test_bad_loss_of_finite_outputs_is_named(trainer) -> None:
    text = said(trainer([NanGuard()], loss=lambda outs, target: {"ce": outs.sum() * NAN}))
    assert "is loss 'ce' = nan" in text


def test_bad_gradient_is_named_in_the_order_of_the_backward_pass(trainer) -> None:
    text = said(trainer([NanGuard()], model=Net("gradient")))
    assert "step 3" in text
    assert "is the gradient of 'stem.bias'" in text


class Hurts(torch.autograd.Function):
    """Hands on what it gets; its gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


def test_bad_sparse_gradient_is_named(trainer) -> None:
    model = nn.Embedding(10, 3, sparse=True)
    data = [(torch.tensor([4, 4]), torch.tensor([0, 1]))]

    def loss(outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(Hurts.apply(outs), target)

    text = said(trainer([NanGuard()], data, model=model, loss=loss))
    assert "is the gradient of 'weight' of shape (10, 3): 3 of 30 entries are" in text


@plugin(stage="setup")
class Poisons:
    @hookimpl
    def on_step_begin(self, model: Any, global_step_id: int) -> None:
        if global_step_id == 1:
            with torch.no_grad():
                model.head.bias[0] = NAN


def test_bad_parameter_is_named(trainer) -> None:
    text = said(trainer([Poisons(), NanGuard()], model=Net()))
    assert "step 1: the first tensor that is not finite is the parameter 'head.bias'" in text


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (torch.float8_e4m3fn, True),
        (torch.float8_e5m2, True),
        (torch.float8_e4m3fnuz, True),
        (torch.float8_e8m0fnu, True),
        (torch.float4_e2m1fn_x2, False),
    ],
)
def test_floats_of_one_byte_are_looked_at(trainer, kind: torch.dtype, bad: bool) -> None:
    model = Net()
    codes = torch.zeros(4, dtype=torch.uint8)
    model.stem.register_buffer("table", codes.view(kind))
    if bad:
        model.stem.table = torch.tensor([1.0, NAN, 1.0, 1.0]).to(kind)
    text = said(trainer([Poisons(), NanGuard()], model=model))
    found = "the parameter 'head.bias'"  # in the order of cause, parameters come first
    assert f"the first tensor that is not finite is {found}" in text
    assert bad_count(model.stem.table) == int(bad)
    if bad:
        assert described(model.stem.table, 1) == "of shape (4,): 1 of 4 entries are nan"


def test_seldom_checks_say_that_the_fault_may_be_older(trainer) -> None:
    text = said(trainer([Poisons(), NanGuard(check_every=3)], model=Net(), nan="ignore"))
    assert "step 2" in text
    assert "checked every 3 steps, so it may be older" in text


def test_log_leaves_the_policy_to_the_run(trainer, caplog) -> None:
    with caplog.at_level(logging.WARNING, "hatbus"):
        run = trainer([NanGuard(action="log")], model=Net("output"), nan="skip_step")
        run.fit(num_epochs=1)
    assert "step 3: the first tensor that is not finite is the output of 'body'" in caplog.text
    assert run.ctx.updates == 3


def test_hooks_and_context_are_as_before(trainer) -> None:
    run = trainer([NanGuard(action="log")], model=Net("output"), nan="skip_step")
    run.fit(num_epochs=1)
    assert not any(module._forward_hooks for module in run.ctx.model.modules())
    assert run.ctx.emit is run.bus.emitter()


class Counts(nn.Module):
    """Replaces its buffer, where batch norm changes its own in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("wide", torch.ones(1).expand(3), persistent=False)
        with torch.inference_mode():
            self.register_buffer("read", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return x


def test_a_search_leaves_the_training_as_it_is(trainer) -> None:
    def trained(*plugins: object) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        norm, chance = nn.BatchNorm1d(8), nn.Dropout(0.5)
        model = nn.Sequential(nn.Linear(5, 8), norm, Counts(), chance, nn.Linear(8, 3))

        def loss(outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            bad = NAN if model[2].calls % 2 else 0.0
            return nn.functional.cross_entropy(outs, target) + bad

        trainer(plugins, model=model, loss=loss, nan="skip_step").fit(num_epochs=1)
        return dict(model.state_dict())

    torch.testing.assert_close(trained(NanGuard(action="log")), trained(), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"check_every": 0}, {"action": "warn"}])
def test_wrong_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="accepted: "):
        NanGuard(**options)
