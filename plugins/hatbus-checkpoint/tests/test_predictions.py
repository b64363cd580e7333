"""``Predictions``: what is written of a model's outputs, and what is refused."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent))
from predicting import (
    DATA,
    Ends,
    Gives,
    Keeps,
    by_two,
    files,
    lines,
    predicted,
    tensors,
    trainer_of,
)

sys.path.pop(0)

from hatbus import hookimpl
from hatbus.data import loader
from hatbus.errors import DataError, JobError, SaveError
from hatbus.testing import PluginContract
from hatbus_checkpoint import Predictions


class TestPredictions(PluginContract):
    reads_every = None

    def make(self) -> Predictions:
        return Predictions()


def test_a_line_for_each_sample_holds_its_place_and_its_output_exactly(tmp_path: Path) -> None:
    outputs = torch.cat(predicted(tmp_path))
    assert [row["index"] for row in lines(tmp_path)] == [*range(11)]
    assert torch.equal(torch.tensor([row["output"] for row in lines(tmp_path)]), outputs)


def test_files_of_tensors_hold_so_many_samples_each(tmp_path: Path) -> None:
    outputs = torch.cat(predicted(tmp_path, format="safetensors"))
    found = tensors(tmp_path)
    assert found["index"].tolist() == [*range(11)]
    assert torch.equal(found["output"], outputs)
    sizes = [len(load_file(path)["index"]) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert sizes == [4, 4, 3]


@pytest.mark.parametrize(
    "data",
    [
        lambda: DataLoader(DATA, 2, shuffle=True),
        lambda: DataLoader(DATA, 2, shuffle=True, num_workers=1),
        lambda: loader(DATA, 2),
    ],
    ids=["torch", "workers", "hatbus"],
)
def test_a_shuffled_sample_is_known_by_its_place_in_the_data_set(
    tmp_path: Path, data: Callable[[], Any]
) -> None:
    model = torch.nn.Identity()
    predicted(tmp_path, data(), model=torch.nn.Sequential(model, Keeps()))
    places = [row["index"] for row in lines(tmp_path)]
    assert sorted(places) == [*range(11)] != places
    for row in lines(tmp_path):
        assert torch.equal(torch.tensor(row["output"]), DATA[row["index"]][0])


def test_outputs_of_several_parts_are_taken_apart_sample_by_sample(
    tmp_path: Path, caplog: Any
) -> None:
    def made(x: torch.Tensor) -> Any:
        boxes = [{"box": torch.ones(i, 2), "label": "cat"} for i in range(len(x))]
        return {"both": (x[:, 0], x[:, 1:]), "boxes": boxes, "loss": x.sum(), "none": None}

    caplog.set_level(logging.WARNING, "hatbus")
    predicted(tmp_path, model=Gives(made))
    x = DATA[3][0].tolist()
    row = lines(tmp_path)[3]["output"]
    assert row == {
        "both": [x[0], x[1:]],
        "boxes": {"box": [[1.0, 1.0]], "label": "cat"},
    }
    assert caplog.messages == [
        "predictions: output.loss is left out: it has no row for each sample"
    ]


def test_tensors_of_several_parts_have_a_name_each_and_another_shape_begins_a_file(
    tmp_path: Path,
) -> None:
    def made(x: torch.Tensor) -> Any:
        width = 2 if float(x[0, 0]) > 0 else 3
        return {"a": x[:, 0], "b": (x[:, :width], x)}

    predicted(tmp_path, model=Gives(made), format="safetensors", shard_size=100)
    shards = [load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert set(shards[0]) == {"index", "output.a", "output.b.0", "output.b.1"}
    whole = torch.cat([shard["output.b.1"] for shard in shards])
    assert torch.equal(whole, DATA.tensors[0])
    assert len(shards) > 1


def test_numbers_that_json_lacks_are_words(tmp_path: Path) -> None:
    def made(x: torch.Tensor) -> Any:
        return torch.tensor([[float("nan"), float("inf")]] * len(x))

    predicted(tmp_path, model=Gives(made))
    assert lines(tmp_path)[0]["output"] == ["nan", "inf"]


def test_entries_of_the_batch_are_kept_beside(tmp_path: Path) -> None:
    rows = [{"x": DATA[i][0], "id": f"picture {i}"} for i in range(11)]
    trainer = trainer_of(Predictions(tmp_path, keep=["id"]), model=Gives(lambda batch: batch["x"]))
    trainer.bus.members["core.batch_processor"].plugin.loss = None  # it gets whole batches
    list(trainer.predict(DataLoader(rows, 2)))  # type: ignore[arg-type]  # a list is a data set
    assert [row["id"] for row in lines(tmp_path)] == [f"picture {i}" for i in range(11)]


def test_a_number_keeps_an_entry_of_a_tuple(tmp_path: Path) -> None:
    target = torch.arange(11)
    data = DataLoader(TensorDataset(DATA.tensors[0], target), 2)
    predicted(tmp_path, data, keep=[1], format="safetensors")
    assert torch.equal(tensors(tmp_path)["1"], target)


def test_a_plugin_of_ones_own_writes_elsewhere() -> None:
    class Elsewhere:
        def __init__(self) -> None:
            self.found: list[Any] = []

        @hookimpl
        def write_outputs(self, samples: list[int], model_outs: torch.Tensor) -> bool:
            self.found.append((samples, model_outs))
            return True

    elsewhere = Elsewhere()
    outputs = list(trainer_of(elsewhere).predict(by_two()))
    assert [places for places, _ in elsewhere.found] == [[2 * i, 2 * i + 1] for i in range(5)] + [
        [10]
    ]
    assert all(map(torch.equal, outputs, (out for _, out in elsewhere.found)))


def test_a_plugin_around_it_changes_what_is_written(tmp_path: Path) -> None:
    class Best:
        @hookimpl(wrapper=True)
        def write_outputs(self, ctx: Any) -> Iterator[None]:
            ctx.model_outs = ctx.model_outs.argmax(1)
            return (yield)

    outputs = predicted(tmp_path, None, Best())
    assert [row["output"] for row in lines(tmp_path)] == torch.cat(outputs).tolist()


def test_a_loader_that_does_not_say_places_is_counted(tmp_path: Path) -> None:
    batches = [DATA.tensors[0][:4], DATA.tensors[0][4:]]
    predicted(tmp_path, batches)
    assert [row["index"] for row in lines(tmp_path)] == [*range(11)]


def test_samples_that_a_loader_leaves_out_are_told(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.WARNING, "hatbus")
    predicted(tmp_path, loader(DATA, 2, shuffle=False, drop_last=True))
    assert "10 of the data set's 11 samples are there" in caplog.text


# What is refused --------------------------------------------------------------------------------


def test_another_prediction_in_the_folder_is_refused_and_begun_anew_on_demand(
    tmp_path: Path,
) -> None:
    predicted(tmp_path)
    before = files(tmp_path)
    with pytest.raises(JobError, match=r"another prediction is in .* \(weights: .* there, "):
        predicted(tmp_path, model=Keeps())
    with pytest.raises(JobError, match="batch_size: 2 there, 3 now"):
        predicted(tmp_path, loader(DATA, 3, shuffle=False))
    assert files(tmp_path) == before
    (tmp_path / "mine.txt").write_text("stays")
    predicted(tmp_path, model=Keeps(), anew=True)
    assert torch.equal(torch.tensor([r["output"] for r in lines(tmp_path)]), DATA.tensors[0])
    assert (tmp_path / "mine.txt").read_text() == "stays"


def test_two_at_once_in_a_folder_are_kept_apart(tmp_path: Path) -> None:
    first = trainer_of(Predictions(tmp_path)).predict(by_two())
    next(first)
    with pytest.raises(JobError, match=r"another prediction writes into .*: process \d+ on"):
        predicted(tmp_path)
    assert len([*first]) == 5


def test_files_that_have_lost_something_are_refused(tmp_path: Path) -> None:
    for kind, name in (("jsonl", "predictions.jsonl.part"), ("safetensors", "*00000*")):
        here = tmp_path / kind
        with pytest.raises(KeyboardInterrupt):
            predicted(here, None, Ends(4, KeyboardInterrupt()), format=kind)
        (path,) = here.glob(name)
        path.write_bytes(b"") if kind == "jsonl" else path.unlink()
        with pytest.raises(JobError, match=r"the prediction in .* is damaged: .* begin it again"):
            predicted(here, format=kind)


@pytest.mark.parametrize(
    ("made", "options", "told"),
    [
        (lambda x: x.sum(), {}, r"nothing in the model's outputs \(Tensor\) has a row for each"),
        (lambda x: [object()] * len(x), {}, "output of a sample is a object; accepted: numbers"),
        (lambda x: ["cat"] * len(x), {"format": "safetensors"}, "choose format='jsonl'"),
        (lambda x: x, {"keep": ["id"]}, "keep: the batch has no 'id'"),
    ],
)
def test_outputs_that_cannot_be_written_are_told(
    tmp_path: Path, made: Any, options: Any, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        predicted(tmp_path, model=Gives(made), **options)


def test_options_that_cannot_be_are_told() -> None:
    with pytest.raises(JobError, match=r"predictions: format is 'json'; .* did you mean 'jsonl'"):
        Predictions(format="json")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(JobError, match="keep has 'index', which is the name of another part"):
        Predictions(keep=["index"])


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_predicted(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    asked: list[int] = []
    model = Gives(lambda x: asked.append(1) or x)
    with pytest.raises(SaveError, match="cannot write the outputs into"):
        predicted(tmp_path / "file" / "out", model=model)
    assert not asked
