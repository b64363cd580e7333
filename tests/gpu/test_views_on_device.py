"""Validation and export on the device: the weights they show, and that training does not notice."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.on_device import DEVICE, Net, assert_same, batches, trainer
from torch import nn

from hatbus import Trainer, callbacks, hookimpl


def loss_of(model: nn.Module, data: list[Any]) -> float:
    """The mean loss of a model in eval mode."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(model(x.to(DEVICE)), y.to(DEVICE)) for x, y in data]
    return torch.stack(losses).double().mean().item()


@pytest.mark.parametrize("offload", [False, True])
def test_the_average_is_validated_and_the_raw_weights_are_back(offload: bool) -> None:
    data, noted = batches(3, seed=5), {}
    ema = callbacks.ExponentialMovingAverage(0.9, 2, offload=offload)

    def now(ctx: Any) -> dict[str, Any]:
        found = {"model": {n: v.clone() for n, v in ctx.model.state_dict().items()}}
        found["random"] = torch.get_rng_state()
        if DEVICE == "cuda":
            found["random on the device"] = torch.cuda.get_rng_state()
        return found

    class Around:
        @hookimpl(wrapper=True)
        def validate(self, ctx: Any) -> Any:
            before = now(ctx)
            result = yield
            assert_same(before, now(ctx))
            noted["modes"] = {m.training for m in ctx.model.modules()}
            return result

    run = trainer([ema, callbacks.Validation(data), Around()], data=batches(10))
    run.fit(num_epochs=1)
    assert noted["modes"] == {True}
    found = run.ctx.latest["val/loss"]
    assert found.device.type == DEVICE
    raw = loss_of(run.ctx.model, data)
    shown = copy.deepcopy(run.ctx.model)
    shown.load_state_dict(ema.averages())
    assert float(found) == pytest.approx(loss_of(shown, data), rel=1e-5)
    assert float(found) != pytest.approx(raw, rel=1e-4)


def test_validation_under_autocast_publishes_a_loss_near_that_of_fp32() -> None:
    data = batches(3, seed=5)
    run = trainer([callbacks.Validation(data)], data=batches(10), precision="bf16")
    run.fit(num_epochs=1)
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(
        loss_of(run.ctx.model, data), abs=0.05
    )


def test_early_stopping_reads_a_metric_from_the_device() -> None:
    stop = callbacks.EarlyStopping("val/loss", patience=1, min_delta=1e9)
    run = trainer([callbacks.Validation(batches(2)), stop], data=batches(4))
    run.fit(num_epochs=5)
    assert run.ctx.position.epoch == 2


def exported(folder: Path, formats: list[str]) -> tuple[Trainer, Any]:
    save = callbacks.SaveTraced(str(folder), (torch.ones(2, 3, 6, 6),), formats=formats)
    run = trainer([save])
    gradients: dict[str, Any] = {}

    class Keep:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            gradients.update({n: p.grad for n, p in ctx.model.named_parameters()})

    run.bus.register(Keep(), "keep")
    run.fit(num_steps=4)
    model = run.ctx.model
    assert {p.device.type for p in model.parameters()} == {DEVICE}
    assert {m.training for m in model.modules()} == {True}
    assert all(p.grad is gradients[n] for n, p in model.named_parameters())
    return run, save


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_an_exported_model_gives_the_same_outputs_on_the_host(suffix: str, tmp_path: Path) -> None:
    run, save = exported(tmp_path, [suffix])
    path, inputs = str(save.written[0]), torch.randn(2, 3, 6, 6)
    loaded = torch.jit.load(path) if suffix == "pt" else torch.export.load(path).module()
    with torch.no_grad():
        wanted = run.ctx.model.eval()(inputs.to(DEVICE)).cpu()
        torch.testing.assert_close(loaded(inputs), wanted, rtol=1e-4, atol=1e-5)


def test_tensorboard_holds_the_losses_of_every_step(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found: list[torch.Tensor] = []

    class Keep:
        @hookimpl
        def on_step_end(self, losses: Any) -> None:
            found.append(losses["loss"].detach())

    trainer([callbacks.TensorBoard(str(tmp_path)), Keep()]).fit(num_steps=30)
    board = reader.EventAccumulator(str(tmp_path)).Reload()
    written = [event.value for event in board.Scalars("loss")]
    assert written == pytest.approx(torch.stack(found).tolist(), rel=1e-6)


def test_a_copy_for_export_leaves_no_memory_behind(tmp_path: Path) -> None:
    if DEVICE == "cpu":
        pytest.skip("memory of the host is not counted")
    run = trainer(model=Net)
    run.fit(num_steps=2)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    save = callbacks.SaveTraced(str(tmp_path), (torch.ones(2, 3, 6, 6),))
    save.export_model(run.ctx, "for the test")
    assert torch.cuda.memory_allocated() <= before
