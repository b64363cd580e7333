"""The functions that bring outputs and labels to the metrics."""

from __future__ import annotations

from collections import deque, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from hatbus.errors import PluginError
from hatbus_monitor.metrics import Accuracy, Mean
from hatbus_monitor.update_functions import by_index, by_regex, flatten, usual


class Seen:
    """A metric that keeps what it is given."""

    name = "seen"

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []

    def update(self, *given: Any) -> None:
        self.given.append(given)


OUTS = {"head": [torch.tensor([[0.0, 1.0]]), {"loss": torch.tensor(2.0)}], "aux": 5}
BATCH = (torch.zeros(1), {"cls": torch.tensor([1]), "box": 7})


def test_names_of_nested_things_are_joined_by_underscores() -> None:
    point = namedtuple("Point", "x y")(1, (2, 3))
    assert flatten({"a": [4, {"b": 5}], "p": point}) == {
        "a_0": 4,
        "a_1_b": 5,
        "p_x": 1,
        "p_y_0": 2,
        "p_y_1": 3,
    }
    assert flatten(6) == {"": 6}


def test_index_leads_into_outputs_and_batch() -> None:
    one, other = Seen(), Seen()
    by_index(pred=[("head", 0), "aux"], label=[(1, "cls"), ()])([one, other], BATCH, OUTS)
    assert one.given == [(OUTS["head"][0], BATCH[1]["cls"])]
    assert other.given == [(5,)]


def test_index_by_default_is_whole_outputs_and_second_of_batch() -> None:
    seen = Seen()
    by_index()({"seen": seen}, BATCH, 3)
    assert seen.given == [(3, BATCH[1])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pred": "hed"}, "no 'hed' in the model's outputs .dict.; did you mean 'head'"),
        ({"label": 4}, "no 4 in the batch .tuple."),
        ({"pred": ["aux", "aux"]}, "2 entries in .* for 1 metrics"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        by_index(**options)([Seen()], BATCH, OUTS)


def test_patterns_match_one_name_each() -> None:
    one, other = Seen(), Seen()
    by_regex(pred=["head_0", ".*loss"], label=["1_cls", None])([one, other], BATCH, OUTS)
    assert one.given == [(OUTS["head"][0], BATCH[1]["cls"])]
    assert other.given == [(OUTS["head"][1]["loss"],)]


@pytest.mark.parametrize(
    ("pred", "message"),
    [("head", "'head' matches 'head_0', 'head_1_loss' in"), ("x", "'x' matches nothing in the")],
)
def test_a_pattern_that_matches_none_or_several_is_refused(pred: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        by_regex(pred)([Seen()], BATCH, OUTS)


def test_a_text_that_is_no_pattern_is_refused_when_built() -> None:
    with pytest.raises(PluginError, match=r"'\(' is no pattern"):
        by_regex("(")


def test_usual_gives_means_the_loss_and_others_outputs_and_target() -> None:
    total, aux, accuracy = Mean("total"), Mean("aux"), Accuracy()
    losses = {"cls": torch.tensor(1.0), "aux": torch.tensor(3.0)}
    batch = (None, torch.tensor([1, 0]))
    usual([total, aux, accuracy], batch, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), losses)
    assert [m.compute().item() for m in (total, aux, accuracy)] == [4.0, 3.0, 0.5]


def test_usual_gives_no_weight_to_a_mean_of_ones_own_that_takes_none() -> None:
    class Doubled(Mean):
        def update(self, value: Any) -> None:  # type: ignore[override]
            super().update(value * 2)

    mean = Doubled("loss")
    usual([mean], (torch.zeros(4, 3), torch.zeros(4)), None, {"loss": torch.tensor(3.0)})
    assert mean.compute().item() == 6.0


def test_usual_leaves_out_a_batch_without_samples() -> None:
    mean, accuracy = Mean("loss"), Accuracy()
    full, empty = (torch.zeros(4, 3), torch.zeros(4)), (torch.zeros(0, 3), torch.zeros(0))
    for batch, loss in ((full, 2.0), (empty, float("nan"))):
        outs = torch.zeros(len(batch[1]), 2)
        usual([mean, accuracy], batch, outs, {"loss": torch.tensor(loss)})
    assert (float(mean.compute()), float(accuracy.compute())) == (2.0, 1.0)


@dataclass
class Record:
    """A batch that is a dataclass."""

    x: torch.Tensor
    deep: Any


def test_fields_of_a_dataclass_have_names_and_paths() -> None:
    batch = Record(torch.ones(2), {"y": deque([torch.zeros(2)])})
    assert list(flatten(batch)) == ["x", "deep_y_0"]
    seen = Seen()
    by_index(pred=None, label=("deep", "y", 0))([seen], batch, torch.ones(2))
    assert seen.given[0][1] is batch.deep["y"][0]
    with pytest.raises(PluginError, match=r"no 'z' in the batch \(Record\)"):
        by_index(pred=None, label="z")([seen], batch, torch.ones(2))


def test_usual_counts_a_loss_once_per_sample_of_its_batch() -> None:
    mean = Mean("loss")
    for size, loss in ((4, 1.0), (1, 6.0)):
        usual([mean], (torch.zeros(size, 3), torch.zeros(size)), None, {"loss": torch.tensor(loss)})
    usual([mean], ("no tensor", None), None, {"loss": torch.tensor(2.0)})
    assert mean.compute().item() == (4 * 1 + 6 + 2) / 6


def test_usual_gives_a_metric_of_ignite_outputs_and_target_as_a_pair() -> None:
    kind = type("Ignites", (Seen,), {"__module__": "ignite.metrics.accuracy"})
    seen, batch, outs = kind(), (torch.zeros(2), torch.ones(2)), torch.zeros(2)
    usual([seen], batch, outs, {"loss": torch.tensor(1.0)})
    assert seen.given == [((outs, batch[1]),)]


def test_usual_feeds_a_running_average_of_ignite_as_an_engine_does() -> None:
    class RunningAverage(Seen):
        src: Any = None

        def _output_transform(self, output: torch.Tensor) -> torch.Tensor:
            return 2 * output

    RunningAverage.__module__ = "ignite.metrics.running_average"
    batch, outs = (torch.zeros(2), torch.ones(2)), torch.zeros(2)
    of_loss, of_metric = RunningAverage(), RunningAverage()
    of_metric.src = Seen()
    usual([of_loss, of_metric], batch, outs, {"loss": torch.tensor(1.0)})
    assert of_loss.given == [(torch.tensor(2.0),)]
    assert of_metric.src.given == of_metric.given == [((outs, batch[1]),)]
