"""The loop: the same bits as by hand, its plans and ids, and what a mistake is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import batches, by_hand, hearing, tiny_trainer, weights

from hatbus import Trainer, hookimpl
from hatbus.errors import JobError
from hatbus.loop.context import Context


def test_a_run_is_bit_identical_to_the_loop_written_by_hand() -> None:
    trainer = tiny_trainer()
    trainer.fit(num_epochs=4)
    assert weights(trainer).equal(by_hand(12))


def test_a_plan_in_steps_stops_in_the_middle_of_an_epoch() -> None:
    trainer = tiny_trainer()
    trainer.fit(num_steps=7)
    assert weights(trainer).equal(by_hand(7))
    assert (trainer.ctx.epoch_id, trainer.ctx.step_id) == (2, 0)
    assert trainer.ctx.updates == 7


def test_a_second_fit_goes_on_where_the_first_stopped() -> None:
    trainer = tiny_trainer()
    trainer.fit(num_steps=4)
    trainer.fit(num_epochs=3)
    assert weights(trainer).equal(by_hand(9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"nan": "hope"}, "unknown nan policy 'hope'"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_a_wrong_argument_of_the_trainer_is_explained(options: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        tiny_trainer(**options)


@pytest.mark.parametrize("plan", [{}, {"num_epochs": 1, "num_steps": 1}, {"num_epochs": 0}])
def test_a_plan_is_epochs_or_steps(plan: Any) -> None:
    with pytest.raises(JobError, match="num_epochs"):
        tiny_trainer().fit(**plan)


def test_published_values_reach_every_sink_and_the_last_is_kept() -> None:
    class Publishes:
        @hookimpl
        def on_step_end(self, ctx: Context, losses: dict[str, torch.Tensor]) -> None:
            ctx.log({"loss": losses["loss"]})

    logs: list[Any] = []
    sink = hearing(["on_log"], lambda _, v: logs.append((v["kind"], list(v["logs"]))))
    trainer = tiny_trainer({"pub": Publishes(), "sink": sink})
    trainer.fit(num_steps=2)
    assert logs == [*[("scalar", ["loss"])] * 2, ("scalar", ["train/loss"])]
    assert isinstance(trainer.ctx.latest["loss"], torch.Tensor)


def test_the_model_may_be_compiled() -> None:
    trainer = tiny_trainer(compile={"backend": "eager"})
    trainer.fit(num_epochs=4)
    assert torch.allclose(weights(trainer), by_hand(12))
    assert trainer.ctx.wrapped_model is not trainer.ctx.model


def test_an_epoch_begins_with_the_ids_of_its_first_step() -> None:
    found: list[tuple[int, ...]] = []
    ids = ("epoch_id", "step_id", "global_step_id")
    hears = hearing(["on_epoch_begin"], lambda _, v: found.append(tuple(v[i] for i in ids)))
    tiny_trainer([hears]).fit(num_epochs=3)
    assert found == [(0, 0, 0), (1, 0, 3), (2, 0, 6)]


def test_an_epoch_of_which_only_the_end_is_left_ends_with_its_last_steps_ids() -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter(batches(3))

    found: list[tuple[int, ...]] = []
    ids = ("epoch_id", "step_id", "global_step_id")
    hears = hearing(["on_epoch_end"], lambda _, v: found.append(tuple(v[i] for i in ids)))
    trainer = tiny_trainer([hears], Stream())
    trainer.fit(num_steps=3)
    trainer.fit(num_steps=5)
    assert found == [(0, 2, 2), (0, 2, 2), (1, 1, 4)]


@pytest.mark.parametrize("tasks", [(), ("a", "c")])
def test_a_model_that_was_compiled_trains_as_with_compile_and_events_see_what_is_inside(
    tasks: tuple[str, ...],
) -> None:
    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.heads = torch.nn.ModuleDict({t: torch.nn.Linear(3, 1) for t in ("a", "c", "one")})
            self.calls = 0

        def forward(self, inputs: torch.Tensor, task: str | None = None) -> torch.Tensor:
            self.calls += 1
            return self.heads[task or "one"](inputs)

    seen: list[Any] = []
    compiled: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph

    def run(wrap: bool, **options: Any) -> Heads:
        torch._dynamo.reset()
        model = Heads()
        given: Any = torch.compile(model, backend=backend) if wrap else model
        recorder = hearing(["on_step_begin"], lambda _, v: seen.append(v["model"] is model))
        data = {task: batches(3) for task in tasks} if tasks else batches(3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        loss = torch.nn.functional.mse_loss
        Trainer(given, optimizer, data, loss, [recorder], **options).fit(num_epochs=2)
        return model

    plain, wrapped, asked = run(False), run(True), run(False, compile={"backend": backend})
    assert seen == [True] * 18
    assert len(compiled) >= 2
    for model in (wrapped, asked):
        for one, other in zip(plain.parameters(), model.parameters(), strict=True):
            assert torch.equal(one, other)
