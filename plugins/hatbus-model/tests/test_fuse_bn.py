"""FuseBN: the same outputs, and what is left and why."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hatbus import hookimpl
from hatbus_model.fuse_bn import FuseBN

sys.path.insert(0, str(Path(__file__).parent))
from fusible import BLOCKS, Activated, Attributes, Net, activated_by_hand, batches, net, trainer_of

sys.path.pop(0)


class OutputsAround:
    """Eval outputs just before and just after the step begins."""

    def __init__(self, step: int) -> None:
        self.step, self.x = step, batches()[2][0]
        self.before = self.after = None

    def outputs(self, model: nn.Module) -> torch.Tensor:
        model = copy.deepcopy(model).eval()
        with torch.no_grad():
            return model(self.x)

    @hookimpl
    def on_step_end(self, ctx: object) -> None:
        if ctx.global_step_id == self.step - 1:
            self.before = self.outputs(ctx.model)

    @hookimpl
    def on_batch_begin(self, ctx: object) -> None:
        if ctx.global_step_id == self.step:
            self.after = self.outputs(ctx.model)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("block", [b for b in BLOCKS if b != "sync"])
def test_outputs_stay_and_fused_weights_go_on_training(block: str, inplace: bool) -> None:
    outputs = OutputsAround(3)
    trainer = trainer_of(net(block), FuseBN([["block"]], [3], "step", inplace), outputs)
    trainer.fit(num_steps=4)
    assert not [m for m in trainer.ctx.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert torch.allclose(outputs.before, outputs.after, rtol=0, atol=1e-5)
    start = {n: p.detach().clone() for n, p in trainer.ctx.model.named_parameters()}
    trainer.fit(num_steps=24)
    assert all(not torch.equal(p, start[n]) for n, p in trainer.ctx.model.named_parameters())
    held = [p for group in trainer.ctx.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in trainer.ctx.model.parameters()}
    assert len(held) == len(start)


def test_sync_batch_norm_is_folded() -> None:
    model = net("sync").eval()
    expected = nn.functional.batch_norm(
        model.block[0](batches()[0][0]), *(getattr(model.block[1], n) for n in
        ("running_mean", "running_var", "weight", "bias")), False, 0.1, 1e-5)  # fmt: skip
    FuseBN([], [], "step").process(model, "block")
    assert isinstance(model.block[1], nn.Identity)
    assert torch.allclose(model.block(batches()[0][0]), expected, atol=1e-5)


def test_the_formula() -> None:
    model = net("sequential")
    conv, norm = model.block[0], model.block[1]
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = conv.weight * factor[:, None, None, None]
    bias = (conv.bias - norm.running_mean) * factor + norm.bias
    fusion = FuseBN([], [], "step").process(model, "block")
    assert torch.allclose(model.block[0].weight, weight, rtol=0, atol=1e-6)
    assert torch.allclose(model.block[0].bias, bias, rtol=0, atol=1e-6)
    assert fusion.left == {}


def test_it_agrees_with_torch_where_torch_has_it() -> None:
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    model = net("grouped").eval()
    expected = fuse_conv_bn_eval(model.block[0], model.block[1])
    FuseBN([], [], "step").process(model, "")
    assert torch.allclose(model.block[0].weight, expected.weight)
    assert torch.allclose(model.block[0].bias, expected.bias)


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "attributes": (Attributes, "no convolution directly before it"),
    "something between": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        "follows a ReLU",
    ),
    "no statistics": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        "no running statistics",
    ),
    "hooked": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)
        ),
        "ParametrizedConv2d",
    ),
    "a norm that does more": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), Activated(4)),
        "the Activated has forward hooks or a forward of its own",
    ),
    "a norm made to do more": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), activated_by_hand()),
        "the BatchNorm2d has forward hooks or a forward of its own",
    ),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)), "directly before"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_folded_is_left_and_named(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    block, reason = LEFT[case][0](), LEFT[case][1]
    model = Net(block)
    state = {n: v.clone() for n, v in model.state_dict().items()}
    with caplog.at_level(logging.WARNING, "hatbus"):
        fusion = FuseBN([], [], "step").process(model, "block")
    (name,) = fusion.left
    assert reason in fusion.left[name]
    assert repr(name) in caplog.text
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


def test_a_convolution_used_twice_is_left() -> None:
    conv = nn.Conv2d(4, 4, 1)
    model = Net(nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), conv))
    assert "more than one place" in FuseBN([], [], "step").process(model, "").left["block.1"]
    model = Net(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)))
    model.block[2].weight = model.block[0].weight
    assert "shares parameters" in FuseBN([], [], "step").process(model, "").left["block.1"]


def test_a_batch_norm_whose_weight_another_one_shares_is_left() -> None:
    model = Net(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)))
    model.block[3].weight = model.block[1].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fusion = FuseBN([], [], "step").process(model, "", optimizer=optimizer)
    assert "shares parameters" in fusion.left["block.1"]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def test_other_norms_are_kept() -> None:
    model = Net(nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)))
    fusion = FuseBN([], [], "step").process(model, "")
    assert not fusion.folds
    assert isinstance(model.block[1], nn.GroupNorm)


def test_only_the_named_modules_are_touched() -> None:
    model = nn.Sequential()
    for name in ("stem", "side_stem"):
        model.add_module(name, BLOCKS["sequential"]())
    FuseBN([], [], "step").process(model, "stem")
    assert isinstance(model.stem[1], nn.Identity)
    assert isinstance(model.side_stem[1], nn.BatchNorm2d)


def test_double_precision_is_exact() -> None:
    model = net("transposed, grouped").double().eval()
    x = batches()[0][0].double()
    expected = model(x)
    (fold,) = FuseBN([], [], "step").process(model, "").folds
    assert torch.allclose(model(x), expected, rtol=0, atol=1e-12)
    assert fold.transposed
    assert fold.groups == 2
