"""A resume inside an epoch gives each of two processes what it had gathered itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_trainer
from torch.utils.data import TensorDataset
from two_processes import run_on_two

from hatbus.callbacks import Checkpoint, MetricUpdater
from hatbus.data.loaders import loader

RESUMES = """
import json, logging, sys
from pathlib import Path
import test_resume_on_two_processes as here

here.torch.set_num_threads(1)
said = logging.Handler(logging.WARNING)
lines = []
said.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("hatbus").addHandler(said)

rank = int(sys.argv[1])
seen = {"whole": here.rows("whole", num_epochs=2)}
seen["begun"] = here.rows("begun", num_steps=5)
(found,) = Path("begun").glob("checkpoint-*/")
seen["resumed"] = here.rows("resumed", resume=str(found), num_epochs=2)
(found,) = Path("of_one").glob("checkpoint-*/")
seen["from one"] = here.rows("from_one", resume=str(found), num_steps=8)
seen["said"] = lines
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
"""


class Kept:
    """A metric of a user's, not shared among processes: its own samples, and a large tensor."""

    name = "kept"

    def __init__(self) -> None:
        self.reset()

    def update(self, values: torch.Tensor) -> None:
        self.large[: len(self.seen) + 1] += values.sum()
        self.seen.append(values.clone())

    def compute(self) -> torch.Tensor:
        return self.large.sum() + torch.cat(self.seen).square().sum()

    def reset(self) -> None:
        self.large = torch.zeros(5000)
        self.seen: list[torch.Tensor] = []


def numbers(metrics: Any, batch: Any, model_outs: Any) -> None:
    """Gives each metric the first number of every sample."""
    for metric in metrics:
        metric.update(batch[0][:, 0])


def rows(folder: str, size: int = 2, resume: str | None = None, **until: int) -> list[Any]:
    """The metrics after every step of a run that saves after its fifth, if it begins anew."""
    inputs = torch.arange(96.0).reshape(32, 3) / 100
    data = loader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), size, seed=1)
    updater = MetricUpdater(numbers, ["mean", Kept()], step_storage_freq=1, log_prefix="a")
    options = {"interval_by": "step", "save_on_train_end": False, "resume": resume}
    saves = Checkpoint(folder, save_interval=None if resume else 5, **options)
    ctx = tiny_trainer([updater, saves], data, seed=3).fit(**until)
    stored = ctx.storage["monitor_obj"]
    return [[r["global_step_id"], float(r["a/mean"]), float(r["a/kept"])] for r in stored]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of one process has saved."""
    place = tmp_path_factory.mktemp("resumes")
    rows(str(place / "of_one"), size=4, num_steps=5)
    return place


@pytest.fixture(scope="module")
def ranks(folder: Path, checkout: Path) -> list[dict[str, Any]]:
    """What two processes saw before and after a resume."""
    return run_on_two(RESUMES, folder, checkout)


def test_metrics_go_on_as_if_the_run_had_not_stopped(ranks: Any) -> None:
    for seen in ranks:
        assert len(seen["whole"]) == 16
        assert seen["resumed"][5:] == seen["whole"][5:]
    shared, own = ([[row[n] for row in seen["whole"]] for seen in ranks] for n in (1, 2))
    assert shared[0] == shared[1]
    assert own[0] != own[1]


def test_a_process_that_the_saved_run_did_not_have_begins_with_none(
    ranks: Any, tmp_path: Path
) -> None:
    alone = rows(str(tmp_path / "alone"), size=4, num_steps=8)
    for seen in ranks:
        assert [row[1] for row in seen["from one"]] == pytest.approx([row[1] for row in alone])


def test_one_process_goes_on_with_what_the_first_of_two_gathered_and_says_so(
    ranks: Any, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (found,) = (folder / "begun").glob("checkpoint-*/")
    caplog.clear()
    rows(str(tmp_path / "fewer"), size=4, resume=str(found), num_steps=8)
    what = "plugin 'metric_updater' goes on with what 1 of 2 processes gathered in it"
    assert [line.getMessage() for line in caplog.records].count(what) == 1
    assert not any("gathered" in line for seen in ranks for line in seen["said"])
