"""NoamLrUpdater against its table and the paper's formula."""

import pytest
import torch

from hatbus.errors import JobError
from hatbus_lr import NoamLrUpdater


def test_it_follows_the_table(fit):
    table = [0.00078125, 0.0015625, 0.00234375, 0.003125, 0.002795084972]
    assert fit(NoamLrUpdater(256, 4), num_steps=5).first == pytest.approx(table, abs=1e-9)


def test_by_epoch_it_counts_epochs(fit):
    notes = fit(NoamLrUpdater(256, 2, "epoch"))
    table = [0.1 / 16 * f for f in (2**-1.5, 2**-0.5, 3**-0.5)]
    assert notes.first == pytest.approx([v for v in table for _ in range(4)], abs=1e-9)


def test_it_is_the_papers_formula_under_torchs_lambda_lr(fit, optimizer_of):
    optimizer = optimizer_of()
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: 512**-0.5 * min((n + 1) ** -0.5, (n + 1) * 10**-1.5)
    )
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert fit(NoamLrUpdater(512, 10), num_steps=40).first == pytest.approx(expected, abs=1e-9)


def test_its_warmup_is_part_of_the_curve():
    updater = NoamLrUpdater(256, 4)
    assert updater.get_warmup_lr(0.1, 2) == updater.get_lr(0.1, 2) == pytest.approx(0.00234375)


def test_by_epoch_the_log_interval_counts_epochs(fit):
    notes = fit(NoamLrUpdater(256, 2, "epoch", 2), epochs=4)
    assert [step for step, _ in notes.logs] == [4, 12]


@pytest.mark.parametrize("options", [{"d_model": 0}, {"warmup_step": -1}, {"update_by": "run"}])
def test_a_bad_value_is_refused(options):
    with pytest.raises(JobError, match=f"{next(iter(options))} is .*accepted"):
        NoamLrUpdater(**options)
