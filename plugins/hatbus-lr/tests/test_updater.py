"""What all updaters share: groups, fields, logs, claims, resume."""

import io
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hatbus import hookimpl, plugin
from hatbus.errors import JobError, PluginError
from hatbus_lr import (
    CosineAnnealingLrUpdater,
    CosLrUpdater,
    CyclicLrUpdater,
    NoamLrUpdater,
    OneCycleUpdater,
    PolyLrUpdater,
    StepDecayLrUpdater,
)
from hatbus_lr.plan import Plan

EVERY = {
    "poly": lambda: PolyLrUpdater(9, power=2, warmup_len=5),
    "poly by epoch": lambda: PolyLrUpdater(3, "epoch", warmup_len=6),
    "step decay": lambda: StepDecayLrUpdater(lr_decay_id=[1, 2], warmup_by="step", warmup_len=6),
    "cos": lambda: CosLrUpdater(stop_lr=0.001, warmup_len=5),
    "cosine annealing": lambda: CosineAnnealingLrUpdater(warmup_len=6),
    "one cycle": lambda: OneCycleUpdater(0.1),
    "cyclic": lambda: CyclicLrUpdater(cyclic_times=2),
    "noam": lambda: NoamLrUpdater(256, 6),
}


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_every_group_follows_its_own_initial_lr_in_plain_floats(fit, optimizer_of, make):
    one = [fit(make(), optimizer=optimizer_of([lr])).first for lr in (0.1, 0.02)]
    both = fit(make(), optimizer=optimizer_of([0.1, 0.02])).values
    assert both == list(zip(*one, strict=True))
    assert all(type(value) is float for values in both for value in values)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("stop", [1, 3, 6, 7, 10])
def test_a_run_resumed_at_any_step_gets_the_same_values(optimizer_of, trainer_of, make, stop):
    whole, saved = [], io.BytesIO()

    class Saver:
        @hookimpl
        def on_step_end(self, optimizer, global_step_id):
            whole.append(optimizer.param_groups[0]["lr"])
            if global_step_id + 1 == stop:
                torch.save(optimizer.state_dict(), saved)

    resumed = []

    @plugin(stage="checkpoint")
    class Resumer:
        @hookimpl
        def on_loop_begin(self, optimizer, ctx):
            saved.seek(0)
            optimizer.load_state_dict(torch.load(saved, weights_only=True))
            ctx.position.epoch, ctx.position.step = divmod(stop, 4)
            ctx.position.global_step = stop

        @hookimpl
        def on_step_end(self, optimizer):
            resumed.append(optimizer.param_groups[0]["lr"])

    trainer_of(make(), Saver()).fit(num_epochs=3)
    trainer_of(make(), Resumer(), optimizer=optimizer_of([0.7])).fit(num_epochs=3)
    assert len(whole) == 12
    assert resumed == whole[stop:]


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_looking_ahead_changes_nothing(fit, optimizer_of, make):
    updater = make()
    found = fit(updater).first
    ahead = [updater.lr_at(0.1, step, step // 4, step % 4) for step in range(12)]
    assert ahead == found
    assert updater.lr_at(0.1, 3, 0, 3) == found[3]


def test_the_lr_of_every_group_is_logged_every_n_steps(fit, optimizer_of):
    optimizer = optimizer_of([0.1, 0.02, 0.3])
    optimizer.param_groups[1]["name"] = "head"
    notes = fit(CosLrUpdater(stop_lr=0.001, step_log_interval=5), optimizer=optimizer)
    assert [step for step, _ in notes.logs] == [4, 9]
    assert list(notes.logs[0][1]) == ["lr/0", "lr/head", "lr/2"]
    assert tuple(notes.logs[1][1].values()) == notes.values[9]


def test_with_warmup_by_epoch_the_lr_is_logged_at_each_epochs_begin(fit):
    notes = fit(StepDecayLrUpdater(lr_decay_id=[1], step_log_interval=3))
    assert [step for step, _ in notes.logs] == [0, 4, 8]
    assert [logs["lr/0"] for _, logs in notes.logs] == pytest.approx([0.1, 0.01, 0.01])


def test_without_an_interval_nothing_is_logged(fit):
    assert fit(CosLrUpdater(step_log_interval=None)).logs == []


def test_two_writers_of_the_lr_are_refused(trainer_of):
    with pytest.raises(PluginError, match=r"both write 'optimizer\.lr'"):
        trainer_of(CosLrUpdater(), StepDecayLrUpdater()).fit(num_epochs=1)


@pytest.mark.parametrize("field", ["weight_decay", "momentum"])
def test_another_field_is_set_beside_the_lr(fit, trainer_of, optimizer_of, field):
    optimizer = optimizer_of(weight_decay=0.1, momentum=0.1)
    notes = fit(CosLrUpdater(stop_lr=0.001, field=field), optimizer=optimizer, field=field)
    assert notes.first == pytest.approx(fit(CosLrUpdater(stop_lr=0.001)).first)
    assert list(notes.logs[0][1]) == [f"{field}/0"]
    both = optimizer_of(weight_decay=0.1, momentum=0.1)
    trainer_of(CosLrUpdater(), PolyLrUpdater(8, field=field), optimizer=both).fit(num_epochs=1)
    assert both.param_groups[0]["lr"] < 0.1
    assert both.param_groups[0][field] == pytest.approx(0.1 * 5 / 8)


def test_two_writers_of_another_field_are_refused(trainer_of):
    pair = CosLrUpdater(field="momentum"), PolyLrUpdater(8, field="momentum")
    with pytest.raises(PluginError, match=r"both write 'optimizer\.momentum'"):
        trainer_of(*pair).fit(num_epochs=1)


def test_the_first_beta_is_set_and_the_second_stays(fit, optimizer_of):
    optimizer = optimizer_of(kind=torch.optim.AdamW, betas=(0.8, 0.99))
    notes = fit(
        StepDecayLrUpdater(lr_decay_id=[1], field="beta1"), 2, optimizer=optimizer, field="betas"
    )
    assert notes.first[3] == (0.8, 0.99)
    assert notes.first[4] == pytest.approx((0.08, 0.99))
    assert optimizer.param_groups[0]["initial_beta1"] == 0.8


def test_a_field_that_the_optimizer_lacks_is_refused_with_the_nearest(fit):
    with pytest.raises(
        JobError, match=r"field 'weight_decy' is no number .*did you mean 'weight_decay'"
    ):
        fit(CosLrUpdater(field="weight_decy"))


def test_an_lr_that_is_a_tensor_is_filled_in_place(fit, optimizer_of):
    optimizer = optimizer_of(kind=torch.optim.Adam)
    optimizer.param_groups[0]["lr"] = held = torch.tensor(0.1)
    fit(CosLrUpdater(stop_lr=0.001), 1, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(fit(CosLrUpdater(stop_lr=0.001), 1).first[-1])


def test_a_group_added_in_the_run_joins_with_its_own_lr(trainer_of, optimizer_of):
    optimizer, seen = optimizer_of(), []

    @plugin(stage="train")
    class Add:
        @hookimpl
        def on_step_end(self, global_step_id, ctx):
            if global_step_id == 5:
                extra = torch.nn.Parameter(torch.zeros(1))
                optimizer.add_param_group({"params": [extra], "lr": 0.4})
            seen.append(dict(ctx.latest))

    trainer_of(CosLrUpdater(8, warmup_len=4), Add(), optimizer=optimizer).fit(num_epochs=3)
    assert list(seen[5]) == ["lr/0"]
    assert seen[6]["lr/1"] == pytest.approx(4 * seen[6]["lr/0"])


def test_a_skipped_update_is_a_step(trainer_of, optimizer_of):
    class SkipAll:
        @hookimpl
        def skip_update(self, global_step_id):
            return "test" if global_step_id < 4 else None

    optimizer = optimizer_of()
    ctx = trainer_of(PolyLrUpdater(8), SkipAll(), optimizer=optimizer).fit(num_steps=6)
    assert ctx.updates == 2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 3 / 8)


def test_the_pages_own_calls_work_without_a_run(optimizer_of):
    updater, optimizer = CosLrUpdater(stop_lr=0.001, warmup_len=4), optimizer_of()
    updater.on_loop_begin(optimizer=optimizer, data_loader=[0] * 4, num_epochs=3)
    updater.set_warmup_training_lr(optimizer, 2)
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert updater.get_warmup_lr(0.1, 1) == 0.025
    assert updater.get_lr(0.1, 8) == pytest.approx(0.0505)


lengths = st.integers(1, 60)
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def decaying(kind, length, warmup, ratio=1.0):
    if kind == "cos":
        return CosLrUpdater(length, 0.001, warmup_len=warmup, warmup_lr_ratio=ratio)
    if kind == "poly":
        return PolyLrUpdater(
            length, final_lr=0.001, power=1.7, warmup_len=warmup, warmup_lr_ratio=ratio
        )
    ids = sorted({length, 2 * length})
    return StepDecayLrUpdater("step", "step", warmup, lr_decay_id=ids, warmup_lr_ratio=ratio)


@quick
@given(st.sampled_from(["cos", "poly", "step"]), lengths, st.integers(0, 30), st.floats(0.01, 1))
def test_never_above_the_peak_and_never_rising_after_warmup(kind, length, warmup, begin):
    updater = decaying(kind, length, warmup)
    found = [updater.lr_at(begin, step, 0, step) for step in range(warmup + 3 * length)]
    top = begin * (1 + 1e-12)
    assert all(0 <= value <= top for value in found)
    formal = found[warmup:]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(formal))


@quick
@given(st.sampled_from(["cos", "poly"]), lengths, st.integers(1, 30), st.floats(0.01, 1))
def test_with_ratio_1_warmup_ends_where_the_formal_part_begins(kind, length, warmup, begin):
    updater = decaying(kind, length, warmup)
    slope = updater.get_warmup_lr(begin, 1) - updater.get_warmup_lr(begin, 0)
    last, first = (updater.lr_at(begin, step, 0, step) for step in (warmup - 1, warmup))
    assert first == pytest.approx(begin)
    assert first - last == pytest.approx(slope)


@quick
@given(lengths, st.floats(0.0, 1.0), st.integers(0, 1_000_000))
def test_constant_warmup_is_the_ratio_of_the_initial_value(warmup, ratio, beyond):
    updater = CosLrUpdater(10, 0.001, "step", warmup, "constant", warmup_lr_ratio=ratio)
    assert {updater.lr_at(0.5, step, 0, step) for step in range(warmup)} == {0.5 * ratio}
    assert updater.lr_at(0.5, warmup + 10 + beyond, 0, 0) == 0.001


@quick
@given(st.integers(1, 200), st.integers(1, 8), st.floats(0, 1), st.floats(1, 20))
def test_a_cycle_stays_between_its_ends(total, times, up, highest):
    updater = CyclicLrUpdater((highest, 0.01), min(times, total), up)
    updater.prepare(Plan(None, total, None))
    found = [updater.get_lr(0.1, step) for step in range(total + 50)]
    assert all(0.001 * (1 - 1e-9) <= value <= 0.1 * highest * (1 + 1e-9) for value in found)
    assert set(found[total:]) == {0.1 * 0.01}


def test_a_schedule_of_ones_own_is_a_subclass_that_gives_get_lr(fit, optimizer_of):
    class Root(CosLrUpdater):
        def get_lr(self, begin_lr, num_update):
            return begin_lr ** (1 + num_update / 12)  # no line of the initial value

    notes = fit(Root(warmup_len=2), optimizer=optimizer_of([0.1, 0.02]))
    assert notes.values[0] == (0.0, 0.0)
    assert notes.values[1] == (0.05, 0.01)
    for step in range(2, 12):
        assert notes.values[step] == (0.1 ** (1 + step / 12), 0.02 ** (1 + step / 12))


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_what_is_set_is_what_get_lr_says_to_the_last_bit(fit, optimizer_of, make):
    updater = make()
    notes = fit(updater, optimizer=optimizer_of([0.3, 0.07]))
    for step, values in enumerate(notes.values):
        ahead = [updater.lr_at(lr, step, step // 4, step % 4) for lr in (0.3, 0.07)]
        assert list(values) == ahead


@pytest.mark.parametrize(
    "make",
    [lambda: CosLrUpdater(), lambda: StepDecayLrUpdater(lr_decay_id=[1, 2], warmup_len=0)],
    ids=["by step", "by epoch"],
)
def test_an_optimizer_put_in_anothers_place_is_scheduled_from_its_own_initial_lr(
    optimizer_of, trainer_of, make
):
    seen = {}

    @plugin(stage="setup")
    class Switch:
        def __init__(self, lr):
            self.lr = lr

        @hookimpl
        def on_epoch_begin(self, ctx, epoch_id):
            if epoch_id == 1:
                ctx.optimizer = torch.optim.SGD(ctx.model.parameters(), lr=self.lr)

        @hookimpl
        def on_step_end(self, ctx, global_step_id):
            seen.setdefault(self.lr, []).append(ctx.optimizer.param_groups[0]["lr"])

    for lr in (0.1, 0.01):
        trainer_of(make(), Switch(lr), optimizer=optimizer_of([0.1])).fit(num_epochs=3)
    first, later = seen[0.1], seen[0.01]
    per_epoch = len(first) // 3
    assert later[per_epoch:] == pytest.approx([v / 10 for v in first[per_epoch:]], rel=1e-12)
    assert later[:per_epoch] == first[:per_epoch]
