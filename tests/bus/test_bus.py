"""The bus: who may register, in which order, in whose scope, and what one writer may claim."""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest
from tiny import batches, hearing, tiny_trainer, weights

from hatbus import Bus, CallbackMixin, hookimpl, plugin
from hatbus.errors import HookError, PluginError
from hatbus.events.foreign_names import FOREIGN_NAMES
from hatbus.events.training import EVENTS
from hatbus.loop.context import Context


class Listens:
    @hookimpl
    def on_step_end(self) -> None: ...


class Unmarked:
    @hookimpl
    def on_step_end(self) -> None: ...

    def on_epoch_end(self) -> None: ...


class Misspelt:
    @hookimpl
    def on_step_ends(self) -> None: ...


class UnmarkedMisspelt:
    @hookimpl
    def on_step_end(self) -> None: ...

    def on_epoch_edn(self) -> None: ...


class HatMisspelt(CallbackMixin):
    def on_step_end(self, **kwargs: Any) -> None: ...

    def on_epoch_edn(self, **kwargs: Any) -> None: ...


class Foreign:
    @hookimpl
    def before_train_iter(self) -> None: ...


class HatHalfForeign(CallbackMixin):
    def on_step_end(self, **kwargs: Any) -> None: ...

    def on_train_epoch_start(self, **kwargs: Any) -> None: ...


class HatForeign(CallbackMixin):
    def on_epoch_start(self, **kwargs: Any) -> None: ...


class HatNothing(CallbackMixin):
    def method(self) -> None: ...


class WrongArgument:
    @hookimpl
    def on_step_end(self, optimiser: Any) -> None: ...


class Nothing:
    def method(self) -> None: ...


class NotAGenerator:
    @hookimpl(wrapper=True)
    def forward(self) -> None: ...


class UnmarkedGenerator:
    @hookimpl
    def forward(self) -> Generator[None, Any, Any]:
        return (yield)


class OldStyle:
    @hookimpl(hookwrapper=True)
    def forward(self) -> Generator[None, Any, Any]:
        yield


class Async:
    @hookimpl
    async def on_step_end(self) -> None: ...


class TriesFirst:
    @hookimpl(tryfirst=True)
    def on_step_end(self) -> None: ...


class Star:
    @hookimpl
    def on_step_end(self, *args: Any) -> None: ...


class KeywordOnly:
    @hookimpl
    def on_step_end(self, *, losses: Any) -> None: ...


@dataclass
class Compares:
    value: int = 0

    @hookimpl
    def on_step_end(self) -> None: ...


REFUSED = [
    (Listens, "is the class Listens; give an instance"),
    (Unmarked(), "on_epoch_end is named like an event but not marked; put @hookimpl"),
    (Misspelt(), "unknown event 'on_step_ends'; did you mean 'on_step_end'"),
    (UnmarkedMisspelt(), "on_epoch_edn is no event; did you mean 'on_epoch_end'\\?"),
    (HatMisspelt(), "on_epoch_edn is no event; did you mean 'on_epoch_end'\\?"),
    (HatForeign(), "on_epoch_start is no event, and another trainer's name for 'on_epoch_begin'"),
    (HatHalfForeign(), "on_train_epoch_start is no event, and another trainer's name for 'on_ep"),
    (Foreign(), "unknown event 'before_train_iter'; did you mean 'on_batch_begin'\\?"),
    (HatNothing(), "no event; override a method of CallbackMixin, such as on_step_end"),
    (WrongArgument(), "unknown argument 'optimiser'; did you mean 'optimizer'"),
    (Nothing(), "implements no event; mark its methods with @hookimpl"),
    (NotAGenerator(), "is a wrapper and must yield once"),
    (UnmarkedGenerator(), "yields; mark it @hookimpl\\(wrapper=True\\)"),
    (OldStyle(), "old-style wrapper; use @hookimpl\\(wrapper=True\\)"),
    (Async(), "is async; events are plain calls"),
    (TriesFirst(), "declare a place with @plugin"),
    (Star(), "takes \\*args; name the arguments"),
    (KeywordOnly(), "by keyword only; remove the `\\*`"),
    (Compares(), "compares by value.*eq=False"),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED)
def test_what_cannot_be_a_plugin_is_told_why(wrong: object, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Bus({"wrong": wrong})


def test_foreign_names_are_of_events_and_hide_none() -> None:
    assert set(FOREIGN_NAMES.values()) <= set(EVENTS)
    assert not set(FOREIGN_NAMES) & set(EVENTS)


def test_a_class_that_serves_another_trainer_too_is_a_plugin() -> None:
    class Elsewhere:
        def on_train_epoch_end(self) -> None: ...

    class Both(Elsewhere):
        @hookimpl
        def on_step_end(self) -> None: ...

        def on_save(self) -> None: ...

    class BothFromHat(CallbackMixin, Elsewhere):
        def on_step_end(self, **kwargs: Any) -> None: ...

    Bus([Both(), BothFromHat()])


def test_methods_of_a_users_own_are_free_to_be_called_on_something() -> None:
    class Window(CallbackMixin):
        def on_step_end(self, **kwargs: Any) -> None: ...
        def on_button(self) -> None: ...
        def on_login(self) -> None: ...
        def on_step(self) -> None: ...

    class Marked:
        @hookimpl
        def on_step_end(self) -> None: ...
        @hookimpl(specname="on_epoch_end")
        def on_epoch_ends(self) -> None: ...
        def on_button(self) -> None: ...

    assert list(Bus({"window": Window(), "marked": Marked()}).members) == ["window", "marked"]


def test_a_second_plugin_under_a_name_is_refused() -> None:
    with pytest.raises(PluginError, match="two plugins named 'listens'"):
        Bus([Listens(), Listens()])


def test_an_object_is_registered_once() -> None:
    one = Listens()
    with pytest.raises(PluginError, match="'b' is the object registered as 'a' already"):
        Bus({"a": one, "b": one})


def test_a_refused_plugin_leaves_the_bus_as_it_was() -> None:
    bus = Bus({"a": Listens()})
    with pytest.raises(PluginError):
        bus.register(Nothing(), "b")
    assert list(bus.members) == ["a"]
    bus.emitter()


def test_a_class_written_for_hat_registers_unchanged() -> None:
    heard: list[tuple[Any, ...]] = []

    class Hat(CallbackMixin):
        def on_batch_end(self, batch: Any, model_outs: Any, **kwargs: Any) -> None:
            heard.append((len(batch), model_outs.shape, sorted(kwargs)[:3]))

        def on_step_end(self, global_step_id: Any = None, epoch_id: Any = None) -> None:
            heard.append((epoch_id, global_step_id))

    tiny_trainer([Hat()]).fit(num_steps=1)
    assert heard == [(2, (4, 1), ["ctx", "data_loader", "device"]), (0, 0)]


@plugin(stage="checkpoint")
class Late(Listens):
    pass


@plugin(stage="setup")
class Early(Listens):
    pass


def order_of(bus: Bus, event: str = "on_step_end") -> list[str]:
    return [impl.plugin_name for impl in bus.implementations(event)]


def test_implementations_run_in_the_declared_order() -> None:
    assert order_of(Bus({"late": Late(), "plain": Listens(), "early": Early()})) == [
        "early",
        "plain",
        "late",
    ]


def test_the_job_may_override_a_declaration() -> None:
    bus = Bus({"late": Late()})
    bus.register(Listens(), "plain", overrides={"stage": "report"})
    bus.register(Listens(), "other", overrides={"after": "late", "stage": "checkpoint"})
    assert order_of(bus) == ["late", "other", "plain"]


def test_the_order_is_the_same_for_every_order_of_registration_but_the_jobs() -> None:
    members: dict[str, type[Listens]] = {"a": Late, "b": Early}
    orders = set()
    for seed in range(50):
        names = list(members)
        random.Random(seed).shuffle(names)
        orders.add(tuple(order_of(Bus({n: members[n]() for n in names}))))
    assert orders == {("b", "a")}


def test_wrappers_nest_by_the_same_order() -> None:
    log: list[str] = []

    def wrapping(name: str) -> object:
        def forward(self: object) -> Generator[None, Any, Any]:
            log.append(f"{name} in")
            result = yield
            log.append(f"{name} out")
            return result

        return type("Wrapping", (), {"forward": hookimpl(forward, wrapper=True)})()

    trainer = tiny_trainer({"a": wrapping("a")})
    trainer.bus.register(wrapping("b"), "b", overrides={"stage": "setup"})
    trainer.fit(num_steps=1)
    assert log == ["b in", "a in", "a out", "b out"]


def test_registering_while_the_run_is_on_takes_effect_at_the_next_event() -> None:
    heard: list[str] = []

    class Invites:
        @hookimpl
        def on_step_begin(self, ctx: Context, global_step_id: int) -> None:
            if global_step_id == 1:
                ctx.bus.register(hearing(["on_step_end"], lambda e, _: heard.append(e)), "guest")
            if global_step_id == 2:
                ctx.bus.unregister("guest")

    tiny_trainer([Invites()]).fit(num_steps=3)
    assert heard == ["on_step_end"]


def test_a_replacement_runs_in_place_of_the_default() -> None:
    class Frozen:
        @hookimpl
        def optimizer_step(self) -> bool:
            return False

    trainer = tiny_trainer([Frozen()])
    before = weights(trainer)
    trainer.fit(num_steps=2)
    assert weights(trainer).equal(before)
    assert trainer.ctx.updates == 0


def test_a_span_that_returns_none_is_an_error_that_says_what_to_do() -> None:
    class Forgets:
        @hookimpl
        def backward(self, ctx: Context) -> None:
            ctx.loss.backward()

    with pytest.raises(HookError, match="plugin 'forgets': backward is a span and returned None"):
        tiny_trainer([Forgets()]).fit(num_steps=1)


def test_a_wrapper_that_loses_the_result_is_an_error() -> None:
    class Loses:
        @hookimpl(wrapper=True)
        def forward(self) -> Generator[None, Any, Any]:
            yield

    with pytest.raises(HookError, match=r"plugin 'loses': forward .* from a wrapper what `yield`"):
        tiny_trainer([Loses()]).fit(num_steps=1)


def test_two_replacements_of_one_span_are_refused() -> None:
    class Replaces:
        @hookimpl
        def backward(self) -> bool:
            return True

    with pytest.raises(PluginError, match="'a' and 'b' both replace backward"):
        tiny_trainer({"a": Replaces(), "b": Replaces()}).fit(num_steps=1)


@plugin(writes="optimizer.lr")
class Writes(Listens):
    pass


def test_two_writers_of_one_thing_are_refused() -> None:
    with pytest.raises(PluginError, match=r"'a' and 'b' both write 'optimizer.lr'; switch one off"):
        Bus({"a": Writes(), "b": Writes()}).freeze()


def test_writers_of_different_tasks_may_stand_beside_each_other() -> None:
    bus = Bus()
    bus.register(Writes(), "a", overrides={"tasks": "det"})
    bus.register(Writes(), "b", overrides={"tasks": "seg"})
    bus.freeze()


def test_a_moment_with_a_result_is_refused_in_strict_mode() -> None:
    class Returns:
        @hookimpl
        def on_step_end(self) -> int:
            return 1

    bus = Bus([Returns()], strict=True)
    with pytest.raises(HookError, match="on_step_end is a moment and returned 1"):
        bus.emitter().on_step_end(Context(bus))


def test_state_is_collected_and_given_back_by_instance_name() -> None:
    class Counts(Listens):
        def __init__(self, count: int = 0) -> None:
            self.count = count

        def state_dict(self) -> dict[str, int]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.count = state["count"]

    saved = Bus({"a": Counts(1), "b": Counts(2), "c": Listens()}).state_dict()
    assert saved == {"a": {"count": 1}, "b": {"count": 2}}
    a, b = Counts(), Counts()
    Bus({"b": b, "a": a}).load_state_dict(saved)
    assert (a.count, b.count) == (1, 2)


def test_a_plugin_off_gives_the_same_loss_as_one_that_is_not_there() -> None:
    class Draws:
        @hookimpl
        def on_step_end(self) -> None: ...

    with_it, without = tiny_trainer([Draws()]), tiny_trainer()
    with_it.fit(num_epochs=2)
    without.fit(num_epochs=2)
    assert weights(with_it).equal(weights(without))


def test_plugins_of_rank_zero_are_silent_elsewhere() -> None:
    heard: list[str] = []
    bus = Bus(rank=1)
    recorder = hearing(["on_step_end"], lambda e, _: heard.append(e))
    bus.register(recorder, "writer", overrides={"ranks": "zero"})
    assert bus.emitter().on_step_end is None


def test_a_task_that_the_run_does_not_have_is_refused() -> None:
    trainer = tiny_trainer(data={"det": batches(1), "seg": batches(1)})
    trainer.bus.register(Listens(), "a", overrides={"tasks": "dat"})
    with pytest.raises(PluginError, match=r"bound to task 'dat'.*did you mean 'det'"):
        trainer.fit(num_steps=1)


def test_a_plugin_that_contradicts_the_others_is_refused_alone() -> None:
    bus = tiny_trainer({"first": plugin(before="second")(type("A", (Listens,), {}))()}).bus
    contradicting = plugin(before="first")(type("B", (Listens,), {}))()
    with pytest.raises(PluginError, match="cycle: first -> second -> first"):
        bus.register(contradicting, "second")
    assert bus.register(Listens(), "third") == "third"
    assert bus.register(Listens(), "second") == "second"
    assert [placed.name for placed in bus.order()] == ["first", "third", "second"]
