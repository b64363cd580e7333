"""Gradients are cleared before every step, by whoever's ``zero_grad`` it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import by_hand, hearing, tiny_trainer, weights


def test_every_step_begins_without_gradients() -> None:
    trainer = tiny_trainer()
    found: list[Any] = []

    def note(event: str, values: dict[str, Any]) -> None:
        found.append([p.grad is None for p in values["model"].parameters()])

    trainer.bus.register(hearing(["on_batch_begin", "on_backward_end"], note), "hears")
    trainer.fit(num_steps=2)
    assert found == [[True, True], [False, False]] * 2


class ClearsItsOwnWay(torch.optim.SGD):
    """Zeros gradients in place, and counts."""

    cleared = 0

    def zero_grad(self, set_to_none: bool = False) -> None:
        self.cleared += 1
        super().zero_grad(set_to_none)


class Around:
    """An optimizer of no class of torch's, around one that is."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.cleared = inner, 0
        self.param_groups = inner.param_groups

    def step(self) -> None:
        self.inner.step()

    def zero_grad(self) -> None:
        self.cleared += 1
        self.inner.zero_grad()


@pytest.mark.parametrize("kind", ["subclass", "wrapper", "instance", "everywhere"])
def test_a_zero_grad_that_is_not_torchs_own_is_called(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer()
    parameters = trainer.ctx.model.parameters()
    optimizer: Any = (ClearsItsOwnWay if kind == "subclass" else torch.optim.SGD)(
        parameters, lr=0.05
    )
    owner: Any = optimizer
    if kind == "wrapper":
        optimizer = owner = Around(optimizer)
    elif kind != "subclass":
        owner = optimizer if kind == "instance" else torch.optim.Optimizer
        torchs_own = owner.zero_grad
        monkeypatch.setattr(owner, "cleared", 0, raising=False)

        def zero_grad(*args: Any) -> None:
            owner.cleared += 1
            torchs_own(*args)

        monkeypatch.setattr(owner, "zero_grad", zero_grad)
    trainer.ctx.optimizer = optimizer
    trainer.fit(num_steps=4)
    assert owner.cleared == 4
    assert weights(trainer).equal(by_hand(4))


def test_a_profiler_sees_gradients_being_cleared() -> None:
    with torch.profiler.profile() as seen:
        tiny_trainer().fit(num_steps=3)
    labels = [event.name for event in seen.events() or ()]
    assert labels.count("Optimizer.zero_grad#SGD.zero_grad") == 3


def test_a_zero_grad_that_was_replaced_before_hatbus_came_is_called(tmp_path: Path) -> None:
    script = tmp_path / "early.py"
    script.write_text(
        "import torch\n"
        "torchs_own, called = torch.optim.Optimizer.zero_grad, []\n"
        "def zero_grad(self, *args):\n"
        "    called.append(1)\n"
        "    torchs_own(self, *args)\n"
        "torch.optim.Optimizer.zero_grad = zero_grad\n"
        "from hatbus import Trainer\n"
        "model = torch.nn.Linear(1, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "data = [(torch.ones(1, 1), torch.ones(1, 1))]\n"
        "Trainer(model, optimizer, data, torch.nn.functional.mse_loss).fit(num_epochs=3)\n"
        "print(len(called))\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "3\n"


def test_gradients_are_cleared_of_the_optimizer_that_zero_grad_is_of() -> None:
    class Delegates:
        """Has the groups that the optimizer began with, and its methods."""

        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner, self.param_groups = inner, [*inner.param_groups]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    trainer = tiny_trainer()
    weight, bias = trainer.ctx.model.parameters()
    optimizer = torch.optim.SGD([weight], lr=0.05)
    trainer.ctx.optimizer = Delegates(optimizer)  # type: ignore[assignment]
    optimizer.add_param_group({"params": [bias]})
    plain = tiny_trainer()
    for run in (trainer, plain):
        run.fit(num_steps=3)
    assert weights(trainer).equal(weights(plain))
