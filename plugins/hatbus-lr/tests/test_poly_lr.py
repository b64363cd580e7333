"""PolyLrUpdater against its table and torch's PolynomialLR."""

import pytest
import torch

from hatbus.errors import JobError
from hatbus_lr import PolyLrUpdater

THIRD = 0.1 / 3


def test_by_step_with_warmup_follows_the_table_and_stays_at_the_end(fit):
    notes = fit(PolyLrUpdater(8, power=2, final_lr=0.001, warmup_len=4), epochs=10)
    table = [0, 0.025, 0.05, 0.075, 0.1, 0.076796875, 0.0566875, 0.039671875, 0.02575, 0.014921875]
    table += [0.0071875, 0.002546875]
    assert notes.first == pytest.approx(table + [0.001] * 28, abs=1e-9)


def test_by_epoch_keeps_the_last_warmup_value_until_the_next_epoch(fit):
    notes = fit(PolyLrUpdater(3, "epoch", warmup_by="step", warmup_len=3), epochs=6)
    table = [0, THIRD, 2 * THIRD, 2 * THIRD] + [0.1] * 4 + [2 * THIRD] * 4 + [THIRD] * 4 + [0] * 8
    assert notes.first == pytest.approx(table, abs=1e-9)


@pytest.mark.parametrize("power", [1.0, 0.9, 2.0])
def test_without_warmup_it_is_torchs_polynomial_lr(fit, optimizer_of, power):
    optimizer = optimizer_of()
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=9, power=power)
    expected = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert fit(PolyLrUpdater(9, power=power)).first == pytest.approx(expected, abs=1e-9)


def test_warmup_by_epoch_moves_every_step(fit):
    notes = fit(PolyLrUpdater(4, warmup_by="epoch", warmup_len=2))
    assert notes.first == pytest.approx(
        [0.1 * g / 8 for g in range(8)] + [0.1, 0.075, 0.05, 0.025], abs=1e-9
    )


def test_by_epoch_with_a_warmup_by_step_needs_an_epoch_length(fit):
    class Endless:
        def __iter__(self):
            return iter([(torch.ones(1), torch.zeros(1))] * 3)

    with pytest.raises(JobError, match=r"loader has no length; give update_by='step'"):
        fit(PolyLrUpdater(3, "epoch", warmup_len=2), data=Endless())
    assert fit(PolyLrUpdater(3, "epoch"), epochs=2, data=Endless()).first[3:] == pytest.approx(
        [2 * THIRD] * 3
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_update": 0}, "max_update is 0; accepted: a whole number of at least 1"),
        ({"max_update": 2.5}, "max_update is 2.5"),
        ({"power": 0}, "power is 0; accepted: a number above 0"),
        ({"final_lr": -0.1}, "final_lr is -0.1; accepted: a number of at least 0"),
        ({"update_by": "steps"}, "update_by is 'steps'; accepted: 'step', 'epoch'; did you mean"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(options, message):
    with pytest.raises(JobError, match=message):
        PolyLrUpdater(**{"max_update": 8, **options})
