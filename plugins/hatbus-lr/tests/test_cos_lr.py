"""CosLrUpdater against its table and torch's CosineAnnealingLR."""

import logging

import pytest
import torch

from hatbus.errors import JobError
from hatbus_lr import CosLrUpdater

TABLE = [0, 0.025, 0.05, 0.075, 0.1, 0.09623203686, 0.08550178567, 0.0694428299]
TABLE += [0.0505, 0.0315571701, 0.01549821433, 0.004767963141]


class NoLength:
    """A loader that cannot say how long it is."""

    def __iter__(self):
        return iter([(torch.ones(1), torch.zeros(1))] * 4)


def test_it_follows_the_table(fit):
    notes = fit(CosLrUpdater(stop_lr=0.001, warmup_len=4))
    assert notes.first == pytest.approx(TABLE, abs=1e-9)


def test_past_its_end_it_stays_at_the_final_value(fit):
    notes = fit(CosLrUpdater(8, stop_lr=0.001, warmup_len=4), epochs=12)
    assert notes.first == pytest.approx(TABLE + [0.001] * 36, abs=1e-9)


def test_a_run_planned_in_steps_needs_no_length(fit):
    notes = fit(CosLrUpdater(stop_lr=0.001, warmup_len=4), num_steps=12, data=NoLength())
    assert notes.first == pytest.approx(TABLE, abs=1e-9)


def test_a_run_planned_in_epochs_without_a_length_says_what_to_set(fit):
    with pytest.raises(JobError, match=r"no length; set max_steps, or plan the run by num_steps"):
        fit(CosLrUpdater(), data=NoLength())
    assert len(fit(CosLrUpdater(5), data=NoLength()).first) == 12


def test_without_warmup_it_is_torchs_cosine(fit, optimizer_of):
    optimizer = optimizer_of()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12, eta_min=0.002)
    expected = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert fit(CosLrUpdater(stop_lr=0.002)).first == pytest.approx(expected, abs=1e-9)


def test_gradient_accumulation_counts_updates_not_batches(fit):
    notes = fit(CosLrUpdater(stop_lr=0.001, warmup_len=4), steps=7, accumulate=2)
    assert notes.first == pytest.approx(TABLE, abs=1e-9)


def test_a_run_with_tasks_has_an_exact_length(fit):
    batch = (torch.ones(1), torch.zeros(1))
    notes = fit(
        CosLrUpdater(stop_lr=0.001, warmup_len=4), data={"a": [batch] * 4, "b": [batch] * 4}
    )
    assert notes.first == pytest.approx(TABLE, abs=1e-9)


def test_a_warmup_longer_than_the_run_is_warned_of(fit, caplog):
    logging.getLogger("hatbus").propagate = True
    notes = fit(CosLrUpdater(warmup_len=24))
    assert notes.first == pytest.approx([0.1 * g / 24 for g in range(12)])
    assert "warmup of 24 steps fills the run of 12 steps" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps .*is 0; accepted: a whole number of at least 1"),
        ({"warmup_len": -1}, "warmup_len is -1; accepted: a whole number of at least 0"),
        ({"warmup_by": "batch"}, "warmup_by is 'batch'; accepted: 'step', 'epoch'"),
        ({"warmup_mode": "linaer"}, "warmup_mode is 'linaer'; .*did you mean 'linear'"),
        ({"warmup_begin_lr": -1}, "warmup_begin_lr is -1; accepted: a number of at least 0"),
        ({"warmup_lr_ratio": 1.5}, "warmup_lr_ratio is 1.5; .*at least 0 and at most 1"),
        ({"stop_lr": float("inf")}, "stop_lr is inf; accepted: a number of at least 0"),
        (
            {"step_log_interval": 0},
            "step_log_interval is 0; accepted: a whole number of at least 1",
        ),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(options, message):
    with pytest.raises(JobError, match=message):
        CosLrUpdater(**options)


def test_before_the_run_its_unknown_length_is_an_error_and_no_number():
    with pytest.raises(JobError, match="set max_steps"):
        CosLrUpdater().get_lr(0.1, 3)
