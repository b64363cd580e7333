"""Closure: an update whose optimizer evaluates the loss anew is that of a loop by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.errors import JobError, NonFiniteError
from hatbus_grad import Closure, GradClip, GradScale

torch.set_num_threads(1)
Evaluate = Callable[[nn.Module, Any], torch.Tensor]


class Sharpness(torch.optim.Optimizer):
    """SAM as it is often written: uphill by the gradients that are there, then a closure."""

    def __init__(self, parameters: Any, lr: float = 0.05, rho: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor]) -> None:
        for group in self.param_groups:
            for one in group["params"]:
                self.state[one]["way"] = way = group["rho"] * one.grad.sign()
                one.add_(way)
        closure()
        for group in self.param_groups:
            for one in group["params"]:
                one.sub_(self.state[one]["way"])
                one.sub_(one.grad, alpha=group["lr"])


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=0.5, max_iter=4, line_search_fn="strong_wolfe")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def data(size: int = 4) -> list[Any]:
    chance = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 4, generator=chance)
    return list(zip(inputs.split(size), inputs.sum(1, keepdim=True).split(size), strict=True))


def plain(model: nn.Module, batch: Any) -> torch.Tensor:
    loss = nn.functional.mse_loss(model(batch[0]), batch[1])
    loss.backward()
    return loss.detach()


def by_hand(make: Any, evaluate: Evaluate = plain) -> nn.Module:
    model = net()
    optimizer = make(model.parameters())
    for batch in data():

        @torch.enable_grad()
        def closure(batch: Any = batch) -> torch.Tensor:
            optimizer.zero_grad()
            return evaluate(model, batch)

        closure()
        optimizer.step(closure)
    return model


def fit(make: Any, plugins: Any = (), batches: Any = None, **options: Any) -> Trainer:
    model = net()
    options = {"loss": nn.functional.mse_loss} | options
    given = data() if batches is None else batches
    trainer = Trainer(model, make(model.parameters()), given, plugins=[*plugins], **options)
    trainer.fit(num_epochs=1)
    return trainer


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(a.equal(b) for a, b in pairs)


def close(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("make", [lbfgs, Sharpness, torch.optim.SGD])
def test_an_update_is_that_of_a_loop_by_hand(make: Any) -> None:
    expected = by_hand(make)
    assert same(fit(make, [Closure()]).ctx.model, expected)
    assert not same(net(), expected)


@pytest.mark.parametrize("make", [lbfgs, Sharpness])
def test_micro_batches_are_evaluated_as_the_batch_that_they_make(make: Any) -> None:
    assert close(fit(make, [Closure()], data(2), accumulate=2).ctx.model, by_hand(make))


def test_all_tasks_of_a_step_are_evaluated() -> None:
    class Tasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, inputs: Any, task: str) -> Any:
            return self.net(inputs) if task == "a" else 2 * self.net(inputs)

    def both(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        loss = loss + nn.functional.l1_loss(2 * model(batch[0]), batch[1])
        loss.backward()
        return loss.detach()

    model = Tasks()
    losses = {"a": nn.functional.mse_loss, "b": nn.functional.l1_loss}
    given = {"a": data(), "b": data()}
    Trainer(model, lbfgs(model.parameters()), given, losses, [Closure()]).fit(num_epochs=1)
    assert close(model.net, by_hand(lbfgs, both))


def test_every_evaluation_is_scaled_and_clipped() -> None:
    def scaled(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = plain(model, batch)
        for one in model[0].parameters():  # type: ignore[index]
            one.grad.mul_(0.5)
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        return loss

    plugins = [Closure(), GradScale([("0", 0.5)]), GradClip(0.2)]
    assert close(fit(Sharpness, plugins).ctx.model, by_hand(Sharpness, scaled))


class Recorder:
    def __init__(self) -> None:
        self.batches = 0
        self.losses: list[float] = []
        self.logs: list[str] = []

    @hookimpl
    def on_batch_end(self) -> None:
        self.batches += 1

    @hookimpl
    def on_step_end(self, losses: Any) -> None:
        self.losses.append(float(losses["loss"].detach()))

    @hookimpl
    def on_log(self, logs: Any) -> None:
        self.logs += logs


def test_a_step_is_counted_once() -> None:
    recorder = Recorder()
    trainer = fit(lbfgs, [Closure(), GradClip(9.0, log_interval=1), recorder])
    assert (trainer.ctx.updates, recorder.batches) == (3, 3)
    assert recorder.logs.count("grad_norm") == 3
    assert recorder.losses[0] == float(plain(net(), data()[0]))
    assert trainer.ctx.model_outs is not None
    assert trainer.ctx.latest["grad_norm"] > 0


def test_a_model_that_returns_its_loss_is_evaluated_in_low_precision_too() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.types: set[torch.dtype] = set()

        def forward(self, inputs: Any, target: Any) -> Any:
            outs = self.net(inputs)
            self.types.add(outs.dtype)
            return {"loss": nn.functional.mse_loss(outs.float(), target)}

    model = Whole()
    given = [{"inputs": x, "target": y} for x, y in data()]
    optimizer = lbfgs(model.parameters())
    Trainer(model, optimizer, given, plugins=[Closure()], precision="bf16").fit(num_epochs=1)
    assert model.types == {torch.bfloat16}
    assert not same(model.net, net())


def test_what_cannot_be_evaluated_anew_is_refused() -> None:
    with pytest.raises(JobError, match="closure: torch's loss scaler of fp16 takes no closure"):
        fit(lbfgs, [Closure()], precision="fp16")
    with pytest.raises(JobError, match="add the plugin closure"):
        fit(lbfgs)


def test_a_loss_that_is_not_finite_ends_the_run_as_ever() -> None:
    bad = [(x, y / 0) for x, y in data()]
    with pytest.raises(NonFiniteError, match="'loss' is inf in step 0"):
        fit(lbfgs, [Closure()], bad)
