"""Several validations of one run, each with its own name and interval."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from validated import Draws, Net, Snapshots, batches, mean_loss, same, trainer, weights

from hatbus import Bus, Context, Trainer, hookimpl, plugin
from hatbus.errors import JobError, PluginError
from hatbus_validation.early_stopping import EarlyStopping
from hatbus_validation.mean_teacher_validation import MeanTeacherValidation
from hatbus_validation.validation import Validation


class Spans:
    """Notes every ``validate``: its reason, the steps behind it, and what it found."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, int, list[str]]] = []

    @hookimpl(wrapper=True)
    def validate(self, ctx: Context, reason: str) -> Any:
        found = yield
        self.noted.append((reason, ctx.position.global_step, sorted(found or ())))
        return found


def run_of(validations: dict[str, object], *plugins: object, **options: Any) -> Trainer:
    run = trainer(*plugins, **options)
    for name, validation in validations.items():
        run.bus.register(validation, name)
    return run


def test_each_validates_at_its_interval_and_those_due_together_are_one_validation() -> None:
    spans = Spans()
    run = run_of(
        {
            "often": Validation(batches(1), val_interval=1),
            "seldom": Validation(batches(2, seed=5), val_interval=2, val_on_train_end=False),
            "by_step": Validation(batches(1, seed=6), val_interval=8, interval_by="step", name="s"),
        },
        spans,
    )
    run.fit(num_epochs=3)
    often, seldom, by_step = "val/loss", "val/seldom/loss", "s/loss"
    assert spans.noted == [
        ("every epoch", 5, [often]),
        ("every 8 steps", 8, [by_step]),
        ("every epoch and every 2 epochs", 10, [often, seldom]),
        ("every epoch", 15, [often]),
        ("end of the run", 15, [by_step]),
    ]


def test_metrics_are_told_apart_by_instance_name_and_each_has_its_own_data() -> None:
    clean, noisy = batches(2), batches(3, seed=5)
    validations = {"val": Validation(clean), "noisy": Validation(noisy)}
    run = run_of(validations)
    run.fit(num_epochs=1)
    model = run.ctx.model
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(mean_loss(model, clean))
    assert float(run.ctx.latest["val/noisy/loss"]) == pytest.approx(mean_loss(model, noisy))
    assert set(run.ctx.latest) == {"val/loss", "val/noisy/loss"}


def test_a_request_is_for_all_of_them() -> None:
    class Asks:
        @hookimpl
        def on_step_end(self, ctx: Context, global_step_id: int) -> None:
            if global_step_id == 1:
                ctx.control.validate("curious")

    spans = Spans()
    quiet = {"val_interval": None, "val_on_train_end": False}
    off = Validation(batches(1), callbacks=[])
    validations = {"a": Validation(batches(1), **quiet), "off": off}
    validations["b"] = Validation(batches(2), **quiet)
    run_of(validations, Asks(), spans).fit(num_steps=3)
    assert spans.noted == [("curious", 2, ["val/b/loss", "val/loss"])]


def test_a_wrapper_of_any_stage_is_around_all_of_them() -> None:
    class Scales:
        """Doubles the weights for the length of a validation."""

        @hookimpl(wrapper=True)
        def validate(self, model: nn.Module) -> Any:
            with torch.no_grad():
                model.head.weight.mul_(2)
                found = yield
                model.head.weight.mul_(0.5)
            return found

    losses = []
    for stage in ("setup", "report"):
        scales = plugin(stage=stage)(type("Scales", (Scales,), {}))()
        validations = {"a": Validation(batches(1)), "b": Validation(batches(2, seed=1))}
        run = run_of(validations, scales)
        run.fit(num_epochs=1)
        losses.append([float(run.ctx.latest[n]) for n in ("val/loss", "val/b/loss")])
    with torch.no_grad():
        run.ctx.model.head.weight.mul_(2)
    expected = [mean_loss(run.ctx.model, data) for data in (batches(1), batches(2, seed=1))]
    assert losses[0] == losses[1] == pytest.approx(expected)


def test_filters_of_the_job_hold_for_each_by_itself() -> None:
    spans = Spans()
    run = trainer(spans)
    run.bus.register(Validation(batches(1), val_on_train_end=False), "a")
    filtered = Validation(batches(1), val_on_train_end=False)
    run.bus.register(filtered, "b", overrides={"every": "2 epochs"})
    run.fit(num_epochs=3)
    assert [found for _, _, found in spans.noted] == [
        ["val/loss"],
        ["val/b/loss", "val/loss"],
        ["val/loss"],
    ]


@pytest.mark.parametrize("every", ["2 steps", "30 min"])
def test_a_filter_in_steps_or_time_leaves_validations_by_epoch_alone(every: str) -> None:
    spans = Spans()
    validations = [Validation(batches(1), val_on_train_end=False) for _ in range(2)]
    run = trainer(spans)
    run.bus.register(validations[0], "a", overrides={"every": every})
    run.bus.register(validations[1], "b")
    run.fit(num_epochs=2)
    assert spans.noted == [("every epoch", n, ["val/b/loss", "val/loss"]) for n in (5, 10)]


def test_a_filter_in_steps_holds_for_a_validation_by_step() -> None:
    spans = Spans()
    run = trainer(spans)
    by_step = Validation(batches(1), interval_by="step", val_on_train_end=False)
    run.bus.register(by_step, "a", overrides={"every": "2 steps"})
    run.fit(num_epochs=1)
    assert [step for _, step, _ in spans.noted] == [2, 4]


def test_one_that_is_off_takes_no_name_from_another() -> None:
    off, on = Validation(batches(1), callbacks=[]), Validation(batches(2))
    run = run_of({"off": off, "on": on})
    run.fit(num_epochs=1)
    assert set(run.ctx.latest) == {"val/loss"}
    named = Validation(batches(1), callbacks=[], name="v")
    run = run_of({"off": named, "on": Validation(batches(1), name="v")})
    run.fit(num_epochs=1)
    assert set(run.ctx.latest) == {"v/loss"}


def test_a_run_from_the_start_owes_nothing_and_a_second_fit_goes_on() -> None:
    validation = Validation(batches(1))
    validation.is_owed = True  # as after a signal
    spans = Spans()
    run = trainer(validation, spans)
    run.fit(num_epochs=1)
    assert spans.noted == [("every epoch", 5, ["val/loss"])]
    run.fit(num_epochs=1)
    assert len(spans.noted) == 1


def test_training_is_bitwise_the_same_and_resumes_in_the_middle_of_their_intervals() -> None:
    def validations() -> dict[str, object]:
        return {
            "a": Validation(batches(2), callbacks=[Draws()], val_interval=3, interval_by="step"),
            "b": Validation(batches(1), callbacks=[Draws()], val_interval=2),
        }

    without = trainer()
    without.fit(num_epochs=4)
    snapshots, spans = Snapshots(), Spans()
    whole = run_of(validations(), spans)
    whole.fit(num_epochs=4)
    assert same(weights(whole), weights(without))
    first, second = Spans(), Spans()
    cut = run_of(validations(), snapshots, first)
    cut.fit(num_steps=15)
    resumed = run_of(validations(), Snapshots(snapshots.kept), second)
    resumed.fit(num_epochs=4)
    assert same(weights(resumed), weights(without))
    noted = [n for n in first.noted if n[0] != "end of the run"] + second.noted
    assert noted == spans.noted


def test_a_teachers_validation_stands_beside_another() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = Net(), Net()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.student(inputs)

    data = batches(2, seed=5)
    teacher = MeanTeacherValidation("teacher", data_loader=data, name="teacher")
    run = run_of({"validation": Validation(data), "teacher": teacher}, model=Pair())
    run.fit(num_epochs=1)
    model = run.ctx.model
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(mean_loss(model.student, data))
    assert float(run.ctx.latest["teacher/loss"]) == pytest.approx(mean_loss(model.teacher, data))


def test_a_run_stops_early_by_the_metric_of_one_of_them() -> None:
    stopping = EarlyStopping("val/second/loss", patience=2, min_delta=1e9)
    validations = {"first": Validation(batches(1)), "second": Validation(batches(1, seed=5))}
    run = run_of(validations, stopping)
    run.fit(num_epochs=50)
    assert run.ctx.position.epoch == 3


def test_a_metric_of_one_that_has_yet_to_run_is_waited_for_and_a_wrong_one_is_refused() -> None:
    def run(monitor: str) -> Trainer:
        seldom = Validation(batches(1, seed=5), val_interval=2)
        validations = {"often": Validation(batches(1)), "seldom": seldom}
        return run_of(validations, EarlyStopping(monitor, patience=1, min_delta=1e9))

    right = run("val/seldom/loss")
    right.fit(num_epochs=50)
    assert right.ctx.position.epoch == 4
    wrong = run("val/seldom/los")
    with pytest.raises(JobError, match="'val/seldom/los', and nothing in this run publishes that"):
        wrong.fit(num_epochs=50)
    assert wrong.ctx.position.global_step == 0


def test_two_of_the_same_published_name_are_refused() -> None:
    validations = {"a": Validation(batches(1), name="v"), "b": Validation(batches(1), name="v")}
    with pytest.raises(PluginError, match=r"'a' and 'b' both publish 'v/...'; .* name = 'b'"):
        run_of(validations).fit(num_epochs=1)


def test_another_plugin_that_validates_is_still_refused_beside_one() -> None:
    class Evaluates:
        @hookimpl
        def validate(self) -> bool:
            return True

    bus = Bus({"validation": Validation(batches(1)), "mine": Evaluates()})
    with pytest.raises(PluginError, match="'mine' and 'validation' both replace validate"):
        bus.freeze()
