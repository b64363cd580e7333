"""Frozen dispatch does what pluggy does, for random sets of implementations and of plugins.

Two things differ on purpose. A wrapper that yields twice makes pluggy leave the teardowns of the
wrappers around it out; here they run (see test_dispatch.py). And pluggy turns round the order of
those that say ``trylast``; here they are registered the other way round, so that it agrees.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pluggy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hatbus import Bus, hookimpl
from hatbus.bus.dispatch import freeze
from hatbus.events.declare import STAGES
from hatbus.events.training import DECISION, MOMENT, SPAN, Event
from hatbus.loop.context import Context

ARGUMENTS = ("epoch_id", "step_id", "task", "path")  # the last is a parameter, not of the context
VALUES = {"epoch_id": 1, "step_id": 2, "task": "det", "path": "p"}
PLAIN = ("return_none", "return_value", "raise_error", "raise_stop", "raise_interrupt")
WRAPPING = (
    "pass_on",
    "change",
    "raise_before",
    "raise_after",
    "swallow",
    "raise_another",
    "raise_stop_after",
    "never_yield",
)
BODIES = {
    "return_none": "return None",
    "return_value": "return '{name}'",
    "raise_error": "raise ValueError('{name}')",
    "raise_stop": "raise StopIteration('{name}')",
    "raise_interrupt": "raise KeyboardInterrupt('{name}')",
    "pass_on": "result = yield; log.append('{name} after'); return result",
    "change": "result = yield; return change(result, '{name}')",
    "raise_before": "raise ValueError('{name}')\n    yield",
    "raise_after": "yield; log.append('{name} after'); raise ValueError('{name}')",
    "swallow": """
    try:
        return (yield)
    except BaseException as error:
        log.append(('{name} swallowed', kind_of(error)))
        return instead('{name}')""",
    "raise_another": """
    try:
        return (yield)
    except Exception as error:
        log.append('{name} translated')
        raise LookupError('{name}') from error""",
    "raise_stop_after": "yield; raise StopIteration('{name}')",
    "never_yield": "return '{name}'\n    yield",
}

plugin_strategy = st.fixed_dictionaries(
    {
        "body": st.sampled_from(PLAIN + WRAPPING),
        "arguments": st.lists(st.sampled_from(ARGUMENTS), unique=True, max_size=3),
        "default": st.sampled_from(("", *ARGUMENTS)),
        "place": st.sampled_from(("", "tryfirst", "trylast")),
    }
)


def spec(epoch_id: int, step_id: int, task: str, path: str) -> None:
    """The event."""


def kind_of(error: BaseException) -> str:
    """The type of an error; a wrong yield is a RuntimeError of pluggy and a HookError here."""
    return "wrong yield" if "yield" in str(error) else type(error).__name__


def implementation(index: int, drawn: dict[str, Any], log: list[Any], kind: str) -> Any:
    """A function as drawn, which logs its call and arguments."""
    name = f"p{index}"
    arguments = list(drawn["arguments"])
    default = drawn["default"]
    signature = [a for a in arguments if a != default]
    if default:
        signature.append(f"{default}=None")
    seen = ", ".join([a for a in arguments if a != default] + ([default] if default else []))
    source = f"def event({', '.join(signature)}):\n    log.append(('{name}', [{seen}]))\n    "
    names: dict[str, Any] = {
        "log": log,
        "kind_of": kind_of,
        "change": lambda result, who: [*result, who] if kind == DECISION else f"{result} {who}",
        "instead": lambda who: [who] if kind == DECISION else f"instead {who}",
    }
    exec(source + BODIES[drawn["body"]].format(name=name), names)
    flags = {drawn["place"]: True} if drawn["place"] else {}
    return pluggy.HookimplMarker("test")(names["event"], wrapper=drawn["body"] in WRAPPING, **flags)


def outcome(call: Any, log: list[Any]) -> tuple[Any, list[Any]]:
    """The result or exception of a call, and what was logged."""
    log.clear()
    try:
        result = ("returned", call())
    except BaseException as error:
        kind = kind_of(error)
        result = ("raised", kind, None if kind == "wrong yield" else error.args)
    return result, list(log)


def plain(result: Any, kind: str) -> Any:
    """A frozen result in pluggy's form: a decision's answers without the plugins' names."""
    if kind == MOMENT or result[0] != "returned":
        return result[:1] if kind == MOMENT and result[0] == "returned" else result
    if kind == DECISION:
        return result[0], [r[1] if isinstance(r, tuple) else r for r in result[1]]
    return result


@settings(max_examples=400, deadline=None)
@given(st.lists(plugin_strategy, max_size=6), st.sampled_from((SPAN, MOMENT, DECISION)))
def test_frozen_dispatch_equals_pluggy(drawn: list[dict[str, Any]], kind: str) -> None:
    # a span that nobody does is an error, where pluggy has None for it
    assume(kind != SPAN or any(one["body"] not in WRAPPING for one in drawn))
    log: list[Any] = []
    manager = pluggy.PluginManager("test")
    marked = pluggy.HookspecMarker("test")(spec, firstresult=kind == SPAN)
    manager.add_hookspecs(SimpleNamespace(event=marked))
    for index, one in enumerate(drawn):
        plugin = SimpleNamespace(event=implementation(index, one, log, kind))
        # "core." plugins may leave a span to the next one by returning None, as in pluggy
        manager.register(plugin, f"core.p{index}")
    event = Event("event", kind, ("ctx", *ARGUMENTS), per_task=False, doc="")
    frozen = freeze(event, manager.hook.event.get_hookimpls())
    ctx = SimpleNamespace(**{n: v for n, v in VALUES.items() if n != "path"}, exception=None)

    expected = outcome(lambda: manager.hook.event(**VALUES), log)
    if frozen is None:
        assert drawn == []
        return
    found = outcome(lambda: frozen(ctx, VALUES["path"]), log)

    assert plain(found[0], kind) == plain(expected[0], kind)
    assert found[1] == expected[1]


placed_strategy = st.fixed_dictionaries(
    {
        "stage": st.sampled_from(STAGES),
        "place": st.sampled_from(("", "tryfirst", "trylast")),
        "wrapper": st.booleans(),
    }
)


def logging_method(name: str, log: list[str], *, wrapper: bool) -> Any:
    """An ``on_step_end`` that writes down its calls."""
    if not wrapper:
        return lambda self: log.append(name)

    def around(self: object) -> Any:
        log.append(f"{name} in")
        result = yield
        log.append(f"{name} out")
        return result

    return around


@settings(max_examples=100, deadline=None)
@given(st.lists(placed_strategy, max_size=7))
def test_plugins_run_in_pluggys_order_when_they_are_registered_by_stage(
    drawn: list[dict[str, Any]],
) -> None:
    log: list[str] = []
    bus, manager = Bus(), pluggy.PluginManager("test")
    marked = pluggy.HookspecMarker("test")(lambda: None)
    manager.add_hookspecs(SimpleNamespace(on_step_end=marked))
    for index, one in enumerate(drawn):
        flags = {"wrapper": one["wrapper"], **({one["place"]: True} if one["place"] else {})}
        method = logging_method(f"p{index}", log, wrapper=one["wrapper"])
        plugin = type("Plugin", (), {"on_step_end": hookimpl(method, **flags)})()
        bus.register(plugin, f"p{index}", overrides={"stage": one["stage"]})
    staged = sorted(range(len(drawn)), key=lambda i: STAGES.index(drawn[i]["stage"]))
    last = [i for i in staged if drawn[i]["place"] == "trylast"]
    for index in (*last, *reversed([i for i in staged if i not in last])):
        one = drawn[index]
        flags = {"wrapper": one["wrapper"], **({one["place"]: True} if one["place"] else {})}
        method = logging_method(f"p{index}", log, wrapper=one["wrapper"])
        plugin = type("Plugin", (), {"on_step_end": pluggy.HookimplMarker("test")(method, **flags)})
        manager.register(plugin(), f"p{index}")

    manager.hook.on_step_end()
    expected = list(log)
    log.clear()
    emitted = bus.emitter().on_step_end
    if emitted is not None:
        emitted(Context(bus))
    assert log == expected
