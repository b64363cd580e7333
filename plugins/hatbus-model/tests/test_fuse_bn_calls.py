"""FuseBN looks at how the modules are called: by a forward pass, or a trace without a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from hatbus import Trainer, hookimpl
from hatbus_model.fuse_bn import FuseBN
from hatbus_model.fusion import Fusion

torch.set_num_threads(1)


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 1)


class Calls(nn.Module):
    """A pair, and another norm; the forward pass is a function of the module and its input."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], Any], listed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        pair = [conv(), nn.BatchNorm2d(3)]
        self.pair = nn.ModuleList(pair) if listed else nn.Sequential(*pair)
        self.other = nn.BatchNorm2d(3)
        self.held, self.run = [*self.pair], forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


def held_conv(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.pair[1](m.held[0](x))


def held_norm(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.held[1](m.pair[0](x))


def written_to(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.pair[0](x)
    z = m.pair[1](y)
    y[0] = 0
    return z + 0 * y.mean()


# how the pair is called, and the reason against a fold; None: it may be folded
FORMS: dict[str, tuple[Callable[[Any, Any], Any], str | None]] = {
    "in order": (lambda m, x: m.pair[1](m.pair[0](x)), None),
    "twice": (lambda m, x: m.pair[1](m.pair[0](m.pair[1](m.pair[0](x)).relu())), None),
    "its shape is asked for": (
        lambda m, x: m.pair[1](y := m.pair[0](x)).reshape(y.shape[0], -1),
        None,
    ),
    "another norm": (lambda m, x: m.pair[1](m.pair[0](x)) + m.other(m.pair[0](x)), "batch_norm"),
    "its output is used too": (lambda m, x: (y := m.pair[0](x)) + m.pair[1](y), "'add' too"),
    "its output is returned": (lambda m, x: [y := m.pair[0](x), m.pair[1](y)], "returns what"),
    "its output is changed": (written_to, "__setitem__"),
    "norm first": (lambda m, x: m.pair[0](m.pair[1](x)), "what goes into it is not"),
    "something between": (lambda m, x: m.pair[1](m.pair[0](x).relu()), "what its convolution"),
    "alone at times": (
        lambda m, x: m.pair[1](m.pair[0](x)) + m.pair[0](x).mean(),
        "'mean' too",
    ),
    "weight used by hand": (
        lambda m, x: m.pair[1](m.pair[0](x)) + F.conv2d(x, m.pair[0].weight),
        "tensors, or its convolution's, are used elsewhere",
    ),
    "statistics used by hand": (
        lambda m, x: m.pair[1](m.pair[0](x)) + m.pair[1].running_mean.sum(),
        "tensors, or its convolution's, are used elsewhere",
    ),
    "a convolution held elsewhere": (held_conv, "held elsewhere"),
    "a norm held elsewhere": (held_norm, "held elsewhere"),
    "never": (lambda m, x: m.other(x), "not called with the batches"),
    "a forward that fails": (lambda m, x: m.pair[1](m.pair[0](x)).nothing, "AttributeError"),
}
BY_TRACE = {
    "its output is returned": "goes into 'output' too",
    "another norm": "'other' too",
    "its output is changed": "cannot trace the model",
    "a convolution held elsewhere": "cannot trace the model",
    "a norm held elsewhere": "cannot trace the model",
    "never": "the model does not call it",
    "weight used by hand": "used elsewhere too",
}


def trained(form: str, listed: bool) -> Calls:
    """In eval mode, with statistics and weights of some training."""
    model = Calls(FORMS[form][0], listed)
    for norm in (model.pair[1], model.other):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
    return model.eval()


def flat(found: Any) -> torch.Tensor:
    return torch.cat([one.flatten() for one in (found if isinstance(found, list) else [found])])


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("way", ["by a batch", "by a trace"])
@pytest.mark.parametrize("form", FORMS)
def test_only_what_is_called_in_order_is_folded(form: str, way: str, listed: bool) -> None:
    if form == "a forward that fails" and way == "by a trace":
        pytest.skip("a trace does not run it")
    model, reason = trained(form, listed), FORMS[form][1]
    x = torch.randn(4, 3, 5, 5)
    fails = form == "a forward that fails"
    before = None if fails else flat(model(x))
    probe = (lambda: model(x)) if way == "by a batch" else None
    fusion: Fusion = FuseBN([], [], "step").process(model, "pair", probe=probe)
    if reason is None:
        assert fusion.left == {}
        assert isinstance(model.pair[1], nn.Identity)
    else:
        words = reason if probe else BY_TRACE.get(form, reason)
        assert words in fusion.left["pair.1"]
        assert isinstance(model.pair[1], nn.BatchNorm2d)
    if not fails:
        assert torch.allclose(flat(model(x)), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["a convolution held elsewhere", "a norm held elsewhere"])
def test_in_place_a_convolution_that_is_held_elsewhere_is_folded(form: str) -> None:
    model, x = trained(form, False), torch.randn(4, 3, 5, 5)
    before = model(x)
    fusion = FuseBN([], [], "step").process(model, "pair", inplace=True, probe=lambda: model(x))
    assert ("held elsewhere" in fusion.left.get("pair.1", "")) == (form == "a norm held elsewhere")
    assert torch.allclose(model(x), before, rtol=0, atol=1e-5)


class Draws(nn.Module):
    """Draws random numbers, counts its calls in a buffer and has parts in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pair = nn.Sequential(conv(), nn.BatchNorm2d(3), nn.Dropout(0.5))
        self.still = nn.Dropout(0.5).eval()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return self.still(self.pair(x + torch.rand_like(x))).mean((1, 2, 3))


def run(model: nn.Module, *plugins: object, **options: Any) -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seeded = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(4, 3, 5, 5, generator=seeded), torch.randn(4, generator=seeded))
        for _ in range(4)
    ]
    trainer = Trainer(model, optimizer, data, F.mse_loss, plugins, **options)
    torch.manual_seed(7)
    trainer.fit(num_epochs=1)
    return trainer


def test_a_run_goes_on_as_if_nobody_had_looked() -> None:
    class Hears:
        def __init__(self) -> None:
            self.forwards = 0

        @hookimpl
        def on_forward_begin(self) -> None:
            self.forwards += 1

        @hookimpl
        def on_forward_end(self) -> None:
            self.forwards += 1

    class UsesTwice(Draws):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0 * self.pair[0].weight.sum()

    found = []
    for part in ("still", "pair"):  # nothing to look at; a pair that may not be folded
        model = UsesTwice()
        run(model, FuseBN([[part]], [1], "step"), hears := Hears())
        found.append((model.state_dict(), hears.forwards, torch.rand(1)))
    (one, *rest), (other, *more) = found
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert rest == more
    assert rest[0] == 8


def test_a_fold_draws_no_random_numbers_and_leaves_buffers_and_modes() -> None:
    states = []

    class Sees:
        @hookimpl
        def on_batch_begin(self, ctx: Any) -> None:
            if ctx.global_step_id == 1:
                states.append((torch.get_rng_state(), ctx.model.calls.item()))
                states[-1] += (ctx.model.still.training, ctx.model.pair[2].training)

    for at in (99, 1):
        run(Draws(), FuseBN([["pair"]], [at], "step"), Sees())
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1:] == states[1][1:] == (1.0, False, True)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        pairs = {task: nn.Sequential(conv(), nn.BatchNorm2d(3)) for task in ("a", "b")}
        self.heads = nn.ModuleDict({**pairs, "unused": nn.Sequential(conv(), nn.BatchNorm2d(3))})

    def forward(self, x: torch.Tensor, task: str) -> torch.Tensor:
        return self.heads[task](x).mean((1, 2, 3))


def test_what_only_another_task_calls_is_folded_in_its_step(
    caplog: pytest.LogCaptureFixture, continues_exactly: Callable[..., object]
) -> None:
    from hatbus.data.task_sampler import OneTask

    def build(more: list[object]) -> Trainer:
        model = Heads()
        seeded = torch.Generator().manual_seed(1)
        draw = [torch.randn(4, 3, 5, 5, generator=seeded) for _ in range(4)]
        data = {task: [(x, x.mean((1, 2, 3))) for x in draw] for task in ("a", "b")}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        plugins = [FuseBN([["heads"]], [1], "step"), *more]
        sampler = OneTask()
        return Trainer(model, optimizer, data, F.mse_loss, plugins, task_sampler=sampler)

    trainer = build([])
    trainer.fit(num_steps=8)
    heads = trainer.ctx.model.heads
    assert [isinstance(heads[n][1], nn.Identity) for n in ("a", "b", "unused")] == [
        True,
        True,
        False,
    ]
    (left,) = [text for text in caplog.messages if "left in place" in text]
    assert "'heads.unused.1': it was not called with the batches at hand" in left
    for at in (1, 2):
        continues_exactly(build, 8, at)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compile_it", [False, True])
def test_channels_last_autocast_and_compiled_parts_fold_as_well(
    precision: str, compile_it: bool
) -> None:
    model = Draws().to(memory_format=torch.channels_last)
    if compile_it:
        model.pair = torch.compile(model.pair, backend="eager")
    before = copy.deepcopy(model.state_dict())
    run(model, FuseBN([[""]], [2], "step"), precision=precision)
    pair = getattr(model.pair, "_orig_mod", model.pair)
    assert isinstance(pair[1], nn.Identity)
    assert pair[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert len(before) > len(model.state_dict())


def test_by_epoch_it_is_fused_before_the_first_forward_of_that_epoch() -> None:
    seen = []

    class Watch:
        @hookimpl
        def on_forward_begin(self, ctx: Any) -> None:
            seen.append(isinstance(ctx.model.pair[1], nn.Identity))

    run(Draws(), FuseBN([["pair"]], [0], "epoch"), Watch())
    assert seen == [True] * 4
