"""Training never notices a validation: weights, modes, gradients, random state, memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from validated import (
    Average,
    Draws,
    Raises,
    Sees,
    Snapshots,
    batches,
    same,
    shuffled,
    trainer,
    weights,
)

from hatbus import Trainer, hookimpl, plugin
from hatbus.rng import capture
from hatbus_validation.validation import Validation

torch.set_num_threads(1)


@pytest.mark.parametrize(
    "options",
    [{}, {"val_interval": 1, "interval_by": "step"}, {"val_interval": 3, "interval_by": "step"}],
    ids=["every epoch", "every step", "every 3 steps"],
)
def test_final_weights_are_bitwise_those_of_a_run_without_validation(
    options: dict[str, Any],
) -> None:
    without = trainer()
    without.fit(num_epochs=3)
    draws = Draws()
    with_it = trainer(Validation(shuffled(), callbacks=[draws], **options))
    with_it.fit(num_epochs=3)
    assert draws.batches >= 9
    assert same(weights(with_it), weights(without))


def test_a_run_resumed_after_a_validation_raised_ends_bitwise_as_one_without_validation() -> None:
    without = trainer()
    without.fit(num_epochs=4)
    snapshots = Snapshots()
    raising = trainer(Validation(shuffled(), callbacks=[Raises(5)]), snapshots)
    with pytest.raises(RuntimeError, match="midway"):
        raising.fit(num_epochs=4)
    assert raising.ctx.position.global_step == 10
    resumed = trainer(Validation(shuffled(), callbacks=[Draws()]), Snapshots(snapshots.kept))
    resumed.fit(num_epochs=4)
    assert same(weights(resumed), weights(without))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_modes_gradients_and_random_state_are_back_after_a_validation_that_fails(
    error: type[BaseException],
) -> None:
    sees = Sees()
    validation = Validation(shuffled(), callbacks=[sees, Draws(), Raises(2, error)])
    run = trainer(Average(), validation)
    run.ctx.model.body[1].eval()
    before: dict[str, Any] = {}

    @plugin(stage="monitor")
    class Notes:
        @hookimpl
        def on_epoch_begin(self, model: nn.Module) -> None:
            model.body[1].eval()

        @hookimpl
        def on_validation_begin(self, model: nn.Module) -> None:
            before["weights"] = weights(run)
            before["grads"] = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
            before["modes"] = [m.training for m in model.modules()]
            before["random"] = capture()

    run.bus.register(Notes(), "notes")
    with pytest.raises(error):
        run.fit(num_epochs=1)
    assert sees.training == [False, False]
    model = run.ctx.model
    assert run.ctx.weights.current == "raw"
    assert same(weights(run), before["weights"])
    assert [m.training for m in model.modules()] == before["modes"]
    assert before["modes"].count(False) == 1
    for p, grad in zip(model.parameters(), before["grads"], strict=True):
        assert torch.equal(p.grad, grad)
    assert torch.equal(capture()["torch"], before["random"]["torch"])
    assert capture()["python"] == before["random"]["python"]
    assert str(capture()["numpy"]) == str(before["random"]["numpy"])


def test_no_copy_of_the_model_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a copy was made")

    sees = Sees()
    run = trainer(Validation(batches(1), callbacks=[sees]))
    monkeypatch.setattr(copy, "deepcopy", refuse)
    run.fit(num_epochs=1)
    assert sees.pointers == [next(run.ctx.model.parameters()).data_ptr()]


@pytest.mark.parametrize("own_generator", [True, False])
def test_a_loader_may_be_trained_on_and_validated(own_generator: bool) -> None:
    def run(*, validates: bool) -> Trainer:
        generator = torch.Generator().manual_seed(2) if own_generator else None
        rows = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
        data = DataLoader(
            TensorDataset(rows, rows.sum(1, keepdim=True)), 4, shuffle=True, generator=generator
        )
        made = trainer(data=data)
        if validates:
            made.bus.register(Validation(data, val_interval=2, interval_by="step"), "validation")
        made.fit(num_epochs=3)
        return made

    assert same(weights(run(validates=True)), weights(run(validates=False)))
