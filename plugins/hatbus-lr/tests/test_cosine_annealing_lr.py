"""CosineAnnealingLrUpdater against its table and torch's CosineAnnealingLR."""

import pytest
import torch

from hatbus.errors import JobError
from hatbus_lr import CosineAnnealingLrUpdater


def test_it_follows_the_table(fit):
    notes = fit(CosineAnnealingLrUpdater(stop_lr=0.001))
    assert notes.first == pytest.approx([0.1] * 4 + [0.07525] * 4 + [0.02575] * 4, abs=1e-9)


def test_it_is_torchs_cosine_stepped_by_epoch(fit, optimizer_of):
    optimizer = optimizer_of()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5, eta_min=0.01)
    expected = []
    for _ in range(5):
        expected += [optimizer.param_groups[0]["lr"]] * 4
        optimizer.step()
        scheduler.step()
    assert fit(CosineAnnealingLrUpdater(0.01), epochs=5).first == pytest.approx(expected, abs=1e-9)


def test_warmup_is_not_subtracted(fit):
    notes = fit(CosineAnnealingLrUpdater(stop_lr=0.001, warmup_len=4))
    warmup = [0, 0.025, 0.05, 0.075]
    assert notes.first == pytest.approx(warmup + [0.07525] * 4 + [0.02575] * 4, abs=1e-9)


def test_a_run_planned_in_steps_counts_its_begun_epochs(fit):
    notes = fit(CosineAnnealingLrUpdater(stop_lr=0.001), num_steps=10)
    assert notes.first == pytest.approx([0.1] * 4 + [0.07525] * 4 + [0.02575] * 2, abs=1e-9)


def test_far_past_the_end_it_is_the_final_value():
    updater = CosineAnnealingLrUpdater(stop_lr=0.001)
    updater.num_epochs = 3
    assert [updater.get_lr(0.1, epoch) for epoch in (3, 4, 6, 1000)] == [0.001] * 4


def test_a_run_planned_in_steps_without_a_length_is_refused(fit):
    class NoLength:
        def __iter__(self):
            return iter([(torch.ones(1), torch.zeros(1))] * 4)

    with pytest.raises(JobError, match="no length; plan the run by num_epochs instead"):
        fit(CosineAnnealingLrUpdater(), num_steps=10, data=NoLength())
