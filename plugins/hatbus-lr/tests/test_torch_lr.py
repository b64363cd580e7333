"""TorchLr: any scheduler of torch, stepped, logged, saved and restored."""

import re

import pytest
import torch
from torch.optim import lr_scheduler

from hatbus import hookimpl, plugin
from hatbus.errors import JobError, PluginError
from hatbus_lr import PolyLrUpdater, TorchLr

SCHEDULERS = {
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [2, 7]},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 12},
    "CosineAnnealingWarmRestarts": {"T_0": 5},
    "LinearLR": {},
    "PolynomialLR": {"total_iters": 7},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "cycle_momentum": False},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 12, "cycle_momentum": False},
}


def warmup_then_cosine(optimizer):
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
        lr_scheduler.CosineAnnealingLR(optimizer, 8),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[4])


def expected_of(optimizer, scheduler, steps=12):
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_steps_torchs_scheduler_once_a_step(fit, optimizer_of, name):
    optimizer = optimizer_of()
    scheduler = getattr(lr_scheduler, name)(optimizer, **SCHEDULERS[name])
    notes = fit(TorchLr(name, SCHEDULERS[name]))
    assert notes.first == expected_of(optimizer, scheduler)
    assert [logs["lr/0"] for _, logs in notes.logs] == notes.first


def test_by_epoch_it_steps_once_an_epoch(fit):
    notes = fit(TorchLr("StepLR", {"step_size": 1}, "epoch"))
    assert notes.first == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.001] * 4)


def test_a_function_makes_schedulers_that_are_made_of_others(fit, optimizer_of):
    optimizer = optimizer_of()
    found = fit(TorchLr(warmup_then_cosine)).first
    assert found == expected_of(optimizer, warmup_then_cosine(optimizer))


@pytest.mark.parametrize("stop", [3, 5])
@pytest.mark.parametrize("name", [*SCHEDULERS, "made of others"])
def test_resumed_from_plain_state_it_goes_on_the_same(fit, trainer_of, optimizer_of, name, stop):
    def make():
        return TorchLr(name if name in SCHEDULERS else warmup_then_cosine, SCHEDULERS.get(name))

    whole = fit(make()).first
    first, optimizer = make(), optimizer_of()
    trainer_of(first, optimizer=optimizer).fit(num_steps=stop)
    state, optimizer_state = first.state_dict(), optimizer.state_dict()
    found = []

    @plugin(stage="checkpoint")
    class Resumer:
        @hookimpl
        def on_loop_begin(self, optimizer, ctx):
            ctx.bus.load_state_dict({"lr": state})
            optimizer.load_state_dict(optimizer_state)
            ctx.position.epoch, ctx.position.step = divmod(stop, 4)
            ctx.position.global_step = stop

        @hookimpl
        def on_step_end(self, optimizer):
            found.append(optimizer.param_groups[0]["lr"])

    trainer = trainer_of(optimizer=optimizer_of())
    trainer.bus.register(make(), "lr")
    trainer.bus.register(Resumer(), "resumer")
    trainer.fit(num_epochs=3)
    assert found == whole[stop:]


def test_its_state_is_plain_containers(optimizer_of, trainer_of):
    updater = TorchLr("MultiStepLR", {"milestones": [2, 7]})
    trainer_of(updater).fit(num_epochs=1)
    kinds = set()

    def walk(value):
        kinds.add(type(value))
        if isinstance(value, (dict, list)):
            for item in value.values() if isinstance(value, dict) else value:
                walk(item)

    walk(updater.state_dict())
    assert kinds <= {dict, list, tuple, int, float, str, bool, type(None)}


def test_a_plateau_follows_a_published_metric(trainer_of, optimizer_of):
    class Validate:
        @hookimpl
        def on_epoch_end(self, ctx):
            ctx.log({"val/loss": 1.0})

    optimizer = optimizer_of()
    updater = TorchLr("ReduceLROnPlateau", {"patience": 1}, "epoch", metric="val/loss")
    trainer_of(updater, Validate(), optimizer=optimizer).fit(num_epochs=4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


class Published:
    """Values of a metric by epoch; None: nothing in that epoch."""

    def __init__(self, *values, name="val/loss"):
        self.values, self.name = values, name

    @hookimpl
    def on_epoch_end(self, ctx, epoch_id):
        if self.values[epoch_id] is not None:
            ctx.log({self.name: self.values[epoch_id]})


VALUES = [0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_plateau_counts_a_value_once_however_rarely_it_is_published(
    trainer_of, optimizer_of, every
):
    optimizer, torchs = optimizer_of(), optimizer_of()
    expected = lr_scheduler.ReduceLROnPlateau(torchs, patience=1, factor=0.5)
    for value in VALUES:
        torchs.step()
        expected.step(value)
    published = [v for value in VALUES for v in (value, *[None] * (every - 1))]
    updater = TorchLr(
        "ReduceLROnPlateau", {"patience": 1, "factor": 0.5}, "epoch", metric="val/loss"
    )
    plugins = updater, Published(*published, None)
    trainer_of(*plugins, optimizer=optimizer).fit(num_epochs=len(published) + 1)
    assert optimizer.param_groups[0]["lr"] == torchs.param_groups[0]["lr"] < 0.1


@pytest.mark.parametrize("update_by", ["epoch", "step"])
def test_a_plateau_waits_for_the_first_value(trainer_of, optimizer_of, caplog, update_by):
    optimizer = optimizer_of()
    updater = TorchLr("ReduceLROnPlateau", {"patience": 0}, update_by, metric="val/loss")
    trainer_of(updater, Published(None, None, 1.0, 1.0, None), optimizer=optimizer).fit(
        num_epochs=5
    )
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert "was published" not in caplog.text


def test_a_value_that_was_not_looked_at_is_looked_at_after_a_resume(trainer_of, optimizer_of):
    def build():
        optimizer = optimizer_of()
        updater = TorchLr("ReduceLROnPlateau", {"patience": 0}, "epoch", metric="val/loss")
        trainer = trainer_of(updater, Published(1.0, 1.0, None, None), optimizer=optimizer)
        return updater, trainer, optimizer

    updater, trainer, optimizer = build()
    trainer.fit(num_epochs=2)
    assert optimizer.param_groups[0]["lr"] == 0.1
    again, resumed, optimizer = build()
    again.load_state_dict(updater.state_dict())
    resumed.ctx.position.epoch, resumed.ctx.position.global_step = 2, 8
    resumed.fit(num_epochs=3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("val/los", "no metric 'val/los' was published, so .*; did you mean 'val/loss'"),
        ("other", "no metric 'other' was published, so the lr follows nothing"),
    ],
)
def test_a_metric_that_nobody_publishes_is_told_of_once(trainer_of, caplog, metric, said):
    updater = TorchLr("ReduceLROnPlateau", update_by="epoch", metric=metric)
    trainer_of(updater, Published(1.0, 1.0, 1.0)).fit(num_epochs=3)
    assert caplog.text.count("was published") == 1
    assert re.search(said, caplog.text)


@pytest.mark.parametrize("value", [torch.zeros(2), "bad"])
def test_a_metric_that_is_no_number_is_named(trainer_of, value):
    updater = TorchLr("ReduceLROnPlateau", update_by="epoch", metric="val/loss")
    with pytest.raises(PluginError, match=r"torch_lr: metric 'val/loss' (has shape|is 'bad')"):
        trainer_of(updater, Published(value, None)).fit(num_epochs=2)


class Patient(lr_scheduler.ReduceLROnPlateau):
    """A plateau of one's own."""


class Follows:
    """What follows a metric and is of nobody's kind."""

    def __init__(self, optimizer):
        self.group = optimizer.param_groups[0]

    def step(self, metrics):
        self.group["lr"] = 0.01 * metrics

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize(
    "make", [Patient, lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0), Follows]
)
def test_a_plateau_may_be_a_function_or_a_class_of_ones_own(trainer_of, optimizer_of, make):
    optimizer = optimizer_of()
    arguments = {"patience": 0} if make is Patient else {}
    updater = TorchLr(make, arguments, "epoch", metric="val/loss")
    trainer_of(updater, Published(1.0, 1.0, None), optimizer=optimizer).fit(num_epochs=3)
    assert optimizer.param_groups[0]["lr"] < 0.1
    with pytest.raises(JobError, match="metric is None; accepted: a published name"):
        trainer_of(TorchLr(make, arguments)).fit(num_epochs=1)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (warmup_then_cosine, {"metric": "val/loss"}, "metric is 'val/loss'; accepted: None with"),
        (lambda o: None, {}, "gave a NoneType; accepted: a scheduler"),
    ],
)
def test_what_a_function_makes_is_looked_at_before_the_run(trainer_of, make, options, said):
    with pytest.raises(JobError, match=said):
        trainer_of(TorchLr(make, **options)).fit(num_epochs=1)


class LikeTimms:
    """The protocol of timm's schedulers: a function of the count that it is told."""

    def __init__(self, optimizer, t_in_epochs=True):
        self.optimizer, self.t_in_epochs, self.metric = optimizer, t_in_epochs, None

    def step(self, epoch, metric=None):
        self._show(epoch if self.t_in_epochs else None)

    def step_update(self, num_updates, metric=None):
        self._show(None if self.t_in_epochs else num_updates)

    def _show(self, count):
        if count is not None:
            self.optimizer.param_groups[0]["lr"] = 0.1 / (1 + count)

    def state_dict(self):
        return {"t_in_epochs": self.t_in_epochs}

    def load_state_dict(self, state):
        self.__dict__.update(state)


def test_timms_schedulers_are_told_the_count(fit):
    by_epoch = fit(TorchLr(LikeTimms, update_by="epoch")).first
    assert by_epoch == [0.1 / (1 + i // 4) for i in range(12)]
    by_step = fit(TorchLr(LikeTimms, {"t_in_epochs": False})).first
    assert by_step == [0.1 / (1 + i) for i in range(12)]


def test_a_scheduler_of_timm_that_counts_otherwise_is_refused(trainer_of):
    with pytest.raises(JobError, match=r"counts in epochs .*; set update_by = 'epoch'"):
        trainer_of(TorchLr(LikeTimms)).fit(num_epochs=1)


def test_a_one_cycle_that_is_too_short_is_refused_before_the_run(trainer_of):
    arguments = {"max_lr": 0.1, "total_steps": 11}
    said = "OneCycleLR is made for 11 steps, and the run has 12; set total_steps = 12"
    with pytest.raises(JobError, match=said):
        trainer_of(TorchLr("OneCycleLR", arguments)).fit(num_epochs=3)
    with pytest.raises(JobError, match="is made for 11 epochs, and the run has 13"):
        trainer_of(TorchLr("OneCycleLR", arguments, "epoch")).fit(num_epochs=13)


def test_a_one_cycle_stays_at_its_end_where_nobody_knew_the_length(
    trainer_of, optimizer_of, caplog
):
    optimizer = optimizer_of()
    data = (batch for batch in [(torch.ones(1), torch.zeros(1))] * 9)

    class Endless:
        def __iter__(self):
            return data

    arguments = {"max_lr": 0.1, "total_steps": 4, "cycle_momentum": False}
    updater = TorchLr("OneCycleLR", arguments)
    trainer_of(updater, optimizer=optimizer, data=Endless()).fit(num_epochs=1)
    torchs = optimizer_of()
    expected = expected_of(torchs, lr_scheduler.OneCycleLR(torchs, **arguments), 4)[-1]
    assert optimizer.param_groups[0]["lr"] == expected
    assert caplog.text.count("OneCycleLR is over after 4 steps; the lr stays what it is") == 1


def test_a_second_fit_goes_on(trainer_of, optimizer_of):
    optimizer = optimizer_of()
    trainer = trainer_of(TorchLr("ExponentialLR", {"gamma": 0.5}), optimizer=optimizer)
    trainer.fit(num_steps=2)
    trainer.fit(num_steps=4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)


def test_it_claims_the_lr(trainer_of):
    with pytest.raises(PluginError, match=r"both write 'optimizer\.lr'"):
        trainer_of(TorchLr("LinearLR"), PolyLrUpdater(8)).fit(num_epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scheduler": "CosinAnnealingLR"},
            "unknown scheduler .* did you mean 'CosineAnnealingLR'",
        ),
        ({"scheduler": "SequentialLR"}, "made of other schedulers; accepted: a function"),
        ({"scheduler": 3}, "scheduler is 3; accepted"),
        ({"scheduler": "LinearLR", "update_by": "run"}, "update_by is 'run'"),
        ({"scheduler": "LinearLR", "metric": "x"}, "metric is 'x'; accepted"),
        ({"scheduler": "ReduceLROnPlateau"}, "metric is None; accepted"),
        ({"scheduler": "LinearLR", "arguments": 3}, "arguments is 3; accepted: a table"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(options, message):
    with pytest.raises(JobError, match=message):
        TorchLr(**options)


def test_arguments_that_torch_refuses_are_the_users_mistake(trainer_of):
    with pytest.raises(JobError, match=r"torch's StepLR refuses its arguments: .*step_size"):
        trainer_of(TorchLr("StepLR")).fit(num_epochs=1)
