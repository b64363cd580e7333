"""A loss with weights of its own, on two processes as on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from two_processes import run_on_two

from hatbus import Trainer
from hatbus.callbacks import Checkpoint, GradClip
from hatbus.data.loaders import loader

TRAINS = """
import json, sys
import test_beside as here

here.torch.set_num_threads(1)
rank = int(sys.argv[1])
seen = {"whole": here.trained("whole", 2, seed=rank, num_epochs=2)}
here.trained("parts", 2, seed=rank, num_steps=5)
seen["resumed"] = here.trained("parts", 2, seed=rank + 7, num_epochs=2)
seen["clipped"] = here.trained("clipped", 2, seed=rank, max_norm=0.3, num_epochs=2)
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
"""


class Weighed(nn.Module):
    """A weight per output, one that is used by some batches only, one never; and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.log_var = nn.Parameter(torch.rand(2))
        self.rare, self.never = nn.Parameter(torch.rand(())), nn.Parameter(torch.rand(()))
        self.register_buffer("last", torch.rand(()))

    def forward(self, outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.last = outs.detach().mean()
        found = (torch.exp(-self.log_var) * (outs - target).square()).mean() + self.log_var.mean()
        is_rare = bool(target[0, 0] > 0.5)
        return found + self.rare.square() if is_rare else found


def trained(
    folder: str, size: int, *, seed: int, max_norm: float = 1e9, **until: int
) -> dict[str, Any]:
    """Weights at the end, and the loss's buffer; saved at the end and gone on with."""
    torch.manual_seed(seed)
    model, loss = nn.Linear(3, 2), Weighed()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], 0.1, momentum=0.9)
    inputs = torch.rand(32, 3, generator=torch.Generator().manual_seed(1))
    data = loader(TensorDataset(inputs, inputs[:, :2]), size, seed=1)
    checkpoint = Checkpoint(folder, save_interval=None, resume="auto")
    trainer = Trainer(model, optimizer, data, loss, [checkpoint, GradClip(max_norm)], seed=3)
    trainer.fit(**until)
    parameters = nn.utils.parameters_to_vector([*model.parameters(), *loss.parameters()])
    return {"weights": parameters.tolist(), "last": loss.last.item()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> list[dict[str, Any]]:
    """What the two processes have at the end."""
    return run_on_two(TRAINS, tmp_path_factory.mktemp("beside"), checkout)


def test_both_begin_and_end_with_the_weights_of_the_first(ranks: Any) -> None:
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize(("kind", "max_norm"), [("whole", 1e9), ("clipped", 0.3)])
def test_gradients_are_averaged_as_those_of_the_model(
    ranks: Any, kind: str, max_norm: float
) -> None:
    """A batch of one process is that of two; ``rare`` counts half where one of the two used it."""
    torch.manual_seed(0)
    model, loss = nn.Linear(3, 2), Weighed()
    by_hand = [*model.parameters(), *loss.parameters()]
    optimizer = torch.optim.SGD(by_hand, 0.1, momentum=0.9)
    inputs = torch.rand(32, 3, generator=torch.Generator().manual_seed(1))
    for epoch in range(2):
        data = loader(TensorDataset(inputs, inputs[:, :2]), 4, seed=1)
        data.set_position(epoch, 0)
        for values, target in data:
            optimizer.zero_grad()
            halves = [(values[rank::2], target[rank::2]) for rank in (0, 1)]
            (sum(loss(model(x), y) for x, y in halves) / 2).backward()
            nn.utils.clip_grad_norm_(by_hand, max_norm)
            optimizer.step()
    expected = nn.utils.parameters_to_vector(by_hand)
    assert torch.allclose(torch.tensor(ranks[0][kind]["weights"]), expected, atol=1e-6)


def test_a_resume_goes_on_exactly(ranks: Any) -> None:
    assert ranks[0]["resumed"] == ranks[0]["whole"]
