"""``compile = true`` with torch's own backend, which makes machine code: ``tox -e compiled``.

Takes a compiler and a minute; what torch compiles, and how often, is tested in ``test_compile.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiled import EPOCHS, Net, bare, data, every_plugin, loss_of
from torch._dynamo.utils import counters

from hatbus import Trainer

pytestmark = pytest.mark.filterwarnings("ignore")


def test_machine_code_trains_as_the_plain_run_and_is_made_as_often_as_by_a_bare_loop(
    tmp_path: Path,
) -> None:
    weights, graphs = [], []
    for wanted in (False, True):
        torch._dynamo.reset()
        counters.clear()
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        plugins = every_plugin(tmp_path / str(wanted))
        model.rest[1].p = 0.0  # inductor draws other numbers
        Trainer(model, optimizer, data(), loss_of, plugins, compile=wanted).fit(num_epochs=EPOCHS)
        weights.append(list(model.parameters()))
        graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    counters.clear()
    bare(torch.compile)
    assert graphs == [0, counters["stats"]["unique_graphs"]]
    assert not counters["graph_break"]
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other)
