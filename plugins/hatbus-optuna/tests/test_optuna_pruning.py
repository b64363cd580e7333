"""``OptunaPruning`` where Optuna is not installed: what it refuses, and its state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hatbus.errors import JobError
from hatbus_optuna import OptunaPruning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "loss"}, "there is no trial; accepted: the optuna.Trial"),
        ({"metric": "loss", "trial": 7}, "trial is 7; accepted: the optuna.Trial"),
        ({"metric": ""}, "metric is ''; accepted: a name"),
        ({"metric": "loss", "value": "bset"}, "value is 'bset'; .*did you mean 'best'"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        OptunaPruning(**arguments)


def test_what_was_reported_is_kept() -> None:
    trial = SimpleNamespace(should_prune=bool)
    one, other = OptunaPruning("loss", trial), OptunaPruning("loss", trial)
    one.best, one.last = 0.25, 0.5
    other.load_state_dict(one.state_dict())
    assert (other.best, other.last, other.is_pruned, other.result) == (
        0.25,
        0.5,
        False,
        other.result,
    )
