"""A real notebook: what its cells show, and that its "interrupt" is a KeyboardInterrupt."""

from __future__ import annotations

import re
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

CELLS = [
    """
import torch
from hatbus import Trainer, hookimpl
from hatbus.callbacks import Checkpoint, Progress, Validation

torch.manual_seed(0)
data = [(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(6)]
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
plugins = [Validation(data[:2]), Progress(), Checkpoint("saved")]
trainer = Trainer(model, optimizer, data, torch.nn.functional.mse_loss, plugins)
trainer
""",
    "trainer.fit(num_epochs=3)",
    """
import os, signal

class Stops:
    @hookimpl
    def on_step_begin(self, global_step_id):
        if global_step_id == 20:
            os.kill(os.getpid(), signal.SIGINT)

trainer.bus.register(Stops(), "stops")
try:
    trainer.fit(num_epochs=5)
except KeyboardInterrupt as error:
    print(error)
""",
    "trainer.fit(num_epochs=5).position.global_step",
]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each cell shows, by kind of output."""
    cells = [nbformat.v4.new_code_cell(text) for text in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    folder = str(tmp_path_factory.mktemp("notebook"))
    nbclient.NotebookClient(
        notebook, timeout=200, resources={"metadata": {"path": folder}}
    ).execute()
    return [shown(cell.outputs) for cell in notebook.cells]


def shown(outputs: list[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in outputs:
        data = one.get("data", {})
        text = data.get("text/html") or data.get("text/plain") or one.get("text", "")
        kind = one.get("name", one.output_type)
        found[kind] = found.get(kind, "") + text
    return found


def epochs(cell: dict[str, str]) -> list[str]:
    """The epochs in the table of a cell's bar."""
    return re.findall(r"<tr><td>(\d+)</td>", cell["display_data"])


def test_a_trainer_is_a_table(cells: list[dict[str, str]]) -> None:
    assert "<caption>Trainer</caption>" in cells[0]["execute_result"]
    assert "Linear, 4 parameters" in cells[0]["execute_result"]


def test_one_bar_has_a_table_of_the_epochs_and_the_log_is_no_error(
    cells: list[dict[str, str]],
) -> None:
    assert cells[1]["display_data"].count("<progress") == 1
    assert epochs(cells[1]) == ["1", "2", "3"]
    assert "<th>val/loss</th>" in cells[1]["display_data"]
    assert "validation (every epoch) after 18 steps" in cells[1]["stdout"]
    assert "stderr" not in cells[1]
    assert "3 of 3 epochs, 18 of 18 steps" in cells[1]["execute_result"]


def test_an_interrupt_leaves_the_kernel_and_the_trainer_goes_on(
    cells: list[dict[str, str]],
) -> None:
    assert "after step 21, saved; trainer.fit() goes on from here" in cells[2]["stdout"]
    assert epochs(cells[2]) == ["1", "2", "3"]
    assert cells[3]["execute_result"] == "30"
    assert epochs(cells[3]) == ["1", "2", "3", "4", "5"]
