"""``Predictions``: what is written of a model's outputs, and that nothing ends it but its end."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent))
from disk import FaultyOs, Killed
from killing import killed

sys.path.pop(0)

from hatbus import Trainer, hookimpl
from hatbus.data import loader
from hatbus.errors import DataError, JobError, SaveError
from hatbus.testing import PluginContract
from hatbus_checkpoint import Predictions, durable, output_files

DATA = TensorDataset(torch.randn(11, 3, generator=torch.Generator().manual_seed(1)))
FORMATS = ["jsonl", "safetensors"]


class TestPredictions(PluginContract):
    reads_every = None

    def make(self) -> Predictions:
        return Predictions()


def trainer_of(*plugins: object, model: Any = None) -> Trainer:
    torch.manual_seed(0)
    model = model or torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, optimizer, [(torch.ones(1, 3), torch.ones(1, 2))], sum, plugins)


def predicted(folder: Path, data: Any = None, *more: object, model: Any = None, **options: Any):
    """The outputs of a prediction that writes into a folder, with two samples in a shard."""
    options = {"shard_size": 3, **options}
    trainer = trainer_of(*more, Predictions(folder, **options), model=model)
    return list(trainer.predict(by_two() if data is None else data))


def by_two() -> Any:
    return loader(DATA, 2, shuffle=False)


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder, without hidden files."""
    found = (p for p in folder.iterdir() if not p.name.startswith("."))
    return {p.name: p.read_bytes() for p in found}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "predictions.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The shards of a folder, put together."""
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


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


class Keeps(torch.nn.Module):
    """Gives its inputs; has a parameter for the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.one


class Gives(Keeps):
    """Gives what a function makes of the inputs."""

    def __init__(self, made: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.made = made

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.made(inputs)


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


# It goes on -------------------------------------------------------------------------------------


class Ends:
    """Ends the prediction at a batch."""

    def __init__(self, batch: int, error: BaseException | None = None) -> None:
        self.batch, self.error = batch, error

    @hookimpl(wrapper=True)
    def write_outputs(self, step_id: int) -> Iterator[None]:
        if step_id == self.batch:
            if self.error is None:
                os.kill(os.getpid(), 9)
            raise self.error
        return (yield)


class Noisy(Keeps):
    """Draws random numbers in eval mode too."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.one + torch.rand(inputs.shape)


class Drawn(torch.utils.data.Dataset):
    """Samples that are drawn when they are read."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> torch.Tensor:
        return DATA[index][0] + torch.rand(3)


LOADERS = {
    "hatbus": by_two,
    "torch": lambda: DataLoader(Drawn(), 2, shuffle=True),
    "list": lambda: list(DATA.tensors[0].split(2)),
}


@pytest.mark.parametrize(
    ("kind", "data", "batch"),
    [
        ("jsonl", "hatbus", 0),
        ("jsonl", "torch", 3),
        ("jsonl", "list", 5),
        ("safetensors", "hatbus", 5),
        ("safetensors", "torch", 5),
        ("safetensors", "list", 3),
    ],
)
def test_a_killed_prediction_goes_on_and_ends_with_the_same_files(
    tmp_path: Path, kind: str, data: str, batch: int
) -> None:
    predicted(tmp_path / "whole", LOADERS[data](), model=Noisy(), format=kind)
    here = tmp_path / "killed"
    killed(lambda: predicted(here, LOADERS[data](), Ends(batch), model=Noisy(), format=kind))
    rest = predicted(here, LOADERS[data](), model=Noisy(), format=kind)
    assert files(here) == files(tmp_path / "whole")
    assert len(rest) <= 6


def test_an_interrupted_one_goes_on_behind_its_last_batch(tmp_path: Path, caplog: Any) -> None:
    whole = predicted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        predicted(tmp_path / "it", None, Ends(4, KeyboardInterrupt()))
    assert set(files(tmp_path / "it")) == {"predictions.json", "predictions.jsonl.part"}
    caplog.set_level(logging.INFO, "hatbus")
    rest = predicted(tmp_path / "it")
    assert "8 samples are in" in caplog.text
    assert all(map(torch.equal, rest, whole[4:]))
    assert files(tmp_path / "it") == files(tmp_path / "whole")


def test_one_that_is_left_early_goes_on(tmp_path: Path) -> None:
    predicted(tmp_path / "whole")
    outputs = trainer_of(Predictions(tmp_path / "it", shard_size=3)).predict(by_two())
    next(outputs), next(outputs)
    outputs.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(predicted(tmp_path / "it")) == 4
    assert files(tmp_path / "it") == files(tmp_path / "whole")


def test_a_whole_one_is_not_done_again(tmp_path: Path) -> None:
    predicted(tmp_path)
    before = files(tmp_path)
    assert predicted(tmp_path) == []
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("jsonl", "kill"), ("jsonl", "ENOSPC"), ("jsonl", "short"), ("safetensors", "kill")],
)
def test_a_fault_at_any_call_costs_nothing_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fault: str
) -> None:
    monkeypatch.setattr(output_files, "_SECONDS", 0.0)  # progress after every batch
    data = lambda: DataLoader(TensorDataset(DATA.tensors[0][:5]), 2)  # noqa: E731
    predicted(tmp_path / "whole", data(), format=kind, shard_size=1)
    whole, at = files(tmp_path / "whole"), 0
    while True:
        here, disk = tmp_path / f"{at}", DeadOs(at, fault)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", disk)
            patch.setattr(output_files, "os", disk)
            try:
                predicted(here, data(), format=kind, shard_size=1)
            except (Killed, SaveError):
                assert fault != "short"
        assert whole_rows(here) <= whole_rows(tmp_path / "whole")
        predicted(here, data(), format=kind, shard_size=1)
        assert files(here) == whole, (at, disk.hit)
        if disk.count <= at:
            break
        at += 1 if fault == "kill" else 3
    assert at > 20


class DeadOs(FaultyOs):
    """A dead process cuts nothing off either."""

    def __getattr__(self, name: str) -> Any:
        if name == "ftruncate" and self.dead:
            raise Killed
        return super().__getattr__(name)


def whole_rows(folder: Path) -> set[bytes]:
    """The rows that are written as far as the progress says; each can be read."""
    try:
        progress = json.loads((folder / "predictions.json").read_text())
    except FileNotFoundError:
        return set()
    shards = [load_file(folder / n) for n in progress["files"] if n.endswith("safetensors")]
    if shards:
        return {bytes([i]) + row.numpy().tobytes() for s in shards for i, row in _pairs(s)}
    name = next((p for p in folder.glob("predictions.jsonl*")), None)
    text = name.read_bytes()[: progress["bytes"]] if name else b""
    found = text.splitlines(keepends=True)
    assert len(found) == progress["samples"]
    assert all(json.loads(line) for line in found)
    return set(found)


def _pairs(shard: dict[str, torch.Tensor]) -> Any:
    return zip(shard["index"].tolist(), shard["output"], strict=True)


FULL = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_predictions import FORMATS, Path, big, predicted
from hatbus.errors import SaveError
from hatbus_checkpoint import output_files
output_files._SECONDS = 0
for kind in FORMATS:
    try:
        predicted(Path(sys.argv[2]) / kind, big(), format=kind, shard_size=64)
    except SaveError as error:
        print(error)
"""
MOUNTED = """
mount -t tmpfs -o size={size}k,mode=777 tmpfs {disk} || exit 99
{command}
cp -r {disk} {saved}
"""


def big() -> Any:
    inputs = torch.randn(1000, 3, generator=torch.Generator().manual_seed(1))
    return loader(TensorDataset(inputs), 8, shuffle=False)


def test_a_disk_that_is_really_full_is_told_and_with_room_it_goes_on(tmp_path: Path) -> None:
    disk, saved = tmp_path / "disk", tmp_path / "saved"
    disk.mkdir()
    words = [sys.executable, "-W", "ignore", "-c", FULL, Path(__file__).parent, disk]
    command = shlex.join(map(str, words))
    script = MOUNTED.format(size=48, disk=disk, command=command, saved=saved)
    unshared = ["unshare", "-rm", "sh", "-c", script]
    ran = subprocess.run(unshared, capture_output=True, text=True, check=False)
    if not saved.exists():
        pytest.skip(f"no file system can be mounted here: {ran.stderr}")
    told = "No space left on device; what was written before is good: make room"
    assert ran.stdout.count(told) == 2, ran.stdout + ran.stderr
    assert 0 < len(whole_rows(saved / "jsonl")) < 1000
    for kind in FORMATS:
        options = {"format": kind, "shard_size": 64}
        predicted(saved / kind, big(), **options)
        predicted(tmp_path / kind, big(), **options)
        assert files(saved / kind) == files(tmp_path / kind)


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
