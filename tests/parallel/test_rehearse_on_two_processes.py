"""``trainer.rehearse()`` on two processes: the training between and after is the one without."""

from __future__ import annotations

from pathlib import Path

from two_processes import run_on_two

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys
import torch
from torch import distributed, nn
from hatbus import Trainer
from hatbus.data import loader
from hatbus_lr import find_lr

torch.set_num_threads(1)
distributed.init_process_group("gloo")

def trained(looks):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    inputs = torch.randn(64, 3)
    data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = Trainer(model, optimizer, loader(data, 8), nn.functional.mse_loss)
    tried = 0
    for steps in (3, 8):
        if looks:
            tried += len(find_lr(trainer, 1e-4, 1.0, 12).rates)
        trainer.fit(num_steps=steps)
    return [value.tolist() for value in model.state_dict().values()], tried

(one, _), (other, tried) = trained(False), trained(True)
with open(f"rank-{sys.argv[1]}.json", "w") as file:
    json.dump({"is_same": one == other, "tried": tried}, file)
"""


def test_a_training_with_rehearsals_between_is_the_one_without(tmp_path: Path) -> None:
    first, second = run_on_two(SCRIPT, tmp_path, CHECKOUT)
    assert first["is_same"]
    assert second["is_same"]
    assert first["tried"] == second["tried"] > 10
