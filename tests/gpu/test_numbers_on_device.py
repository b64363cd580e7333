"""The worked numbers of the model and gradient plugins, on the device."""

from __future__ import annotations

import copy
from collections.abc import Generator
from functools import partial
from typing import Any

import pytest
import torch
from gpu.on_device import DEVICE, Net, Pair, batches, trainer
from torch import nn

from hatbus import Trainer, callbacks, hookimpl

WORKED_EMA = [0.6458775937, 1.229628249, 1.762186423, 2.258537402, 2.73521332, 3.20798173]


class One(nn.Module):
    """A weight, a floating and an integer buffer."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.register_buffer("mean", torch.zeros(2, dtype=dtype))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.sum() * 0 + x.sum() * 0


class SetTo:
    """Gives every tensor of the model the value k after update k."""

    def __init__(self) -> None:
        self.now = 0

    @hookimpl(wrapper=True)
    def optimizer_step(self, model: nn.Module) -> Generator[None, Any, Any]:
        result = yield
        self.now += 1
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.fill_(self.now)
        return result


class Averages:
    """What the average is after every step."""

    def __init__(self, ema: Any) -> None:
        self.ema, self.found = ema, []

    @hookimpl
    def on_step_end(self) -> None:
        self.found.append({n: v.float().cpu().clone() for n, v in self.ema.averages().items()})


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_average_has_the_worked_numbers(dtype: torch.dtype, offload: bool) -> None:
    ema = callbacks.ExponentialMovingAverage(0.9, 2, offload=offload)
    seen = Averages(ema)
    run = trainer(
        [SetTo(), ema, seen],
        [(torch.zeros(1), 0)] * 6,
        model=partial(One, dtype),
        loss=lambda o, _: o,
    )
    run.fit(num_epochs=1)
    for name in ("weight", "mean"):
        for found, worked in zip(seen.found, WORKED_EMA, strict=True):
            assert found[name].tolist() == pytest.approx([worked] * len(found[name]), abs=1e-6)
    assert [int(found["count"]) for found in seen.found] == [1, 2, 3, 4, 5, 6]
    homes = {value.device.type for value in ema.averages().values()}
    assert homes == ({"cpu"} if offload else {DEVICE})


@pytest.mark.usefixtures("deterministic")
def test_an_average_on_the_host_is_that_of_the_device() -> None:
    found = []
    for offload in (False, True):
        ema = callbacks.ExponentialMovingAverage(0.9, 2, offload=offload)
        trainer([ema], model=Net).fit(num_steps=6)
        found.append({n: v.cpu() for n, v in ema.averages().items()})
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-6, atol=1e-7)


class TwoHeads(nn.Module):
    """The worked example of GradScale: y = head(backbone(x)), 1x1 linears without bias."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("backbone", 2.0), ("head_a", 3.0), ("head_b", 5.0)):
            setattr(self, name, nn.Linear(1, 1, bias=False))
            nn.init.constant_(getattr(self, name).weight, value)

    def forward(self, x: torch.Tensor, task: str) -> torch.Tensor:
        return getattr(self, f"head_{task}")(self.backbone(x))


def mean_loss(outs: torch.Tensor, target: Any) -> torch.Tensor:
    return outs.mean()


def two_heads(*plugins: object) -> tuple[Trainer, dict[str, float]]:
    """The run, and the gradients as the update saw them."""
    seen: dict[str, float] = {}

    class Look:
        @hookimpl
        def on_optimizer_step_begin(self, model: nn.Module) -> None:
            seen.update({n: p.grad.item() for n, p in model.named_parameters()})

    data = {"a": [(torch.tensor([[1.0]]), 0)], "b": [(torch.tensor([[10.0]]), 0)]}
    run = trainer(
        [*plugins, Look()],
        data,
        model=TwoHeads,
        loss={"a": mean_loss, "b": mean_loss},
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
    )
    run.fit(num_epochs=1)
    return run, seen


RULES = [("backbone", 0.1, "a"), ("head_b", 2)]


def test_scaled_gradients_are_the_worked_ones() -> None:
    _, seen = two_heads(callbacks.GradScale(RULES))
    assert list(seen.values()) == pytest.approx([50.3, 2, 40], rel=1e-6)


@pytest.mark.parametrize("by", ["grad_scale", "grad_clip"])
def test_clipped_weights_are_the_worked_ones(by: str) -> None:
    if by == "grad_scale":
        run, _ = two_heads(callbacks.GradScale(RULES, clip_grad_norm=1.0))
    else:
        clip = callbacks.GradClip(max_norm=1.0, log_interval=1)
        run, _ = two_heads(callbacks.GradScale(RULES), clip)
        norm = run.ctx.latest["grad_norm"]
        assert norm.device.type == DEVICE
        assert norm.item() == pytest.approx(64.29689026, rel=1e-6)
    found = [p.item() for p in run.ctx.model.parameters()]
    assert found == pytest.approx([1.92176916, 2.99688943, 4.93778859], abs=1e-6)


def test_clipping_by_value_leaves_no_larger_gradient() -> None:
    largest: list[torch.Tensor] = []

    class Look:
        @hookimpl
        def on_optimizer_step_begin(self, model: nn.Module) -> None:
            largest.extend(p.grad.abs().max() for p in model.parameters() if p.grad is not None)

    trainer([callbacks.GradClip(max_value=1e-3), Look()]).fit(num_steps=3)
    assert torch.stack(largest).max().item() == pytest.approx(1e-3)


def test_frozen_weights_stay_under_momentum_and_decay() -> None:
    kept: dict[int, torch.Tensor] = {}

    class Keep:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            kept[ctx.global_step_id] = ctx.model.stem[0].weight.detach().clone()

    freeze = callbacks.FreezeModule([["stem"]], [4], "step", unfreeze_at=[8])
    run = trainer(
        [freeze, Keep()],
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    )
    run.fit(num_steps=12)
    assert not kept[2].equal(kept[3])
    assert all(kept[3].equal(kept[step]) for step in range(4, 8))
    assert not kept[7].equal(kept[8])


def test_a_fused_model_gives_the_same_outputs_and_goes_on_training() -> None:
    run = trainer(model=Net, data=batches(8))
    run.fit(num_epochs=1)
    model, fuse = run.ctx.model, callbacks.FuseBN([["stem"]], [0], "step")
    before = copy.deepcopy(model).eval()
    inputs = torch.randn(16, 3, 6, 6).to(DEVICE)
    fuse.process(model, "stem", optimizer=run.ctx.optimizer, probe=lambda: model(inputs))
    with torch.no_grad():
        difference = (model.eval()(inputs) - before(inputs)).abs().max()
    assert difference.item() <= 1e-5
    assert isinstance(model.stem[1], nn.Identity)
    fused = model.stem[0].weight.detach().clone()
    assert fused.device.type == DEVICE
    run.fit(num_epochs=3)
    assert run.ctx.model.stem[0].weight is model.stem[0].weight
    assert not fused.equal(model.stem[0].weight)


def test_fusing_in_a_run_is_followed_by_the_average() -> None:
    ema, fuse = callbacks.ExponentialMovingAverage(0.5), callbacks.FuseBN([["stem"]], [5], "step")
    run = trainer([fuse, ema])
    run.fit(num_steps=12)
    names = set(run.ctx.model.state_dict())
    assert set(ema.averages()) == names == {n for n in names if "stem.1" not in n}
    assert {v.device.type for v in ema.averages().values()} == {DEVICE}


def test_the_teacher_is_the_average_of_its_student() -> None:
    run = trainer([callbacks.MeanTeacher(decay=0.5, decay_base=0)], model=Pair)
    model = run.ctx.model
    teacher = [p.detach().clone() for p in model.student.parameters()]

    class Follow:
        @hookimpl
        def on_step_end(self) -> None:
            for mine, student in zip(teacher, model.student.parameters(), strict=True):
                mine.lerp_(student.detach(), 0.5)

    run.bus.register(Follow(), "follow")
    run.fit(num_steps=4)
    for mine, found in zip(teacher, model.teacher.parameters(), strict=True):
        torch.testing.assert_close(mine, found.detach(), rtol=1e-6, atol=1e-7)


def test_metrics_on_the_device_are_exact() -> None:
    right: list[torch.Tensor] = []

    def update(metrics: Any, batch: Any, outs: torch.Tensor) -> None:
        right.append(outs.argmax(1) == batch[1])
        metrics[0].update(outs, batch[1])

    run = trainer([callbacks.MetricUpdater(update, ["accuracy"], step_log_freq=0)])
    run.fit(num_epochs=1)
    found = run.ctx.latest["train/accuracy"]
    assert found.device.type == DEVICE
    assert found.item() == pytest.approx(torch.cat(right).double().mean().item(), abs=1e-12)


def test_torchmetrics_work_on_the_device() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.MeanMetric()
    losses: list[torch.Tensor] = []

    def update(metrics: Any, batch: Any, outs: Any, losses: Any) -> None:
        kept.append(losses["loss"].detach())
        metrics[0].update(losses["loss"].detach())

    kept = losses
    run = trainer([callbacks.MetricUpdater(update, [metric], step_log_freq=0)])
    run.fit(num_epochs=1)
    mean = torch.stack(losses).mean().item()
    assert float(run.ctx.latest["train/mean_metric"]) == pytest.approx(mean, rel=1e-5)


def test_norms_per_module_are_torchs_own() -> None:
    gradients: list[list[torch.Tensor]] = []

    class Look:
        @hookimpl
        def on_optimizer_step_begin(self, model: nn.Module) -> None:
            gradients.append([p.grad.clone() for p in model.a.parameters()])

    run = trainer([callbacks.GradMonitor(log_freq=1), Look()])
    run.fit(num_steps=2)
    norm = torch.nn.utils.get_total_norm(gradients[-1]).item()
    assert run.ctx.latest["grad_norm/a"] == pytest.approx(norm, rel=1e-5)
    assert run.ctx.latest["grad_norm/b"] == 0.0
