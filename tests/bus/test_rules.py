"""Rules over all plugins: one writer of each thing, one replacement of each span, known tasks."""

from __future__ import annotations

import pytest
from tiny import Listens, batches, hearing, tiny_trainer

from hatbus import Bus, hookimpl, plugin
from hatbus.errors import PluginError
from hatbus.loop.context import Context


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


def test_a_task_that_the_run_does_not_have_is_refused() -> None:
    trainer = tiny_trainer(data={"det": batches(1), "seg": batches(1)})
    trainer.bus.register(Listens(), "a", overrides={"tasks": "dat"})
    with pytest.raises(PluginError, match=r"bound to task 'dat'.*did you mean 'det'"):
        trainer.fit(num_steps=1)


def test_every_two_writers_of_one_thing_are_compared() -> None:
    writes = plugin(writes="weights")(type("Writes", (Listens,), {}))
    bus = Bus()
    for name, task in (("a", "x"), ("b", "y"), ("c", "y")):
        bus.register(writes(), name, overrides={"tasks": [task]})
    with pytest.raises(PluginError, match="'b' and 'c' both write 'weights'"):
        bus.freeze()


def test_a_binding_to_an_unknown_task_is_refused_in_a_run_too() -> None:
    class Registers:
        @hookimpl
        def on_step_begin(self, ctx: Context) -> None:
            late = hearing(["on_batch_end"], lambda *_: None)
            ctx.bus.register(late, "late", overrides={"tasks": ["sge"]})

    data = {"det": batches(2), "seg": batches(2)}
    with pytest.raises(PluginError, match=r"'late' is bound to task 'sge'.*did you mean 'seg'"):
        tiny_trainer([Registers()], data).fit(num_steps=1)
