"""FuseBN: the same outputs, what is left and why, and everything that has to follow."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.errors import CheckpointError, JobError
from hatbus_model.ema import ExponentialMovingAverage
from hatbus_model.freeze_module import FreezeModule
from hatbus_model.fuse_bn import FuseBN


class Attributes(nn.Module):
    """A block whose order only its forward knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


class Activated(nn.BatchNorm2d):
    """A batch norm with an activation in it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


class Named(nn.BatchNorm2d):
    """A batch norm by another name."""


def activated_by_hand() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4)
    norm.forward = lambda x: nn.BatchNorm2d.forward(norm, x).relu()
    return norm


class Listed(nn.Module):
    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        return x


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "sequential": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
    ),
    "without bias": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)),
    "module list": lambda: Listed(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
    "not affine": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4)),
    "grouped": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2, stride=2), nn.BatchNorm2d(4)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 2, stride=2), nn.BatchNorm2d(4)),
    "transposed, grouped": lambda: nn.Sequential(
        nn.ConvTranspose2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)
    ),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    ),
    "subclass": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), Named(4)),
    "sync": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.SyncBatchNorm(4)),
}


class Net(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.head = block, nn.Conv2d(4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(x)).mean((1, 2, 3))


def batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    seeded = torch.Generator().manual_seed(1)
    return [
        (torch.randn(3, 4, 6, 6, generator=seeded), torch.randn(3, generator=seeded))
        for _ in range(count)
    ]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def net(block: str = "sequential") -> Net:
    torch.manual_seed(0)
    model = Net(BLOCKS[block]())
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return model


def trainer_of(
    model: nn.Module, *plugins: object, optimizer: str = "sgd", **more: object
) -> Trainer:
    made = OPTIMIZERS[optimizer](model.parameters())
    return Trainer(model, made, batches(), nn.functional.mse_loss, list(plugins), **more)


class SkipUpdate:
    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def skip_update(self, ctx: object) -> str | None:
        return "for the test" if ctx.global_step_id == self.step else None


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


def test_double_precision_is_exact() -> None:
    model = net("transposed, grouped").double().eval()
    x = batches()[0][0].double()
    expected = model(x)
    (fold,) = FuseBN([], [], "step").process(model, "").folds
    assert torch.allclose(model(x), expected, rtol=0, atol=1e-12)
    assert fold.transposed
    assert fold.groups == 2


def test_marks_can_be_previewed() -> None:
    trainer = trainer_of(net())
    fuse = FuseBN([["block"], [""]], [1, 2], "epoch")
    assert fuse.preview_marks(trainer.ctx) == [(4, "fuse block"), (8, "fuse the model")]
