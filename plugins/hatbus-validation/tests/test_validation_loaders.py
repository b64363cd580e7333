"""Loaders by name and task, every sample once, and what belongs to which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from validated import Batches, Draws, batches, mean_loss, shuffled, trainer

from hatbus.data import loader
from hatbus.errors import DataError, PluginError
from hatbus_validation.validation import Validation

torch.set_num_threads(1)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"det": nn.Linear(3, 1), "seg": nn.Linear(3, 1)})

    def forward(self, inputs: torch.Tensor, task: str) -> torch.Tensor:
        return self.heads[task](inputs)


def test_every_sample_of_every_task_is_seen_once_and_losses_are_told_apart() -> None:
    seen = Batches()
    data = {"det": batches(4), "seg": batches(2, seed=1)}
    val = {"det": batches(1, seed=2), "seg": batches(3, seed=3)}
    bound = {"type": Batches, "tasks": ["seg"]}
    validation = Validation(val, callbacks=[seen, bound, {"type": Batches}])
    run = trainer(validation, data=data, model=Heads())
    run.fit(num_epochs=2)
    expected = [("det", val["det"][0][0]), *(("seg", x) for x, _ in val["seg"])]
    assert len(seen.seen) == 8
    for (task, inputs), (t, x) in zip(seen.seen[:4], expected, strict=True):
        assert task == t
        assert torch.equal(inputs, x)
    assert seen.steps[:4] == [(0, 0, 0), (0, 1, 1), (0, 2, 2), (0, 3, 3)]
    only_seg = validation.callbacks[0][1].callback
    assert [task for task, _ in only_seg.seen] == ["seg"] * 6  # type: ignore[attr-defined]


def test_per_task_losses_are_published_by_task() -> None:
    data = {"det": batches(4), "seg": batches(2, seed=1)}
    run = trainer(Validation(data), data=data, model=Heads())
    run.fit(num_epochs=1)
    for task, batches_of_task in data.items():
        by_hand = mean_loss(run.ctx.model.heads[task], batches_of_task)
        assert float(run.ctx.latest[f"val/{task}/loss"]) == pytest.approx(by_hand)


def test_several_loaders_are_told_apart_by_name() -> None:
    clean, noisy = batches(1), batches(2, seed=5)
    run = trainer(Validation({"clean": clean, "noisy": noisy}))
    run.fit(num_epochs=1)
    model = run.ctx.model
    assert float(run.ctx.latest["val/clean/loss"]) == pytest.approx(mean_loss(model, clean))
    assert float(run.ctx.latest["val/noisy/loss"]) == pytest.approx(mean_loss(model, noisy))
    run = trainer(Validation([shuffled(1), shuffled(2)]))
    run.fit(num_epochs=1)
    assert set(run.ctx.latest) == {"val/0/loss", "val/1/loss"}


def test_unshared_callbacks_belong_to_one_loader_each() -> None:
    first, second = Draws(), Draws()
    loaders = {"a": batches(1), "b": batches(3)}
    callbacks = [[first], [second]]
    run = trainer(Validation(loaders, callbacks=callbacks, share_callbacks=False))
    run.fit(num_epochs=1)
    assert (first.batches, second.batches) == (1, 3)
    shared = Draws()
    trainer(Validation(loaders, callbacks=[shared])).fit(num_epochs=1)
    assert shared.batches == 4


def test_wrong_loaders_and_callbacks_are_refused_in_words() -> None:
    with pytest.raises(PluginError, match="a list of callbacks per loader"):
        Validation(batches(1), callbacks=[Draws()], share_callbacks=False)
    few = Validation([shuffled(1), shuffled(2)], callbacks=[[Draws()]], share_callbacks=False)
    with pytest.raises(PluginError, match="1 lists of callbacks for 2 loaders"):
        trainer(few).fit(num_epochs=1)
    data = {"det": batches(1), "seg": batches(1)}
    mixed = Validation({"det": batches(1), "other": batches(1)})
    with pytest.raises(PluginError, match=r"mixes tasks \('det'\) with other names \('other'\)"):
        trainer(mixed, data=data, model=Heads()).fit(num_epochs=1)
    for empty in ([], {}):
        with pytest.raises(PluginError, match="data_loader is empty"):
            trainer(Validation(empty)).fit(num_epochs=1)


def test_an_empty_loader_is_an_error_that_names_it() -> None:
    class Nothing:
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    with pytest.raises(DataError, match="the validation loader 'b' gave no batch"):
        trainer(Validation({"a": batches(1), "b": Nothing()})).fit(num_epochs=1)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("build", [loader, DataLoader])
def test_validating_on_the_training_loader_leaves_its_epoch_whole(
    build: Any, persistent: bool
) -> None:
    rows = TensorDataset(torch.arange(12.0).reshape(12, 1).expand(12, 3), torch.ones(12, 1))
    data = build(rows, 2, shuffle=True, num_workers=1, persistent_workers=persistent)
    trained, validated = Batches(), Batches()
    validation = Validation(data, callbacks=[validated], val_interval=2, interval_by="step")
    trainer(validation, trained, data=data).fit(num_epochs=1)
    for seen, times in ((trained, 1), (validated, 3)):
        samples = sorted(int(x) for _, inputs in seen.seen for x in inputs[:, 0])
        assert samples == sorted([*range(12)] * times)


def test_samples_that_a_distributed_sampler_repeats_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = TensorDataset(torch.randn(5, 3), torch.randn(5, 1))
    sampler = DistributedSampler(rows, num_replicas=2, rank=0, shuffle=False)
    run = trainer(Validation(DataLoader(rows, 2, sampler=sampler)))
    run.fit(num_epochs=1)
    assert "the validation loader counts 1 samples twice" in caplog.text


class KeepsItsPlace:
    """A loader, or a data set, that keeps its place itself."""

    def __init__(self, dataset: Any = None) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return iter(batches(2))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def test_a_loader_that_keeps_the_place_of_the_training_is_refused_before_training() -> None:
    one, data = KeepsItsPlace(), KeepsItsPlace()
    for trained, validated in ((one, one), (KeepsItsPlace(data), KeepsItsPlace(data))):
        run = trainer(Validation(validated), data=trained)
        with pytest.raises(PluginError, match=r"KeepsItsPlace .* is the training's, and keeps its"):
            run.fit(num_steps=1)
        assert run.ctx.position.global_step == 0
    trainer(Validation(KeepsItsPlace(KeepsItsPlace())), data=KeepsItsPlace(data)).fit(num_steps=1)
