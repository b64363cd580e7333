"""What holds when things go wrong, happen twice, or come at an odd time."""

from __future__ import annotations

import copy
import gc
import linecache
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import batches, hearing, tiny_trainer, weights

from hatbus import BatchProcessor, Bus, CallbackMixin, hookimpl, plugin
from hatbus.bus.blame import FILE_PREFIX
from hatbus.data.task_sampler import WeightedTasks
from hatbus.errors import CheckpointError, HookError, JobError, NonFiniteError, PluginError
from hatbus.insight.profile import Profile
from hatbus.loop.context import Context
from hatbus.loop.finite import FiniteLoss
from hatbus.loop.precision import scaled_step


class Fails:
    """Fails at the end of its first step."""

    @hookimpl
    def on_step_end(self) -> None:
        raise ValueError("broken")


class Sees:
    """Writes down what it is told at the ends of steps and of the run."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        self.seen.append(ctx.exception)

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        self.seen.append(ctx.exception)


class FailsToValidate:
    """Provides a validation that fails, and lives with that."""

    @hookimpl
    def validate(self) -> bool:
        raise ValueError("no data")

    @hookimpl
    def on_validation_end(self, ctx: Context) -> None:
        assert isinstance(ctx.exception, ValueError)

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        try:
            ctx.emit.validate(ctx, "try")
        except ValueError as error:
            self.caught = error


def test_an_error_that_a_plugin_caught_is_not_the_end_of_the_run() -> None:
    sees = Sees()
    tiny_trainer({"fails": FailsToValidate(), "sees": sees}).fit(num_steps=2)
    assert sees.seen == [None, None, None]


def test_an_error_that_was_caught_on_the_way_out_leaves_the_one_that_ends_the_run() -> None:
    sees = Sees()
    trainer = tiny_trainer({"breaks": Fails(), "fails": FailsToValidate(), "sees": sees})
    with pytest.raises(ValueError, match="broken") as caught:
        trainer.fit(num_steps=2)
    assert sees.seen == [caught.value, caught.value]
    assert trainer.ctx.exception is caught.value
    trainer.bus.unregister("breaks")
    trainer.fit(num_steps=3)
    assert trainer.ctx.exception is None


def test_a_span_within_a_loop_of_ones_own_tells_its_end_what_happened() -> None:
    sees = Sees()
    ctx = tiny_trainer([sees]).ctx
    with pytest.raises(KeyError), ctx.within("run_step"):
        raise KeyError("mine")
    assert isinstance(sees.seen[0], KeyError)
    assert ctx.exception is None


def test_an_error_in_an_end_does_not_wake_a_plugin_that_is_not_due() -> None:
    sees = Sees()
    trainer = tiny_trainer({"fails": Fails()})
    trainer.bus.register(sees, "sees", overrides={"every": "100 steps"})
    with pytest.raises(ValueError, match="broken"):
        trainer.fit(num_steps=2)
    assert len(sees.seen) == 1  # on_loop_end


def test_a_wrapper_of_an_end_that_fails_before_it_yields_keeps_nobody_from_hearing_it() -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def on_step_end(self, ctx: Context) -> Generator[None, Any, Any]:
            if ctx.exception is None:
                raise ValueError("broken")
            yield

    sees = Sees()
    with pytest.raises(ValueError, match="broken") as caught:
        tiny_trainer({"wraps": Wraps(), "sees": sees}).fit(num_steps=2)
    assert sees.seen == [caught.value, caught.value]


def test_a_request_names_its_author_also_after_that_one_registered_another_plugin() -> None:
    class Recruits:
        @hookimpl
        def on_step_begin(self, ctx: Context, global_step_id: int) -> None:
            ctx.bus.register(Sees(), f"late{global_step_id}")
            ctx.control.stop("epoch", "done")
            self.by = ctx.control.pending[-1].by

    recruits = Recruits()
    tiny_trainer({"recruits": recruits}).fit(num_steps=2)
    assert recruits.by == "recruits"


def test_a_keyword_only_argument_with_a_default_is_given() -> None:
    class Wants:
        @hookimpl
        def on_step_end(self, *, global_step_id: int = -1) -> None:
            self.step = global_step_id

    wants = Wants()
    tiny_trainer([wants]).fit(num_steps=2)
    assert wants.step == 1


def test_nothing_of_a_trainer_that_is_gone_stays_behind() -> None:
    def frozen() -> int:
        gc.collect()
        return sum(name.startswith(FILE_PREFIX) for name in linecache.cache)

    before = frozen()
    trainer = tiny_trainer([hearing(["on_step_end"], lambda *_: None)])
    trainer.fit(num_steps=1)
    trainer.fit(num_steps=2)
    assert frozen() > before
    del trainer
    assert frozen() == before


class Asks:
    """Asks for something at the end of some epochs or steps."""

    def __init__(self, wish: str, event: str, *ids: int, **arguments: Any) -> None:
        self.wish, self.event, self.ids, self.arguments = wish, event, ids, arguments

    @hookimpl
    def on_epoch_end(self, ctx: Context, epoch_id: int) -> None:
        if self.event == "epoch" and epoch_id in self.ids:
            getattr(ctx.control, self.wish)(**self.arguments)


def test_a_stop_of_an_epoch_that_is_over_ends_neither_the_run_nor_the_next_epoch() -> None:
    trainer = tiny_trainer([Asks("stop", "epoch", 0, 1, what="epoch")])
    trainer.fit(num_epochs=3)
    assert (trainer.ctx.position.epoch, trainer.ctx.position.global_step) == (3, 9)


@pytest.mark.parametrize("bad", [0, 1, 2, 3])
def test_a_nan_in_any_micro_batch_is_seen_before_it_reaches_the_weights(bad: int) -> None:
    data = batches(4)
    data[bad] = (data[bad][0] * float("nan"), data[bad][1])
    trainer = tiny_trainer(data=data, accumulate=2)
    with pytest.raises(NonFiniteError, match=f"is nan in step {bad // 2}"):
        trainer.fit(num_epochs=1)
    assert weights(trainer).isfinite().all()


def test_the_losses_of_a_step_are_what_its_gradient_is_of() -> None:
    mse, seen = torch.nn.functional.mse_loss, []
    recorder = hearing(["on_step_end"], lambda _, v: seen.append(float(v["losses"]["loss"])))
    trainer = tiny_trainer([recorder], batches(3), accumulate=2)
    model = copy.deepcopy(trainer.ctx.model)
    expected = sum(mse(model(x), y).item() for x, y in batches(3)[:2]) / 2
    trainer.fit(num_steps=1)
    assert seen == [pytest.approx(expected)]


def test_model_outs_are_none_before_the_forward_pass() -> None:
    seen: list[Any] = []
    events = ["on_batch_begin", "on_forward_begin", "skip_batch"]
    recorder = hearing(events, lambda e, v: seen.append(v.get("model_outs")))
    tiny_trainer([recorder], accumulate=2).fit(num_steps=3)
    assert set(seen) == {None}


def test_a_step_that_fails_before_its_update_has_not_committed_one() -> None:
    committed: list[bool] = []

    class Breaks:
        @hookimpl
        def on_step_begin(self, global_step_id: int) -> None:
            if global_step_id == 1:
                raise ValueError("broken")

        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            committed.append(ctx.committed)

    with pytest.raises(ValueError, match="broken"):
        tiny_trainer([Breaks()]).fit(num_steps=2)
    assert committed == [True, False]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_processor_that_wants_no_gradients_makes_no_update(precision: str) -> None:
    processor = BatchProcessor(torch.nn.functional.mse_loss, need_grad_update=False)
    trainer = tiny_trainer(loss=None, batch_processor=processor, precision=precision)
    before = weights(trainer)
    trainer.fit(num_steps=2)
    assert trainer.ctx.updates == 0
    assert weights(trainer).equal(before)


def test_a_run_after_too_many_skipped_steps_counts_from_none() -> None:
    trainer = tiny_trainer(
        nan="skip_step", loss=lambda o, t: torch.nn.functional.mse_loss(o, t) * float("nan")
    )
    for end in (11, 22):
        with pytest.raises(NonFiniteError, match="after 10 skipped steps in a row"):
            trainer.fit(num_steps=99)
        assert trainer.ctx.position.global_step == end


def test_losses_that_wait_to_be_looked_at_are_looked_at_before_a_checkpoint() -> None:
    finite = FiniteLoss(torch.device("cuda"))
    finite.see(SimpleNamespace(global_step_id=3, losses={"loss": torch.tensor(float("inf"))}))
    with pytest.raises(NonFiniteError, match="loss 'loss' is inf in step 3"):
        finite.veto_checkpoint()
    assert finite.veto_checkpoint() is None


def test_a_plugin_with_an_interval_may_leave_and_come_again() -> None:
    sees = Sees()
    trainer = tiny_trainer()
    for _ in range(2):
        trainer.bus.register(sees, "sees", overrides={"every": "2 steps"})
        trainer.bus.unregister("sees")
    trainer.bus.register(sees, "sees", overrides={"every": "2 steps"})
    trainer.fit(num_steps=4)
    assert len(sees.seen) == 3  # steps 1 and 3, and on_loop_end


def test_every_two_writers_of_one_thing_are_compared() -> None:
    writes = plugin(writes="weights")(type("Writes", (Sees,), {}))
    bus = Bus()
    for name, task in (("a", "x"), ("b", "y"), ("c", "y")):
        bus.register(writes(), name, overrides={"tasks": [task]})
    with pytest.raises(PluginError, match="'b' and 'c' both write 'weights'"):
        bus.freeze()


def test_a_plugin_cannot_pass_for_one_of_hatbus_own() -> None:
    with pytest.raises(PluginError, match=r"plugin name 'core.mine' begins with 'core.'"):
        tiny_trainer({"core.mine": Sees()})


def test_state_of_a_core_part_that_this_run_does_without_is_left_out() -> None:
    state = tiny_trainer(nan="skip_step").bus.state_dict()
    assert "core.finite_loss" in state
    tiny_trainer(nan="raise").bus.load_state_dict(state)
    tiny_trainer(nan="ignore").bus.load_state_dict(state)
    with pytest.raises(CheckpointError, match="'mine', which is not in this run"):
        tiny_trainer(nan="ignore").bus.load_state_dict({**state, "mine": {}})


def test_an_unmarked_helper_of_a_hat_class_never_takes_a_spans_place() -> None:
    class Hat(CallbackMixin):
        def validate(self) -> bool:
            return True

        def on_step_end(self, **kwargs: Any) -> None: ...

    with pytest.raises(PluginError, match="validate is named like an event but not marked"):
        tiny_trainer([Hat()])


@pytest.mark.parametrize("event", ["run_step", "skip_update", "on_step_end"])
def test_a_profiled_wrapper_that_yields_twice_is_refused_as_ever(event: str) -> None:
    names: dict[str, Any] = {}
    exec(f"def {event}(self):\n    result = yield\n    yield result", names)
    wraps = type("Wraps", (), {event: hookimpl(names[event], wrapper=True)})()
    trainer = tiny_trainer({"wraps": wraps})
    Profile().watch(trainer.bus)
    with pytest.raises(HookError, match=f"'wraps': {event} is a wrapper and yielded twice"):
        trainer.fit(num_steps=1)


@pytest.mark.parametrize("weight", [0.0, float("inf")])
def test_weights_that_choose_no_task_are_explained(weight: float) -> None:
    data = {"det": batches(2), "seg": batches(2)}
    sampler = WeightedTasks({"det": weight, "seg": 0})
    with pytest.raises(JobError, match="accepted: finite, and not 0 for all"):
        tiny_trainer(data=data, task_sampler=sampler)


def test_updates_are_counted_in_a_step_of_a_plugins_own_whether_anybody_watches_or_not() -> None:
    class OwnStep:
        @hookimpl
        def run_step(self, ctx: Any) -> bool:
            ctx.optimizer.zero_grad()
            ((ctx.task, ctx.batch, ctx.weight),) = ctx.batches
            ctx.emit.run_batch(ctx)
            ctx.emit.clip_gradients(ctx)
            return ctx.emit.optimizer_step(ctx)

    class Watches:
        @hookimpl
        def on_optimizer_step_end(self) -> None: ...

    for plugins in ([OwnStep()], [OwnStep(), Watches()]):
        ctx = tiny_trainer(plugins).fit(num_steps=3)
        assert (ctx.updates, ctx.committed) == (3, True)


def test_fp16_knows_of_the_update_of_an_optimizer_that_wraps_another() -> None:
    class Wraps(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

        def step(self) -> None:
            self.inner.step()

    weight = torch.nn.Parameter(torch.ones(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = Wraps(torch.optim.SGD([weight], lr=0.1))
    for gradient, committed in ((1.0, True), (float("inf"), False)):
        scaler.scale(weight.sum() * gradient).backward()
        scaler.unscale_(optimizer)
        assert scaled_step(scaler, optimizer) is committed
        weight.grad = None
