"""OneCycleUpdater against its table and torch's OneCycleLR."""

import logging

import pytest
import torch

from hatbus.errors import JobError
from hatbus_lr import OneCycleUpdater

TABLE = [0.01, 0.02318019485, 0.055, 0.08681980515, 0.1, 0.09330127019, 0.075, 0.05, 0.025]
TABLE += [0.006698729811]


def test_it_follows_the_table(fit):
    assert fit(OneCycleUpdater(0.1), num_steps=10).first == pytest.approx(TABLE, abs=1e-9)
    assert fit(OneCycleUpdater(0.1), 2, steps=5).first == pytest.approx(TABLE, abs=1e-9)


@pytest.mark.parametrize(("total", "pct_start"), [(10, 0.4), (40, 0.3), (16, 0.25)])
def test_it_is_torchs_one_cycle_whose_last_step_is_the_one_after_ours(
    fit, optimizer_of, total, pct_start
):
    optimizer = optimizer_of(momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.1,
        total_steps=total + 1,
        pct_start=(total * pct_start + 1) / (total + 1),
        div_factor=10,
        final_div_factor=1e12,
    )
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = fit(OneCycleUpdater(0.1, pct_start=pct_start), num_steps=total).first
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_peak_is_each_groups_own_lr_and_a_difference_is_warned_of(fit, optimizer_of, caplog):
    logging.getLogger("hatbus").propagate = True
    notes = fit(OneCycleUpdater(0.1), num_steps=10, optimizer=optimizer_of([0.1, 0.5]))
    assert notes.values[4] == (0.1, 0.5)
    assert "lr_max is 0.1, but the peak is the optimizer's own lr: 0.1, 0.5" in caplog.text


def test_an_lr_max_that_is_the_optimizers_is_not_warned_of(fit, caplog):
    logging.getLogger("hatbus").propagate = True
    fit(OneCycleUpdater(0.1), num_steps=4)
    assert "lr_max" not in caplog.text


def test_past_its_end_it_stays_at_the_final_value(fit):
    updater = OneCycleUpdater(0.1, stop_lr=0.003)
    fit(updater, num_steps=10)
    assert [updater.get_lr(0.1, step) for step in (10, 11, 15, 10_000)] == [0.003] * 4


def test_annealing_cos_goes_from_start_to_end():
    found = [OneCycleUpdater.annealing_cos(2.0, 1.0, pct) for pct in (0, 0.5, 1)]
    assert found == pytest.approx([2.0, 1.5, 1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_max": 0}, "lr_max is 0; accepted: a number above 0"),
        ({"div_factor": 0.5}, "div_factor is 0.5; accepted: a number of at least 1"),
        ({"pct_start": 1.1}, "pct_start is 1.1; .*at least 0 and at most 1"),
        ({"warmup_by": "run"}, "warmup_by is 'run'"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(options, message):
    with pytest.raises(JobError, match=message):
        OneCycleUpdater(**options)
