"""Many tasks: what a bound plugin hears, what a step holds, and how long an epoch is."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch
from tiny import batches, hearing, tiny_trainer
from torch.utils.data import DataLoader, Subset, TensorDataset

from hatbus import Trainer
from hatbus.data.steps import Steps
from hatbus.data.task_sampler import AllTasks, ListedTasks, OneTask, TaskSampler, WeightedTasks
from hatbus.errors import DataError, JobError
from hatbus.events.training import EVENTS, MOMENT


class Heads(torch.nn.Module):
    """Two linear heads; the task picks one."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleDict(
            {"det": torch.nn.Linear(3, 1), "seg": torch.nn.Linear(3, 1)}
        )

    def forward(self, inputs: torch.Tensor, task: str) -> torch.Tensor:
        out: torch.Tensor = self.heads[task](inputs)
        return out


def two_tasks(plugins: Any = (), det: int = 4, seg: int = 2, **options: Any) -> Trainer:
    data = {"det": batches(det), "seg": batches(seg, seed=1)}
    return tiny_trainer(plugins, data, model=Heads(), **options)


def test_a_bound_plugin_hears_its_tasks_batches_and_all_steps_and_epochs() -> None:
    heard: Counter[str] = Counter()
    moments = [e.name for e in EVENTS.values() if e.kind == MOMENT]

    def note(event: str, values: dict[str, Any]) -> None:
        if EVENTS[event].per_task:
            assert values["task"] == "det"
        heard[event] += 1

    trainer = two_tasks(task_sampler=OneTask())
    trainer.bus.register(hearing(moments, note), "bound", overrides={"tasks": ["det"]})
    trainer.fit(num_epochs=1)
    assert trainer.ctx.global_step_id == 7  # det and seg in turn until det, the longer, is through
    assert heard["on_batch_end"] == heard["on_forward_begin"] == heard["on_backward_end"] == 4
    assert heard["on_step_begin"] == heard["on_step_end"] == 8
    assert heard["on_epoch_end"] == heard["on_loop_end"] == 1


def test_a_bound_wrapper_surrounds_its_tasks_batches_only() -> None:
    seen: list[Any] = []
    trainer = two_tasks()
    recorder = hearing(["run_batch", "compute_loss"], lambda e, v: seen.append((e, v.get("task"))))
    trainer.bus.register(recorder, "bound", overrides={"tasks": ["seg"]})
    trainer.fit(num_steps=1)
    assert [s for s in seen if s[1]] == [("run_batch", "seg"), ("compute_loss", "seg")]


def test_losses_at_step_end_carry_the_tasks_names() -> None:
    losses: list[Any] = []
    recorder = hearing(["on_step_end"], lambda _, values: losses.append(sorted(values["losses"])))
    two_tasks([recorder]).fit(num_steps=1)
    assert losses == [["det/loss", "seg/loss"]]


def test_tasks_add_up_and_micro_batches_are_averaged() -> None:
    trainer = two_tasks(accumulate=2, task_sampler=AllTasks({"seg": 2}))
    det, seg = batches(4), batches(2, seed=1)
    model, mse = trainer.ctx.model, torch.nn.functional.mse_loss
    by_hand = sum(mse(model(x, "det"), y) for x, y in det[:2]) / 2
    for x, y in seg:  # the second pass over seg is the same two batches
        by_hand = by_hand + 2 * mse(model(x, "seg"), y) / 2
    expected = torch.autograd.grad(by_hand, list(model.parameters()))
    found: list[torch.Tensor] = []
    trainer.bus.register(
        hearing(
            ["skip_update"],
            lambda e, _: found or found.extend(p.grad.clone() for p in model.parameters()),
        ),
        "look",
    )
    trainer.fit(num_steps=1)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_short_tail_of_an_epoch_makes_a_smaller_step() -> None:
    sizes: list[list[float]] = []
    recorder = hearing(
        ["on_step_end"], lambda _, v: sizes.append([w for *_, w in v["ctx"].batches])
    )
    trainer = tiny_trainer([recorder], batches(5), accumulate=2)
    trainer.fit(num_epochs=1)
    assert sizes == [[0.5, 0.5], [0.5, 0.5], [1.0]]
    assert trainer.ctx.steps_per_epoch == 3


SAMPLERS: list[tuple[TaskSampler, int]] = [
    (AllTasks(), 7),
    (AllTasks({"a": 2}), 4),
    (AllTasks({"b": 2}), 7),
    (OneTask(), 14),
    (ListedTasks(["a", "a", "b"]), 12),
    (ListedTasks([["a", "b"], "a"]), 8),
    (WeightedTasks({"a": 3, "b": 1}), 10),
    (AllTasks(steps=5), 5),
]


@pytest.mark.parametrize(("sampler", "length"), SAMPLERS)
def test_the_length_of_an_epoch_is_exact(sampler: TaskSampler, length: int) -> None:
    steps = Steps({"a": batches(7), "b": batches(3)}, sampler)
    trainer = tiny_trainer(data={"a": batches(7), "b": batches(3)})
    assert steps.steps_per_epoch == length
    assert len(list(steps.steps(trainer.ctx))) == length


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("sampler", [s for s, _ in SAMPLERS])
def test_an_epoch_entered_in_its_middle_goes_on_as_if_never_left(
    sampler: TaskSampler, accumulate: int
) -> None:
    data = {"a": batches(7), "b": batches(3, seed=1)}
    ctx = tiny_trainer(data=data).ctx
    whole = list(Steps(data, sampler, accumulate).steps(ctx))
    for first in range(len(whole)):
        ctx.position.step = first
        again = next(iter(Steps(data, sampler, accumulate).steps(ctx)))
        assert [(t, w) for t, _, w in again] == [(t, w) for t, _, w in whole[first]]
        assert all(x[1][0] is y[1][0] for x, y in zip(again, whole[first], strict=True))


def test_weights_choose_tasks_in_proportion() -> None:
    sampler = WeightedTasks({"a": 3, "b": 1})
    sampler.bind(("a", "b"))
    counts = sampler.counts(seed=0, epoch=0, steps=4000)
    assert 0.72 < counts["a"] / 4000 < 0.78
    assert sampler.counts(0, 0, 4000) == counts
    assert sampler.counts(1, 0, 4000) != counts


def test_a_loader_that_has_not_implemented_its_length_has_none() -> None:
    class Unwilling(Unsized):
        def __len__(self) -> int:
            raise NotImplementedError

    trainer = tiny_trainer(data=Unwilling(3))
    assert trainer.ctx.steps_per_epoch is None
    assert trainer.fit(num_epochs=2).global_step_id == 5


def test_a_loader_without_a_length_ends_the_epoch_when_it_ends() -> None:
    class Endless:
        def __iter__(self) -> Any:
            return iter(batches(3))

    trainer = tiny_trainer(data=Endless())
    trainer.fit(num_epochs=2)
    assert trainer.ctx.steps_per_epoch is None
    assert trainer.ctx.global_step_id == 5


class Unsized:
    """A loader that does not say how many batches it has."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Any:
        return iter(batches(self.count))


@pytest.mark.parametrize("sampler", [AllTasks, OneTask, WeightedTasks])
def test_a_task_without_a_length_needs_the_steps_of_an_epoch(sampler: Any) -> None:
    data = {"a": batches(3), "b": Unsized(5)}
    message = r"loader of task 'b' has no length, so nobody knows .* its number of steps"
    with pytest.raises(JobError, match=message):
        tiny_trainer(data=data, task_sampler=sampler()).fit(num_epochs=2)
    trainer = tiny_trainer(data=data, task_sampler=sampler(steps=7))
    assert trainer.fit(num_epochs=2).global_step_id == 13


def test_a_plan_in_steps_needs_no_lengths_and_says_what_it_does_not_see(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = {"a": Unsized(3), "b": Unsized(5)}
    trainer = tiny_trainer(data=data)
    trainer.fit(num_steps=3)
    assert not caplog.text
    trainer.fit(num_steps=8)
    assert trainer.ctx.position.epoch == 2
    assert caplog.text.count("is over with the first loader that ends") == 1


def test_a_task_that_no_step_holds_needs_no_length() -> None:
    data = {"a": batches(3), "b": Unsized(5)}
    trainer = tiny_trainer(data=data, task_sampler=ListedTasks(["a"]))
    assert trainer.fit(num_epochs=2).global_step_id == 5


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("length", [3, 5, 8])
def test_a_loader_of_another_length_than_it_says_is_warned_of_once(
    length: int, accumulate: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Says(list[Any]):
        def __len__(self) -> int:
            return length

    tiny_trainer(data=Says(batches(5)), accumulate=accumulate).fit(num_epochs=2)
    told = f"the loader gave 5 batches in epoch 0, but its length is {length}"
    assert caplog.text.count(told) == caplog.text.count("its length is") == (length != 5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the loader has length 0"),
        ({"det": batches(1), "seg": []}, "the loader of task 'seg' has length 0"),
        ((x for x in batches(1)), "a generator can be passed over only once"),
        (zip(batches(1), [0], strict=True), "a zip can be passed over only once"),
        (map(str, batches(1)), "a map can be passed over only once"),
        (iter(batches(1)), "a list_iterator can be passed over only once"),
        (iter(DataLoader(TensorDataset(torch.ones(2)))), "can be passed over only once"),
        (3, "3 is no loader"),
    ],
)
def test_a_loader_that_cannot_be_used_is_named(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny_trainer(data=data)


def test_a_loader_that_is_its_own_iterator_and_begins_anew_is_taken() -> None:
    class Counts:
        def __iter__(self) -> Counts:
            self.left = batches(3)
            return self

        def __next__(self) -> Any:
            if not self.left:
                raise StopIteration
            return self.left.pop()

    assert tiny_trainer(data=Counts()).fit(num_epochs=2).global_step_id == 5


def test_an_empty_loader_without_a_length_is_an_error_not_an_endless_loop() -> None:
    class Empty:
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(DataError, match="the loader gave no batch"):
        tiny_trainer(data=Empty()).fit(num_steps=5)


def test_an_unknown_task_of_a_sampler_is_refused_with_the_closest() -> None:
    with pytest.raises(JobError, match="unknown task 'dot'; did you mean 'det'"):
        two_tasks(task_sampler=ListedTasks(["dot"]))


def test_a_task_without_a_loss_is_refused_with_the_known_ones() -> None:
    with pytest.raises(JobError, match="no loss for task 'seg'; known: 'det'"):
        two_tasks(loss={"det": torch.nn.functional.mse_loss}).fit(num_steps=1)


def test_endless_passes_keep_their_order() -> None:
    steps = Steps({"a": batches(2)}, AllTasks(steps=5))
    ctx = tiny_trainer().ctx
    given = [b[0][1][0] for b in islice(steps.steps(ctx), 5)]
    first = [x for x, _ in batches(2)]
    assert all(torch.equal(one, first[i % 2]) for i, one in enumerate(given))


@pytest.mark.parametrize("weight", [0.0, float("inf")])
def test_weights_that_choose_no_task_are_explained(weight: float) -> None:
    data = {"det": batches(2), "seg": batches(2)}
    sampler = WeightedTasks({"det": weight, "seg": 0})
    with pytest.raises(JobError, match="accepted: finite, and not 0 for all"):
        tiny_trainer(data=data, task_sampler=sampler)


def test_a_data_set_in_the_place_of_a_loader_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    samples = TensorDataset(torch.ones(4, 2), torch.ones(4, 1))
    for data in (samples, {"a": Subset(samples, [0, 1]), "b": DataLoader(samples)}, [*samples]):
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Trainer(model, optimizer, data, torch.nn.functional.mse_loss).fit(num_steps=1)
    told = "is a %s, and each of its samples is taken as a batch"
    found = [record for record in caplog.records if told in str(record.msg)]
    expected = [("the loader", "TensorDataset"), ("the loader of task 'a'", "Subset")]
    assert [record.args for record in found] == expected
