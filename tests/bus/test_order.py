"""The order of plugins is what they and the job declare, and nothing else."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatbus.bus.order import Place, resolve
from hatbus.errors import OrderError, PluginError
from hatbus.events.declare import STAGES, Declaration, declaration_of, plugin


def order(*places: Place) -> list[str]:
    return [placed.name for placed in resolve(places)]


def place(name: str, stage: str = "monitor", position: int = 0, **soft: tuple[str, ...]) -> Place:
    return Place(name, Declaration(stage=stage, **soft), position)


def test_stages_come_first() -> None:
    backwards = [place(stage, stage, -i) for i, stage in enumerate(STAGES)]
    assert order(*backwards) == list(STAGES)


def test_before_and_after_come_next() -> None:
    assert order(place("a", after=("c",)), place("b"), place("c")) == ["b", "c", "a"]
    assert order(place("a"), place("b", before=("a",))) == ["b", "a"]


def test_then_the_order_of_the_job_then_the_name() -> None:
    assert order(place("a", position=2), place("b", position=1)) == ["b", "a"]
    assert order(place("b"), place("a")) == ["a", "b"]


def test_an_edge_to_a_plugin_that_is_not_there_is_ignored() -> None:
    assert order(place("a", after=("nobody",)), place("b")) == ["a", "b"]


def test_a_name_is_an_instance_or_else_every_instance_of_a_plugin_of_that_name() -> None:
    two = [Place(name, Declaration(), 0, kind="validation") for name in ("x", "y")]
    assert order(place("a", after=("validation",)), *two) == ["x", "y", "a"]
    assert order(place("z", before=("validation",)), *two) == ["z", "x", "y"]
    named = Place("validation", Declaration(), 1, kind="other")
    assert order(place("a", after=("validation",)), *two, named) == ["x", "y", "validation", "a"]
    assert (
        order(*two, Place("w", Declaration(before=("validation",)), 2, kind="validation"))[0] == "w"
    )


def test_a_cycle_is_an_error_that_prints_the_cycle() -> None:
    with pytest.raises(
        OrderError, match=r"a -> c -> b -> a|c -> b -> a -> c|b -> a -> c -> b"
    ) as e:
        order(place("a", after=("b",)), place("b", after=("c",)), place("c", after=("a",)))
    assert "a says after b" in str(e.value)
    assert "drop one before/after" in str(e.value)


def test_an_edge_against_the_stages_names_both_and_the_way_out() -> None:
    with pytest.raises(OrderError, match=r"stage = 'checkpoint' into \[plugins.ema\]") as error:
        order(place("ema", "average", after=("saver",)), place("saver", "checkpoint"))
    assert "stage average before stage checkpoint" in str(error.value)


def test_every_plugin_is_told_why_it_stands_where_it_does() -> None:
    placed = resolve([place("a", position=3, after=("b",)), place("b", position=4)])
    assert placed[1].reasons == ("stage monitor", "a says after b", "number 4 in the job")


def test_what_a_subclass_does_not_declare_is_as_its_parent_declares_it() -> None:
    @plugin(stage="checkpoint", before="b", writes=["weights"], every="2 steps")
    class Parent: ...

    @plugin(after="a", every="", ranks="zero")
    class Child(Parent): ...

    declared = Declaration("checkpoint", before=("b",), after=("a",), ranks="zero")
    assert declaration_of(Child()) == replace(declared, writes=("weights",))
    assert declaration_of(Parent()).ranks == "all"


def test_an_unknown_stage_is_refused_with_the_closest() -> None:
    with pytest.raises(PluginError, match="unknown stage 'raport'; did you mean 'report'"):
        plugin(stage="raport")


drawn_places = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(STAGES), st.integers(0, 3)),
    unique_by=lambda drawn: drawn[0],
)


@given(drawn_places, st.randoms())
def test_the_order_never_depends_on_who_came_first(
    drawn: list[tuple[str, str, int]], chance: random.Random
) -> None:
    places = [place(name, stage, position) for name, stage, position in drawn]
    expected = order(*places)
    chance.shuffle(places)
    assert order(*places) == expected
