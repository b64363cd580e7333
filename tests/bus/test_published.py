"""A published number is Python's own for whoever hears of it, whatever library it came from."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from tiny import hearing, tiny_trainer

from hatbus import hookimpl
from hatbus.bus.published import one_number, plain, plain_values
from hatbus.errors import HookError, PluginError


class Level(IntEnum):
    HIGH = 3


DTYPES = ["f2", "f4", "f8", "g", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["scalar", "0-d", "one element", "one element in two dimensions"])
def test_numpys_numbers_become_pythons_own_by_value(dtype: str, form: str) -> None:
    one = np.dtype(dtype).type(5)
    shapes: dict[str, Any] = {
        "0-d": (),
        "one element": (1,),
        "one element in two dimensions": (1, 1),
    }
    found = plain(one if form == "scalar" else np.full(shapes[form], one))
    assert found == 5
    assert type(found) is (int if np.dtype(dtype).kind in "iu" else float)


def test_other_numbers_become_pythons_own_and_what_is_none_stays() -> None:
    assert plain(np.bool_(True)) is True
    assert math.isnan(plain(np.ma.masked))
    assert plain(np.ma.masked_array(2.5, mask=False)) == 2.5
    assert [plain(x) for x in (Fraction(1, 4), Decimal("0.5"), Level.HIGH)] == [0.25, 0.5, 3]
    for value in (np.zeros(2), np.complex64(1j), np.datetime64("2020"), "text", None, object()):
        assert plain(value) is value


def test_a_tensor_is_left_on_its_device_and_plain_values_are_not_copied() -> None:
    values = {"a": 1.0, "b": torch.zeros(()), "c": 2}
    assert plain_values(values) is values
    parameter = torch.nn.Parameter(torch.zeros(()))
    assert plain_values({"a": parameter, "b": np.float32(1)})["a"] is parameter


def test_sinks_and_latest_see_the_plain_number() -> None:
    class Publishes:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            ctx.log({"score": np.float32(0.5), "count": np.int64(7), "both": np.zeros(2)})

    seen: list[Any] = []
    hears = hearing(["on_log"], lambda _, v: seen.append(dict(v["logs"])))
    latest = tiny_trainer([Publishes(), hears]).fit(num_steps=1).latest
    assert (type(latest["score"]), latest["score"], latest["count"]) == (float, 0.5, 7)
    assert (seen[0]["score"], type(seen[0]["count"])) == (0.5, int)
    assert seen[0]["both"].shape == (2,)


def test_an_image_of_numpy_stays_an_array() -> None:
    class Publishes:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            ctx.log({"picture": np.zeros((1, 1))}, kind="image")

    latest = tiny_trainer([Publishes()]).fit(num_steps=1).latest
    assert isinstance(latest["picture"], np.ndarray)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(2), r"score has shape \(2,\); accepted: a single number"),
        (np.zeros((2, 2)), r"score has shape \(2, 2\)"),
        ("bad", "score is 'bad'; accepted: a single number"),
        (torch.tensor(1j), "score is tensor"),
        (None, "score is None"),
    ],
)
def test_what_is_no_single_number_is_refused_by_name(value: Any, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        one_number("score", value)


def test_one_number_reads_every_form() -> None:
    forms = (2, 2.0, torch.tensor(2), torch.tensor([2.0]), np.float16(2), np.array([2]), True)
    assert [one_number("score", value) for value in forms] == [2.0] * 6 + [1.0]


@pytest.mark.parametrize("kinds", list(itertools.permutations(("scalar", "image", "text"), 2)))
def test_a_name_in_two_kinds_is_refused_with_both(kinds: tuple[str, str]) -> None:
    values = {"scalar": 1.0, "image": torch.zeros(2, 2), "text": "a"}

    class Publishes:
        @hookimpl
        def on_step_end(self, ctx: Any, global_step_id: int) -> None:
            kind = kinds[global_step_id >= 2]
            ctx.log({"other": 1.0, "more": 2})
            ctx.log({f"own/{kind}": values[kind], "x": values[kind]}, kind)

    trainer = tiny_trainer([Publishes()])
    first, second = kinds
    with pytest.raises(HookError, match=f"'x' is published as '{second}', and was as '{first}'"):
        trainer.fit(num_epochs=1)
    assert trainer.ctx.position.global_step == 3
