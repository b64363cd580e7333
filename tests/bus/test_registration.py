"""Who may register: what cannot be a plugin is told why, and what can is taken as it is."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest
from tiny import Listens, tiny_trainer

from hatbus import Bus, CallbackMixin, hookimpl, plugin
from hatbus.errors import PluginError
from hatbus.events.foreign_names import FOREIGN_NAMES
from hatbus.events.training import EVENTS


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


class TriesBoth:
    @hookimpl(tryfirst=True, trylast=True)
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
    (TriesBoth(), "on_step_end says tryfirst and trylast; say one of them"),
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
    bus = Bus([Listens()])
    with pytest.raises(PluginError, match="two plugins named 'listens'"):
        bus.register(Listens())


def test_two_of_a_kind_in_a_list_get_names_of_their_own() -> None:
    assert list(Bus([Listens(), Listens(), Listens()]).members) == [
        "listens",
        "listens_2",
        "listens_3",
    ]


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


def test_a_plugin_that_contradicts_the_others_is_refused_alone() -> None:
    bus = tiny_trainer({"first": plugin(before="second")(type("A", (Listens,), {}))()}).bus
    contradicting = plugin(before="first")(type("B", (Listens,), {}))()
    with pytest.raises(PluginError, match="cycle: first -> second -> first"):
        bus.register(contradicting, "second")
    assert bus.register(Listens(), "third") == "third"
    assert bus.register(Listens(), "second") == "second"
    assert [placed.name for placed in bus.order()] == ["first", "third", "second"]


def test_a_plugin_cannot_pass_for_one_of_hatbus_own() -> None:
    with pytest.raises(PluginError, match=r"plugin name 'core.mine' begins with 'core.'"):
        tiny_trainer({"core.mine": Listens()})


def test_an_unmarked_helper_of_a_hat_class_never_takes_a_spans_place() -> None:
    class Hat(CallbackMixin):
        def validate(self) -> bool:
            return True

        def on_step_end(self, **kwargs: Any) -> None: ...

    with pytest.raises(PluginError, match="validate is named like an event but not marked"):
        tiny_trainer([Hat()])


@pytest.mark.parametrize("method", ["state_dict", "load_state_dict"])
def test_half_a_state_is_refused(method: str) -> None:
    half = type("Half", (CallbackMixin,), {"on_step_end": lambda _, **__: None, method: print})
    with pytest.raises(PluginError, match=f"has {method} and no .*; define both, or neither"):
        tiny_trainer({"half": half()})
