"""TorchLr: any scheduler of torch, stepped, logged, saved and restored."""

import pytest
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


def test_a_metric_that_nobody_publishes_is_an_error(trainer_of):
    updater = TorchLr("ReduceLROnPlateau", update_by="epoch", metric="val/los")
    with pytest.raises(JobError, match="metric 'val/los' was not published before step 4"):
        trainer_of(updater).fit(num_epochs=2)


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
