"""MetricUpdater in real runs: intervals, resets, names, storage, resume, cost in reads."""

from __future__ import annotations

import copy
import logging
import sys
from typing import Any

import pytest
import torch
import torchmetrics

from hatbus import hookimpl, plugin
from hatbus.errors import HatbusError, PluginError
from hatbus_monitor.metric_updater import MetricUpdater
from hatbus_monitor.metrics import Accuracy, Mean
from hatbus_monitor.update_functions import usual


def mean_loss(**options: Any) -> MetricUpdater:
    return MetricUpdater(usual, [Mean("loss")], **options)


def close(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> bool:
    steps = [step for step, _ in found] == [step for step, _ in expected]
    return steps and [v for _, v in found] == pytest.approx([v for _, v in expected], rel=1e-6)


def running(losses: list[float]) -> list[float]:
    return [sum(losses[: n + 1]) / (n + 1) for n in range(len(losses))]


@plugin(stage="checkpoint")
class Saves:
    """Keeps the run's state as it is at the end of a step, as a checkpoint does."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        if ctx.global_step_id == self.step:
            place = ctx.position
            self.place = place.epoch, place.step, place.global_step
            self.last = ctx.epoch_id, ctx.step_id, ctx.global_step_id
            self.model = copy.deepcopy(ctx.model.state_dict())
            self.plugins = copy.deepcopy(ctx.bus.state_dict())


@plugin(stage="checkpoint")
class Loads:
    """Gives a run that state when it begins."""

    def __init__(self, saved: Saves) -> None:
        self.saved = saved

    @hookimpl
    def on_loop_begin(self, ctx: Any) -> None:
        ctx.model.load_state_dict(self.saved.model)
        ctx.bus.load_state_dict(self.saved.plugins)
        place = ctx.position
        place.epoch, place.step, place.global_step = self.saved.place
        ctx.epoch_id, ctx.step_id, ctx.global_step_id = self.saved.last


def test_by_epoch_each_step_shows_the_mean_of_the_epoch_so_far(trainer, events) -> None:
    trainer([mean_loss(), events]).fit(num_epochs=2)
    means = running(events.losses[:6]) + running(events.losses[6:])
    assert close(events.of("train/loss"), list(enumerate(means)))


def test_by_step_each_step_shows_its_own_value(trainer, events) -> None:
    trainer([mean_loss(reset_metrics_by="step"), events]).fit(num_epochs=1)
    assert close(events.of("train/loss"), list(enumerate(events.losses)))


def test_by_log_each_value_covers_the_steps_since_the_last(trainer, events) -> None:
    trainer([mean_loss(reset_metrics_by="log", step_log_freq=4), events]).fit(num_epochs=2)
    means = [sum(events.losses[n : n + 4]) / 4 for n in (0, 4, 8)]
    assert close(events.of("train/loss"), list(zip((3, 7, 11), means, strict=True)))


def test_epoch_value_is_published_every_so_many_epochs(trainer, events) -> None:
    trainer([mean_loss(step_log_freq=0, epoch_log_freq=2), events]).fit(num_epochs=4)
    means = [sum(events.losses[n : n + 6]) / 6 for n in (6, 18)]
    assert close(events.of("train/loss"), [(11, means[0]), (23, means[1])])


def test_the_last_step_and_its_epoch_publish_one_value(trainer, events) -> None:
    trainer([mean_loss(step_log_freq=3), events]).fit(num_epochs=1)
    assert [step for step, _ in events.of("train/loss")] == [2, 5]


def test_epoch_line_is_logged(trainer, caplog) -> None:
    with caplog.at_level(logging.INFO, "hatbus"):
        trainer([mean_loss()]).fit(num_epochs=1)
    assert "epoch 1: train/loss 1.1" in caplog.text


def test_values_are_stored_with_their_ids(trainer, events) -> None:
    updater = mean_loss(step_storage_freq=4, epoch_storage_freq=1, step_log_freq=-1)
    ctx = trainer([updater, events]).fit(num_epochs=1)
    means = running(events.losses)
    stored = ctx.storage["monitor_obj"]
    assert [(s["epoch_id"], s["global_step_id"]) for s in stored] == [(0, 3), (0, 5)]
    assert [s["train/loss"].item() for s in stored] == pytest.approx([means[3], means[5]])


def test_storage_key_is_the_place(trainer) -> None:
    ctx = trainer([mean_loss(epoch_storage_freq=1, storage_key="mine")]).fit(num_epochs=2)
    assert len(ctx.storage["mine"]) == 2
    assert "monitor_obj" not in ctx.storage


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_instances_with_one_storage_key_add_to_one_list(trainer, order: str) -> None:
    plugins = {"a": mean_loss(epoch_storage_freq=1), "b": MetricUpdater(usual, ["accuracy"])}
    ctx = trainer({name: plugins[name] for name in order}).fit(num_epochs=2)
    assert [set(row) - {"epoch_id", "global_step_id"} for row in ctx.storage["monitor_obj"]] == [
        {"train/loss"},
        {"train/loss"},
    ]


def test_a_resume_gives_instances_with_one_storage_key_their_rows_back(trainer) -> None:
    def plugins() -> dict[str, Any]:
        accuracy = MetricUpdater(usual, ["accuracy"], step_storage_freq=3, epoch_storage_freq=1)
        return {"a": mean_loss(step_storage_freq=2), "b": accuracy, "silent": mean_loss()}

    whole = trainer(plugins()).fit(num_epochs=2)
    saves = Saves(step=6)
    trainer({**plugins(), "saves": saves}).fit(num_steps=8)
    resumed = trainer({**plugins(), "loads": Loads(saves)}).fit(num_epochs=2)
    assert resumed.storage["monitor_obj"] == whole.storage["monitor_obj"]


@pytest.mark.parametrize(
    ("prefix", "name"), [("", "train/loss"), ("a", "a/loss"), ("b_", "b_loss"), ("c/d", "c/d/loss")]
)
def test_prefix_stands_in_front_of_the_names(trainer, prefix: str, name: str) -> None:
    assert name in trainer([mean_loss(log_prefix=prefix)]).fit(num_epochs=1).latest


def test_filter_condition_leaves_batches_out(trainer, data) -> None:
    kept = []

    def update(metrics: Any, batch: Any, model_outs: Any) -> None:
        kept.append(batch[0])

    batches = data()
    wanted = [batches[0][0], batches[3][0]]

    def condition(batch: Any, model_outs: Any) -> bool:
        assert model_outs.shape == (8, 3)
        return any(batch[0] is one for one in wanted)

    trainer([MetricUpdater(update, ["mean"], condition)], batches).fit(num_epochs=1)
    assert [one is two for one, two in zip(kept, wanted, strict=True)] == [True, True]


def test_nothing_is_published_before_anything_was_added(trainer, events) -> None:
    never = MetricUpdater(
        usual, [torchmetrics.classification.MulticlassAccuracy(3)], lambda batch, outs: False
    )
    trainer([never, events]).fit(num_epochs=1)
    assert [set(logs) for _, logs in events.logs] == [{"train/loss"}]


def test_a_task_has_its_own_updater_and_names(trainer, data, events) -> None:
    one, other = mean_loss(), mean_loss()
    run = trainer([], {"a": data(3), "b": data(2, seed=1)})
    run.bus.register(one, "metrics_a", overrides={"tasks": ["a"]})
    run.bus.register(other, "metrics_b", overrides={"tasks": ["b"]})
    run.bus.register(events, "events")
    latest = run.fit(num_epochs=1).latest
    assert set(latest) == {"train/a/loss", "train/b/loss"}
    assert (one.metrics["loss"].count, other.metrics["loss"].count) == (24, 24)


def test_torchmetrics_and_own_metrics_publish_the_same_accuracy(trainer, data) -> None:
    metrics = {
        "own": Accuracy(),
        "theirs": torchmetrics.classification.MulticlassAccuracy(3, average="micro"),
    }

    def update(metrics: Any, batch: Any, model_outs: Any) -> None:
        for metric in metrics.values():
            metric.update(model_outs, batch[1])

    latest = trainer([MetricUpdater(update, metrics)]).fit(num_epochs=2).latest
    assert latest["train/own"].item() == pytest.approx(latest["train/theirs"].item())


def test_values_of_many_parts_get_names_of_their_own(trainer) -> None:
    metrics = [
        torchmetrics.MetricCollection([torchmetrics.classification.MulticlassF1Score(3)]),
        torchmetrics.classification.MulticlassAccuracy(3, average=None),
    ]
    latest = trainer([MetricUpdater(usual, metrics)]).fit(num_epochs=1).latest
    assert set(latest) == {
        "train/metric_collection_MulticlassF1Score",
        *(f"train/multiclass_accuracy_{n}" for n in range(3)),
    }


def test_a_published_value_does_not_change_when_the_metric_goes_on(trainer, events) -> None:
    updater = MetricUpdater(
        lambda metrics, batch, outs, losses: metrics[0].update(losses["loss"]),
        [torchmetrics.SumMetric()],
    )
    trainer([updater, events]).fit(num_epochs=1)
    sums = [sum(events.losses[: n + 1]) for n in range(6)]
    assert close(events.of("train/sum_metric"), list(enumerate(sums)))


class Summing:
    """A metric of a user who never thought of graphs."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def update(self, value: torch.Tensor) -> None:
        self.total = self.total + value

    def compute(self) -> torch.Tensor:
        return self.total

    def reset(self) -> None:
        self.total = torch.zeros(())


def test_a_users_metric_does_not_hold_the_graph(trainer) -> None:
    metric = Summing()
    trainer(
        [MetricUpdater(lambda metrics, batch, outs: metrics[0].update(outs.sum()), [metric])]
    ).fit(num_epochs=1)
    assert metric.total.abs() > 0
    assert not metric.total.requires_grad


def test_metrics_of_the_trainer_are_used_when_none_are_given(trainer) -> None:
    run = trainer([MetricUpdater(usual)], train_metrics=[Mean("loss")])
    assert "train/loss" in run.fit(num_epochs=1).latest
    with pytest.raises(PluginError, match=r"give metrics=.*train_metrics="):
        trainer([MetricUpdater(usual)]).fit(num_epochs=1)


def test_the_model_may_be_wrapped_in_names_of_a_job(trainer) -> None:
    words = ["accuracy", {"type": "accuracy", "top_k": 2}, "loss", "torchmetrics:MeanMetric"]

    def update(metrics: Any, batch: Any, model_outs: Any, losses: Any) -> None:
        usual(metrics[:3], batch, model_outs, losses)
        metrics[3].update(losses["loss"].detach())

    latest = trainer([MetricUpdater(update, words)]).fit(num_epochs=1).latest
    assert list(latest) == [
        "train/accuracy",
        "train/accuracy_top2",
        "train/loss",
        "train/mean_metric",
    ]
    assert latest["train/loss"].item() == pytest.approx(latest["train/mean_metric"].item())


def test_steps_that_do_not_log_read_nothing_from_the_device(trainer, reads) -> None:
    trainer(
        [MetricUpdater(usual, ["accuracy", "loss"], step_log_freq=0, epoch_log_freq=0)],
        nan="ignore",
    ).fit(num_epochs=1)
    assert reads.count == 0


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_a_resumed_run_publishes_what_one_that_never_stopped_does(trainer, stop: int) -> None:
    def plugins() -> dict[str, Any]:
        f1 = torchmetrics.classification.MulticlassF1Score(3)
        return {"m": MetricUpdater(usual, [f1, Mean("loss")], step_storage_freq=2)}

    whole = trainer(plugins()).fit(num_epochs=2)
    first = trainer(plugins())
    first.fit(num_steps=stop)
    second = trainer(plugins())
    second.ctx.model.load_state_dict(first.ctx.model.state_dict())
    position = second.ctx.position
    position.global_step, (position.epoch, position.step) = stop, divmod(stop, 6)
    second.bus.load_state_dict(first.bus.state_dict())
    resumed = second.fit(num_epochs=2)
    for name, value in whole.latest.items():
        assert torch.equal(resumed.latest[name], value), name
    stored = [{**s} for s in whole.storage["monitor_obj"]]
    assert resumed.storage["monitor_obj"] == stored


def test_a_run_resumed_at_an_epochs_last_step_publishes_its_value_once(trainer, events) -> None:
    saves = Saves(step=5)
    trainer([mean_loss(step_log_freq=3), saves, events]).fit(num_epochs=1)
    later = type(events)()
    trainer([mean_loss(step_log_freq=3), Loads(saves), later]).fit(num_epochs=2)
    assert [step for step, _ in events.of("train/loss")] == [2, 5]
    assert [step for step, _ in later.of("train/loss")] == [8, 11]


def bad_update(metrics: Any, batch: Any, model_outs: Any, logits: Any) -> None:
    """Asks for an argument that does not exist."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"reset_metrics_by": "epochs"},
            "reset_metrics_by is 'epochs'; accepted: .*mean 'epoch'",
        ),
        ({"metrics": [object()]}, "has no update and no compute and no reset"),
        ({"metrics": ["acuracy"]}, "unknown type 'acuracy'; did you mean 'accuracy'"),
        ({"metrics": ["loss", Mean("loss")]}, "two metrics named 'loss'"),
        (
            {"metrics": [{"type": "accuracy", "topk": 1}]},
            "Accuracy: unknown option 'topk'; did you mean 'top_k'",
        ),
        ({"metrics": ["nowhere:Metric"]}, "'nowhere:Metric': no module 'nowhere'"),
        ({"metric_update_func": 3}, "metric_update_func=3; accepted: a function"),
        ({"metric_update_func": bad_update}, "'bad_update' cannot be used: .*'logits'"),
        ({"filter_condition": "x"}, "filter_condition is 'x'; accepted: a function"),
    ],
)
def test_wrong_values_are_refused_when_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HatbusError, match=message):
        MetricUpdater(**{"metric_update_func": usual, "metrics": ["loss"], **options})


def test_constructor_is_that_of_the_seed_page() -> None:
    import inspect

    found = {n: p.default for n, p in inspect.signature(MetricUpdater).parameters.items()}
    found.pop("metric_update_func")
    assert found == {
        "metrics": None,
        "filter_condition": None,
        "step_log_freq": 1,
        "reset_metrics_by": "epoch",
        "epoch_log_freq": 1,
        "log_prefix": "",
        "step_storage_freq": -1,
        "epoch_storage_freq": -1,
        "storage_key": "monitor_obj",
    }


def test_a_failing_batch_is_not_counted(trainer) -> None:
    updater = mean_loss()

    def loss(outs: Any, target: Any) -> Any:
        if updater.metrics["loss"].count == 16:
            sys.exit("enough")
        return torch.nn.functional.cross_entropy(outs, target)

    with pytest.raises(SystemExit):
        trainer([updater], loss=loss).fit(num_epochs=1)
    assert updater.metrics["loss"].count == 16


def test_a_tracker_of_torchmetrics_has_no_step_before_the_first_batch(trainer) -> None:
    def update(metrics: Any, batch: Any, model_outs: Any, losses: Any) -> None:
        (tracker,) = metrics
        tracker.increment()
        tracker.update(losses["loss"].detach())

    tracker = torchmetrics.wrappers.MetricTracker(torchmetrics.MeanMetric(), maximize=False)
    trainer([MetricUpdater(update, [tracker])]).fit(num_epochs=1)
    assert tracker.n_steps > 1


@pytest.mark.parametrize("batch", [{"x": torch.ones(2, 3)}, (torch.ones(2, 3),), 7])
def test_a_batch_without_a_second_entry_is_named(batch: Any) -> None:
    with pytest.raises(PluginError, match=rf"a batch is a {type(batch).__name__}, not a pair.*by_"):
        usual([Accuracy()], batch, torch.ones(2, 3), {})
