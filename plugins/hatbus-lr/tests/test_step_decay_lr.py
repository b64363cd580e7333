"""StepDecayLrUpdater against its table and torch's MultiStepLR."""

import pytest
import torch

from hatbus.errors import JobError
from hatbus_lr import StepDecayLrUpdater


def test_by_epoch_it_follows_the_table_and_goes_on_like_that(fit):
    notes = fit(StepDecayLrUpdater(lr_decay_id=[1, 2]), epochs=6)
    assert notes.first == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.001] * 16, abs=1e-9)


def test_ids_are_absolute_warmup_included(fit):
    notes = fit(
        StepDecayLrUpdater("step", "step", warmup_len=4, lr_decay_id=[2, 6], lr_decay_factor=0.5)
    )
    warmup = [0, 0.025, 0.05, 0.075]
    assert notes.first == pytest.approx([*warmup, 0.05, 0.05] + [0.025] * 6, abs=1e-9)


def test_it_is_torchs_multi_step_lr(fit, optimizer_of):
    optimizer = optimizer_of()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7, 8], gamma=0.3)
    expected = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    updater = StepDecayLrUpdater("step", lr_decay_id=[3, 7, 8], lr_decay_factor=0.3)
    assert fit(updater).first == pytest.approx(expected, abs=1e-9)


def test_without_ids_it_stays_where_it_is(fit):
    assert fit(StepDecayLrUpdater()).first == [0.1] * 12


@pytest.mark.parametrize("ids", [[2, 1], [1, 1], [-1], [1.5], [True]])
def test_ids_that_do_not_ascend_are_refused(ids):
    with pytest.raises(JobError, match=r"lr_decay_id is .* accepted: a list of ascending whole"):
        StepDecayLrUpdater(lr_decay_id=ids)


@pytest.mark.parametrize("factor", [0, 1.5, -0.1, float("nan")])
def test_a_factor_outside_0_to_1_is_refused(factor):
    with pytest.raises(JobError, match=r"lr_decay_factor is .* above 0 and at most 1"):
        StepDecayLrUpdater(lr_decay_factor=factor)
