"""What plugins do that nobody expects, and what the core makes of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batches, hearing, tiny_trainer, weights
from torch.utils.data import TensorDataset

from hatbus import CallbackMixin, hookimpl
from hatbus.data.loaders import loader
from hatbus.errors import HookError, PluginError
from hatbus.loop.context import Context


class Scales:
    """Puts another batch, or other outputs, in the place of what it is given."""

    def __init__(self, event: str, factor: float) -> None:
        self.event, self.factor = event, factor

    @hookimpl
    def on_batch_begin(self, ctx: Context, batch: Any) -> None:
        self._scale(ctx, batch, "on_batch_begin")

    @hookimpl
    def on_forward_begin(self, ctx: Context, batch: Any) -> None:
        self._scale(ctx, batch, "on_forward_begin")

    @hookimpl
    def on_forward_end(self, ctx: Context, model_outs: Any) -> None:
        if self.event == "on_forward_end":
            ctx.model_outs = model_outs * self.factor

    def _scale(self, ctx: Context, batch: Any, event: str) -> None:
        if self.event == event:
            ctx.batch = (batch[0] * self.factor, batch[1])


@pytest.mark.parametrize("event", ["on_batch_begin", "on_forward_begin", "on_forward_end"])
def test_what_a_plugin_changes_is_what_the_next_one_is_given(event: str) -> None:
    outs: list[torch.Tensor] = []
    hears = hearing(["on_backward_begin"], lambda _, v: outs.append(v["model_outs"].detach()))
    model = torch.nn.Linear(3, 1, bias=False)
    start = model.weight.detach().clone()
    plugins = {"two": Scales(event, 2.0), "five": Scales(event, 5.0), "hears": hears}
    tiny_trainer(plugins, model=model).fit(num_steps=1)
    torch.testing.assert_close(outs[0], 10 * batches(3)[0][0] @ start.T)


class Forgets:
    """Wraps a decision and forgets to return the answers."""

    @hookimpl(wrapper=True)
    def skip_update(self) -> Generator[None, Any, Any]:
        yield


class Never:
    """Skips every update."""

    @hookimpl
    def skip_update(self) -> str:
        return "never"


@pytest.mark.parametrize("options", [{}, {"nan": "skip_step"}])
def test_a_decisions_wrapper_that_loses_the_answers_is_refused(options: dict[str, str]) -> None:
    trainer = tiny_trainer({"never": Never(), "forgets": Forgets()}, **options)
    with pytest.raises(HookError, match=r"'forgets': skip_update is a decision.*returned None"):
        trainer.fit(num_steps=1)


class Swallows:
    """Keeps an error of the forward pass to itself, and returns nothing."""

    @hookimpl(wrapper=True)
    def forward(self) -> Generator[None, Any, Any]:
        try:
            return (yield)
        except RuntimeError:
            pass


def test_a_spans_wrapper_that_has_nothing_in_an_errors_place_is_refused() -> None:
    model = torch.nn.Linear(7, 1)  # does not fit the data
    with pytest.raises(HookError, match="'swallows': forward is a span and returned None"):
        tiny_trainer({"swallows": Swallows()}, model=model).fit(num_steps=1)


class SavesTheBest:
    """Asks for a validation at an epoch's end and, in it, for a checkpoint; provides both."""

    def __init__(self) -> None:
        self.saved: list[str] = []

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        ctx.control.validate("an epoch is over")

    @hookimpl
    def validate(self) -> dict[str, float]:
        return {"val/loss": 1.0}

    @hookimpl
    def on_validation_end(self, ctx: Context) -> None:
        ctx.control.save("the best so far")

    @hookimpl
    def save_checkpoint(self, reason: str) -> str:
        self.saved.append(reason)
        return "path"


def test_what_the_last_requests_ask_for_is_served_too() -> None:
    play = SavesTheBest()
    tiny_trainer([play]).fit(num_epochs=1)
    assert play.saved == ["the best so far"]


def test_requests_that_ask_for_one_another_end() -> None:
    class Circle(SavesTheBest):
        @hookimpl
        def on_validation_end(self, ctx: Context) -> None:
            self.saved.append("once more")
            ctx.control.validate("again")

    play = Circle()
    tiny_trainer([play]).fit(num_epochs=1)
    assert 1 < len(play.saved) < 8


def test_a_request_that_comes_too_late_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Late:
        @hookimpl
        def on_loop_end(self, ctx: Context) -> None:
            ctx.control.save("the end")

    tiny_trainer({"late": Late()}).fit(num_steps=1)
    assert "save: asked for by late too late: the run is over" in caplog.text


def test_an_epoch_begins_with_the_ids_of_its_first_step() -> None:
    found: list[tuple[int, ...]] = []
    ids = ("epoch_id", "step_id", "global_step_id")
    hears = hearing(["on_epoch_begin"], lambda _, v: found.append(tuple(v[i] for i in ids)))
    tiny_trainer([hears]).fit(num_epochs=3)
    assert found == [(0, 0, 0), (1, 0, 3), (2, 0, 6)]


@pytest.mark.parametrize("is_heard", [False, True])
def test_a_run_batch_of_ones_own_finds_the_outputs(is_heard: bool) -> None:
    class Own:
        @hookimpl
        def run_batch(self, ctx: Context) -> dict[str, torch.Tensor]:
            ctx.emit.forward(ctx)
            losses: dict[str, torch.Tensor] = ctx.emit.compute_loss(ctx)
            ctx.losses, ctx.loss = losses, losses["loss"]
            ctx.emit.backward(ctx)
            return losses

    plugins = [Own(), *([hearing(["on_forward_end"], lambda *_: None)] if is_heard else [])]
    trainer, plain = tiny_trainer(plugins), tiny_trainer()
    trainer.fit(num_steps=2)
    plain.fit(num_steps=2)
    assert weights(trainer).equal(weights(plain))


def test_a_step_that_failed_has_no_losses_of_the_step_before() -> None:
    class GoesOn:
        @hookimpl(wrapper=True)
        def run_step(self) -> Generator[None, Any, Any]:
            try:
                return (yield)
            except MemoryError:
                return False

    class Fails:
        @hookimpl
        def on_forward_begin(self, global_step_id: int) -> None:
            if global_step_id == 1:
                raise MemoryError

    found: list[list[str]] = []
    hears = hearing(["on_step_end"], lambda _, v: found.append([*v["losses"]]))
    tiny_trainer([GoesOn(), Fails(), hears]).fit(num_steps=3)
    assert found == [["loss"], [], ["loss"]]


def test_fp16_goes_on_after_an_error_inside_the_update() -> None:
    trainer = tiny_trainer(precision="fp16")
    trainer.ctx.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)  # does not overflow
    failing = trainer.ctx.optimizer.register_step_pre_hook(lambda *_: 1 / 0)  # type: ignore[union-attr]
    with pytest.raises(ZeroDivisionError):
        trainer.fit(num_steps=1)
    failing.remove()
    trainer.fit(num_steps=3)
    assert trainer.ctx.position.global_step == 3


def test_a_zero_grad_that_was_replaced_before_hatbus_came_is_called(tmp_path: Path) -> None:
    script = tmp_path / "early.py"
    script.write_text(
        "import torch\n"
        "torchs_own, called = torch.optim.Optimizer.zero_grad, []\n"
        "def zero_grad(self, *args):\n"
        "    called.append(1)\n"
        "    torchs_own(self, *args)\n"
        "torch.optim.Optimizer.zero_grad = zero_grad\n"
        "from hatbus import Trainer\n"
        "model = torch.nn.Linear(1, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "data = [(torch.ones(1, 1), torch.ones(1, 1))]\n"
        "Trainer(model, optimizer, data, torch.nn.functional.mse_loss).fit(num_epochs=3)\n"
        "print(len(called))\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "3\n"


def test_gradients_are_cleared_of_the_optimizer_that_zero_grad_is_of() -> None:
    class Delegates:
        """Has the groups that the optimizer began with, and its methods."""

        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner, self.param_groups = inner, [*inner.param_groups]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    trainer = tiny_trainer()
    weight, bias = trainer.ctx.model.parameters()
    optimizer = torch.optim.SGD([weight], lr=0.05)
    trainer.ctx.optimizer = Delegates(optimizer)  # type: ignore[assignment]
    optimizer.add_param_group({"params": [bias]})
    plain = tiny_trainer()
    for run in (trainer, plain):
        run.fit(num_steps=3)
    assert weights(trainer).equal(weights(plain))


@pytest.mark.parametrize("method", ["state_dict", "load_state_dict"])
def test_half_a_state_is_refused(method: str) -> None:
    half = type("Half", (CallbackMixin,), {"on_step_end": lambda _, **__: None, method: print})
    with pytest.raises(PluginError, match=f"has {method} and no .*; define both, or neither"):
        tiny_trainer({"half": half()})


def test_a_binding_to_an_unknown_task_is_refused_in_a_run_too() -> None:
    class Registers:
        @hookimpl
        def on_step_begin(self, ctx: Context) -> None:
            late = hearing(["on_batch_end"], lambda *_: None)
            ctx.bus.register(late, "late", overrides={"tasks": ["sge"]})

    data = {"det": batches(2), "seg": batches(2)}
    with pytest.raises(PluginError, match=r"'late' is bound to task 'sge'.*did you mean 'seg'"):
        tiny_trainer([Registers()], data).fit(num_steps=1)


class Counts:
    """Keeps a number in checkpoints."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def on_step_end(self) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def test_a_state_of_another_trainers_run_is_refused() -> None:
    class FailsFirst:
        @hookimpl
        def on_loop_begin(self) -> None:
            raise ValueError("a typo")

    counts, hears = Counts(), hearing(["on_step_end"], lambda *_: None)
    with pytest.raises(ValueError, match="a typo"):
        tiny_trainer({"counts": counts, "fails": FailsFirst()}).fit(num_steps=1)
    first = tiny_trainer({"counts": counts, "hears": hears})
    first.fit(num_steps=1)
    first.fit(num_steps=2)
    assert counts.count == 2
    with pytest.raises(PluginError, match="'counts' keeps what it saw in a run of another trainer"):
        tiny_trainer({"counts": counts}).fit(num_steps=1)
    tiny_trainer({"hears": hears}).fit(num_steps=1)


def test_a_state_that_was_loaded_is_no_longer_another_trainers() -> None:
    class Resumes:
        @hookimpl
        def on_loop_begin(self, ctx: Context) -> None:
            ctx.bus.load_state_dict({"counts": {"count": 5}})

    counts = Counts()
    tiny_trainer({"counts": counts}).fit(num_steps=3)
    tiny_trainer({"counts": counts, "resumes": Resumes()}).fit(num_steps=1)
    assert counts.count == 6


def test_a_plugin_with_slots_keeps_a_state() -> None:
    class Slim(Counts):
        __slots__ = ()

    class Slimmer:
        __slots__ = ("count",)
        __init__, state_dict = Counts.__init__, Counts.state_dict
        load_state_dict, on_step_end = Counts.load_state_dict, Counts.on_step_end

    plugins: Any = {"slim": Slim(), "slimmer": Slimmer()}
    tiny_trainer(plugins).fit(num_steps=2)
    assert [p.count for p in plugins.values()] == [2, 2]


def test_a_trainer_that_is_only_made_changes_no_other_ones_data() -> None:
    def orders(*, disturbed: bool) -> list[list[float]]:
        data = loader(TensorDataset(torch.arange(8.0).reshape(8, 1), torch.zeros(8, 1)), 2)
        seen: list[list[float]] = []

        class Sees:
            @hookimpl
            def on_batch_begin(self, batch: Any) -> None:
                seen.append(batch[0].flatten().tolist())

            @hookimpl
            def on_epoch_end(self) -> None:
                if disturbed:
                    tiny_trainer(data=data, model=torch.nn.Linear(1, 1), seed=5)

        trainer = tiny_trainer([Sees()], data, model=torch.nn.Linear(1, 1), seed=1)
        trainer.fit(num_epochs=2)
        return seen

    assert orders(disturbed=True) == orders(disturbed=False)


def test_an_epoch_of_which_only_the_end_is_left_ends_with_its_last_steps_ids() -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter(batches(3))

    found: list[tuple[int, ...]] = []
    ids = ("epoch_id", "step_id", "global_step_id")
    hears = hearing(["on_epoch_end"], lambda _, v: found.append(tuple(v[i] for i in ids)))
    trainer = tiny_trainer([hears], Stream())
    trainer.fit(num_steps=3)
    trainer.fit(num_steps=5)
    assert found == [(0, 2, 2), (0, 2, 2), (1, 1, 4)]
