"""FuseBN in a run: optimizer, averages and checkpoints follow what was folded."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.errors import CheckpointError, JobError
from hatbus_model.ema import ExponentialMovingAverage
from hatbus_model.freeze_module import FreezeModule
from hatbus_model.fuse_bn import FuseBN

sys.path.insert(0, str(Path(__file__).parent))
from fusible import OPTIMIZERS, batches, net, trainer_of

sys.path.pop(0)


class SkipUpdate:
    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def skip_update(self, ctx: object) -> str | None:
        return "for the test" if ctx.global_step_id == self.step else None


def test_groups_keep_their_settings_and_a_new_bias_takes_the_place_of_beta() -> None:
    model = net("without bias")
    decayed = [("block.0.weight", model.block[0].weight), ("head.weight", model.head.weight)]
    plain = [("block.1.weight", model.block[1].weight), ("block.1.bias", model.block[1].bias),
             ("head.bias", model.head.bias)]  # fmt: skip
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=0.1
    )
    FuseBN([], [], "step").process(model, "block", optimizer=optimizer)
    first, second = optimizer.param_groups
    assert first["params"] == [model.block[0].weight, model.head.weight]
    assert second["params"] == [model.block[0].bias, model.head.bias]
    assert first["param_names"] == ["block.0.weight", "head.weight"]
    assert second["param_names"] == ["block.0.bias", "head.bias"]
    assert second["weight_decay"] == 0.0


def test_the_state_of_other_parameters_stays() -> None:
    trainer = trainer_of(net(), FuseBN([["block"]], [2], "step"))
    trainer.fit(num_steps=2)
    head = trainer.ctx.optimizer.state[trainer.ctx.model.head.weight]["momentum_buffer"]
    trainer.fit(num_steps=3)
    state = trainer.ctx.optimizer.state
    assert state[trainer.ctx.model.head.weight]["momentum_buffer"] is head
    assert len(state) == len(list(trainer.ctx.model.parameters()))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("at", [1, 2, 3, 5, 6])
def test_a_resumed_run_is_in_the_same_condition(
    continues_exactly: Callable[..., object], at: int, optimizer: str, inplace: bool
) -> None:
    def build(more: list[object]) -> Trainer:
        plugins = (
            FuseBN([["block.0"], ["block"]], [3, 5], "step", inplace),
            FreezeModule([["block.0.0"]], [4], "step", unfreeze_at=[7]),
            ExponentialMovingAverage(0.9, 2),
        )
        return trainer_of(net("nested"), *plugins, *more, optimizer=optimizer)

    _, again = continues_exactly(build, 9, at)
    assert isinstance(again.ctx.model.block[2], nn.Identity)


def test_a_run_resumes_from_a_folding_step_whose_update_was_skipped(
    continues_exactly: Callable[..., object],
) -> None:
    def build(more: list[object]) -> Trainer:
        plugins = (FuseBN([["block"]], [3], "step"), ExponentialMovingAverage(0.9, 2))
        return trainer_of(net(), *plugins, SkipUpdate(3), *more)

    continues_exactly(build, 6, 3)


def test_the_average_is_folded_alike() -> None:
    class Around:
        def __init__(self) -> None:
            self.found: list[torch.Tensor] = []

        def show(self, ctx: object) -> None:
            with ctx.weights.showing("ema"):
                model = copy.deepcopy(ctx.model).eval()
            self.found.append(model(batches()[1][0]).detach())

        @hookimpl
        def on_step_end(self, ctx: object) -> None:
            if ctx.global_step_id == 2:
                self.show(ctx)

        @hookimpl
        def on_step_begin(self, ctx: object) -> None:
            if ctx.global_step_id == 3:
                self.show(ctx)

    around, ema = Around(), ExponentialMovingAverage(0.8, 0)
    trainer = trainer_of(net("nested"), FuseBN([["block"]], [3], "step"), ema, around)
    trainer.fit(num_steps=6)
    assert torch.allclose(*around.found, rtol=0, atol=1e-5)
    assert set(ema.averages()) == set(trainer.ctx.model.state_dict())


def test_by_epoch() -> None:
    seen = []

    class Watch:
        @hookimpl
        def on_step_end(self, ctx: object) -> None:
            seen.append(isinstance(ctx.model.block[1], nn.Identity))

    trainer_of(net(), FuseBN([["block"]], [1], "epoch"), Watch()).fit(num_epochs=2)
    assert seen == [False] * 4 + [True] * 4


def test_a_compiled_model_follows() -> None:
    torch._dynamo.reset()
    outputs = []

    class Watch:
        @hookimpl
        def on_forward_end(self, ctx: object) -> None:
            outputs.append((ctx.model_outs.detach(), ctx.model(ctx.batch[0]).detach()))

    fuse = FuseBN([["block"]], [2], "step")
    freeze = FreezeModule([["block"]], [0], "step", only_batchnorm=True)
    model = net()
    before = model.block[0].weight
    trainer_of(model, fuse, freeze, Watch(), compile={"backend": "eager"}).fit(num_steps=4)
    assert all(torch.allclose(compiled, plain) for compiled, plain in outputs)
    assert model.block[0].weight is not before
    assert model.block[0].weight.grad is not None


def test_unknown_module_is_refused() -> None:
    with pytest.raises(JobError, match="unknown module 'blok'; did you mean 'block'"):
        trainer_of(net(), FuseBN([["blok"]], [0], "step")).fit(num_steps=1)


def test_an_earlier_checkpoint_into_a_fused_model_is_refused() -> None:
    fuse = FuseBN([["block"]], [0], "step")
    trainer_of(net(), fuse).fit(num_steps=1)
    with pytest.raises(CheckpointError, match="fused already"):
        fuse.load_state_dict({"folds": [], "passed": 0})


def test_marks_can_be_previewed() -> None:
    trainer = trainer_of(net())
    fuse = FuseBN([["block"], [""]], [1, 2], "epoch")
    assert fuse.preview_marks(trainer.ctx) == [(4, "fuse block"), (8, "fuse the model")]
