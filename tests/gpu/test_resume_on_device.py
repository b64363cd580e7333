"""A run that is stopped and resumed on the device ends with the bits of one that never stopped."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.on_device import DEVICE, Net, assert_same, batches, states, trainer
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

from hatbus import Trainer, callbacks, hookimpl
from hatbus.data.loaders import loader

STEPS, CUT = 20, 11


class Noise:
    """Draws from the device's generator: the loss hangs on its state."""

    @hookimpl(wrapper=True)
    def compute_loss(self, ctx: Any) -> Any:
        losses = yield
        noise = torch.rand((), device=ctx.device)
        return {name: loss * (1 + 0.1 * noise) for name, loss in losses.items()}


def built(folder: Path, precision: str, **options: Any) -> Trainer:
    """A run with something random, averaged, scheduled and counted in it."""
    images, classes = (torch.cat(parts) for parts in zip(*batches(8), strict=True))
    pinned = DEVICE == "cuda"
    ema = callbacks.ExponentialMovingAverage(0.9, 5)
    plugins = {
        "noise": Noise(),
        "cos_lr": callbacks.CosLrUpdater(max_steps=40, warmup_len=5),
        "ema": ema,
        "freeze": callbacks.FreezeModule([["a"]], [6], "step", unfreeze_at=[14]),
        "fuse_bn": callbacks.FuseBN([["stem"]], [9], "step"),
        "metrics": callbacks.MetricUpdater(
            lambda metrics, batch, outs: metrics[0].update(outs, batch[1]), ["accuracy"]
        ),
        "checkpoint": callbacks.Checkpoint(
            str(folder), save_interval=None, resume="auto", save_hash=False, **options
        ),
    }
    run = trainer(
        plugins,
        loader(TensorDataset(images, classes), 8, pin_memory=pinned),
        precision=precision,
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.01),
    )
    run.ema = ema  # type: ignore[attr-defined]
    return run


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("in_background", [False, True])
def test_a_resumed_run_has_the_same_bits(
    precision: str, in_background: bool, tmp_path: Path
) -> None:
    whole = built(tmp_path / "whole", precision)
    whole.fit(num_steps=STEPS)
    wanted = states(whole)
    built(tmp_path / "cut", precision, async_save=in_background).fit(num_steps=CUT)
    torch.manual_seed(99)  # and the GPU's generator with it: both have to come from the file
    again = built(tmp_path / "cut", precision, async_save=in_background)
    torch.manual_seed(98)
    again.fit(num_steps=STEPS)
    assert again.ctx.position.global_step == STEPS
    assert_same(wanted, states(again))
    assert_same(whole.ema.averages(), again.ema.averages())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("deterministic")
def test_two_equal_runs_have_the_same_bits_with_and_without_watchers(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        watchers = [callbacks.Checkpoint(str(tmp_path / "c"), save_interval=3, interval_by="step"),
                    callbacks.Validation(batches(2), val_interval=4, interval_by="step"),
                    callbacks.GradMonitor(log_freq=2)]  # fmt: skip
        run = trainer([Noise(), *(watchers if number else [])])
        run.fit(num_steps=STEPS)
        found.append(states(run))
    assert_same(*found)


def test_what_the_background_writes_is_of_the_moment_of_the_save(tmp_path: Path) -> None:
    """The weights are changed at once after the save, while the writer is still at work."""

    class Keep:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            if ctx.global_step_id == 2:
                kept.update({n: v.cpu().clone() for n, v in ctx.model.state_dict().items()})

    for in_background in (False, True):
        kept: dict[str, torch.Tensor] = {}
        folder = tmp_path / str(in_background)
        checkpoint = callbacks.Checkpoint(
            str(folder), save_interval=3, interval_by="step", save_hash=False,
            async_save=in_background, save_on_train_end=False,
        )  # fmt: skip
        run = trainer([Keep(), checkpoint], model=partial(Net, 20_000))
        run.fit(num_steps=5)
        found = load_file(folder / "checkpoint-step-3" / "model.safetensors")
        assert kept.keys() == found.keys()
        assert all(kept[name].equal(found[name]) for name in kept)
        live = {n: v.cpu() for n, v in run.ctx.model.state_dict().items()}
        assert not all(live[name].equal(found[name]) for name in kept)


def test_a_run_goes_on_on_another_device(tmp_path: Path) -> None:
    first = trainer([callbacks.Checkpoint(str(tmp_path))])
    first.fit(num_steps=4)
    second = trainer([callbacks.Checkpoint(str(tmp_path), resume="auto")], device="cpu")
    second.fit(num_steps=6)
    assert second.ctx.position.global_step == 6
    assert {p.device.type for p in second.ctx.model.parameters()} == {"cpu"}
    third = trainer([callbacks.Checkpoint(str(tmp_path), resume="auto")])
    third.fit(num_steps=8)
    assert {p.device.type for p in third.ctx.model.parameters()} == {DEVICE}
    buffers = [s["momentum_buffer"].device.type for s in third.ctx.optimizer.state.values()]
    assert set(buffers) == {DEVICE}
