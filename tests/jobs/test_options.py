"""A constructor's signature as the schema of a table in a job."""

# ruff: noqa: UP006, UP007, UP035, UP045 - HAT writes its hints like this

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Literal, Optional, Tuple, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatbus.errors import JobError
from hatbus.jobs.options import check, schema_of
from hatbus.jobs.references import Built, Call, References, finish, is_reference
from hatbus.jobs.type_hints import Mismatch, accepted, convert

if TYPE_CHECKING:
    from nowhere import Unknown


class Mode(Enum):
    LEAST = "min"
    MOST = 2


def find(text: str) -> Any:
    """Finds functions of the standard library only."""
    return References([Path()]).find(text)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, 3),
        (float, 3),
        (float, 0.5),
        (bool, True),
        (str, "any:text"),
        (Optional[int], 3),
        (int | None, 3),
        (Union[int, str], "three"),
        (Literal["min", "max"], "min"),
        (List[str], ["a", "b"]),
        (List[List[str]], [["a"], ["b"]]),
        (Sequence, [1, "a"]),
        (Dict[str, int], {"a": 1}),
        (Union[Dict, Callable], {"a": 1}),
        (Any, [1, {"a": "b"}]),
        (Union[str, Callable], "os.path:join"),
    ],
)
def test_a_value_of_the_hinted_type_is_taken_as_it_is(hint: Any, value: Any) -> None:
    taken = convert(value, hint, find)
    assert taken == value
    assert type(taken) is type(value)


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (int, "ten", "a whole number"),
        (int, 1.5, "a whole number"),
        (int, True, "a whole number"),
        (float, False, "a number"),
        (bool, 1, "true or false"),
        (str, 3, "a string"),
        (Optional[int], "3", "a whole number"),
        (Union[int, str], [], "a whole number, or a string"),
        (Literal["min", "max"], "mean", "'min', 'max'"),
        (List[str], ["a", 1], "a list, each of it a string"),
        (Tuple[float, int], [1.0], "a list of 2: a number, a whole number"),
        (Dict[str, int], {"a": "b"}, "a table, each value of it a whole number"),
        (Dict[str, List[float]], {"a": 1}, "a table, each value of it a list, each of it a number"),
        (Dict[str, Any], [1], "a table"),
        (Mode, "mean", "'LEAST', 'MOST'"),
        (Optional[Mode], 5, "'LEAST', 'MOST'"),
        (float, "infinite", "a number"),
        (int, "inf", "a whole number"),
        (int, "@none", "a whole number"),
        (Dict[str, float], {"a": "@none"}, "a table, each value of it a number"),
        (Callable[..., int], "nothing", "'file.py:name', 'package.module:name'"),
        (Path, 3, "a path"),
    ],
)
def test_a_value_of_another_type_is_refused_in_words(hint: Any, value: Any, words: str) -> None:
    with pytest.raises(Mismatch):
        convert(value, hint, find)
    assert accepted(hint).startswith(words)


def test_lists_become_what_the_hint_holds() -> None:
    assert convert([1, 0.5], Tuple[float], find) == (1, 0.5)
    assert convert([1, "a"], tuple[int, str], find) == (1, "a")
    assert convert(["a", "a"], set[str], find) == {"a"}
    assert convert("runs", Path, find) == Path("runs")


def test_a_text_names_an_object_only_where_no_text_is_wanted() -> None:
    import os.path

    assert convert("os.path:join", Callable[..., str], find) is os.path.join
    assert convert("os.path:join", Any, find) is os.path.join
    assert convert(["os.path:join"], Sequence, find) == [os.path.join]
    assert convert("os.path:join", str, find) == "os.path:join"
    assert convert("os.path:join", Optional[str], find) == "os.path:join"


def test_at_names_wait_for_what_the_entry_function_returned() -> None:
    value = convert(["@a", {"b": "@b"}, "@@c"], Iterable, find)
    assert finish(value, {"a": 1, "b": 2}) == [1, {"b": 2}, "@c"]
    with pytest.raises(JobError, match="returned no 'val_loadr'; did you mean 'val_loader'"):
        finish(Built("val_loadr"), {"val_loader": 1})


def test_a_call_table_is_called_with_its_other_entries() -> None:
    value = convert({"call": "builtins:dict", "size": 3, "of": "@x"}, object, find)
    assert isinstance(value, Call)
    assert finish(value, {"x": 7}) == {"size": 3, "of": 7}


def test_all_problems_of_a_table_are_reported_each_on_its_line() -> None:
    def target(save_dir: str, interval: int = 1, mode: Literal["min", "max"] = "min") -> None: ...

    table = {"intervl": 2, "interval": "two", "mode": "mean"}
    values, problems = check(target, table, "in job.toml [plugins.x]", find, also=("every",))
    assert values == {}
    assert problems == [
        "unknown option 'intervl' in job.toml [plugins.x]; did you mean 'interval'?",
        "option 'interval' is 'two' in job.toml [plugins.x]; accepted: a whole number",
        "option 'mode' is 'mean' in job.toml [plugins.x]; accepted: 'min', 'max'",
        "missing option 'save_dir' in job.toml [plugins.x]; accepted: a string",
    ]


def test_a_name_that_only_the_type_checker_imports_accepts_anything() -> None:
    class Plugin:
        def __init__(self, thing: Unknown, other: Sequence[Unknown], size: int = 1) -> None: ...

    values, problems = check(Plugin, {"thing": 1, "other": [2], "size": "a"}, "here", find)
    assert values == {"thing": 1, "other": [2]}
    assert problems == ["option 'size' is 'a' here; accepted: a whole number"]


def test_an_unannotated_parameter_has_the_type_of_its_default() -> None:
    class Plugin:
        def __init__(self, on="student", every=1, thing=None, **more): ...  # type: ignore[no-untyped-def]

    table = {"on": 3, "every": 2, "thing": {"a": 1}, "whatever": 5}
    values, problems = check(Plugin, table, "here", find)
    assert values == {"every": 2, "thing": {"a": 1}, "whatever": 5}
    assert problems == ["option 'on' is 3 here; accepted: a string"]


def test_a_dataclass_and_a_class_without_a_constructor_have_schemas_too() -> None:
    @dataclass(eq=False)
    class Plugin:
        size: int
        name: str = "x"

    assert list(schema_of(Plugin).options) == ["size", "name"]
    assert schema_of(type("Empty", (), {})).options == {}


def test_an_object_that_is_not_there_is_said_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "things_of_mine.py").write_text("def make_metrics(): ...\n")
    look = References([tmp_path]).find
    assert callable(look("things_of_mine.py:make_metrics"))
    with pytest.raises(JobError, match="did you mean 'make_metrics'"):
        look("things_of_mine.py:make_metric")
    with pytest.raises(JobError, match=r"no file 'other.py' \(looked for"):
        look("other.py:make")
    with pytest.raises(JobError, match=r"no file 'thing_of_mine.py' .*mean 'things_of_mine.py'"):
        look("thing_of_mine.py:make_metrics")
    with pytest.raises(JobError, match="no module 'no_such_package'"):
        look("no_such_package.module:make")


@given(st.text())
def test_no_text_breaks_the_reading_of_names(text: str) -> None:
    if not is_reference(text):
        with pytest.raises(JobError):
            find(text)


_TOML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
_HINTS = [int, float, bool, str, list[int], tuple[str, ...], dict[str, float], Any, Path]


@given(_TOML, st.sampled_from(_HINTS), st.sampled_from(_HINTS))
def test_any_value_fits_any_hint_or_is_a_mismatch(value: Any, one: Any, other: Any) -> None:
    for hint in (one, one | None if one is not Any else Any, Union[one, other]):
        try:
            convert(value, hint, None)
        except Mismatch:
            assert accepted(hint)


def test_an_object_that_was_found_before_is_taken_as_it_is() -> None:
    assert convert(len, Callable[..., int], None) is len
    assert convert([len], Sequence[Callable[..., int]], None) == [len]


@pytest.mark.parametrize(
    ("hint", "value", "taken"),
    [
        (Optional[int], "@none", None),
        (Union[str, None], "@none", None),
        (Literal["a", None], "@none", None),
        (Any, "@none", None),
        (Optional[List[Optional[int]]], [1, "@none"], [1, None]),
        (Dict[str, Optional[float]], {"a": "@none", "b": "inf"}, {"a": None, "b": float("inf")}),
        (Any, ["@none", {"a": "@none"}], [None, {"a": None}]),
        (str, "@@none", "@none"),
        (float, "inf", float("inf")),
        (Optional[float], "-inf", float("-inf")),
        (Union[float, str], "inf", "inf"),
        (Mode, "MOST", Mode.MOST),
        (Mode, "min", Mode.LEAST),
        (Mode, 2, Mode.MOST),
        (Optional[Mode], "LEAST", Mode.LEAST),
        (Union[Mode, str], "other", "other"),
        (List[Mode], ["MOST", "min"], [Mode.MOST, Mode.LEAST]),
    ],
)
def test_what_toml_has_not_is_written_as_a_word(hint: Any, value: Any, taken: Any) -> None:
    assert convert(value, hint, find) == taken


@pytest.mark.parametrize("word", ["none", "None", "null", ""])
def test_whoever_seems_to_mean_none_is_told_how_to_write_it(word: str) -> None:
    def target(every: int | None = 1, name: str = "") -> None: ...

    _, problems = check(target, {"every": word}, "here", find)
    assert problems == [
        f"option 'every' is {word!r} here; accepted: a whole number; for None write '@none'"
    ]
    assert check(target, {"every": "@none", "name": word}, "here", find) == (
        {"every": None, "name": word},
        [],
    )
