"""Optimizers that find their step size themselves are not starved by a schedule in silence."""

import logging
import re

import pytest
import torch

from hatbus_lr import CosLrUpdater, NoamLrUpdater, OneCycleUpdater, TorchLr


class Tuning(torch.optim.SGD):
    """Has an estimate that multiplies the lr, as Prodigy has."""

    def __init__(self, groups, lr, d=1e-6):
        super().__init__(groups, lr=lr)
        for group in self.param_groups:
            group["d"] = d


@pytest.mark.parametrize(
    ("plugin", "lr", "peak"),
    [
        (CosLrUpdater(), 1e-3, "CosLrUpdater: Tuning finds .* set to 0.001 at most"),
        (CosLrUpdater(warmup_len=2, warmup_lr_ratio=0.01), 0.02, "CosLrUpdater: .* set to 0.02"),
        (NoamLrUpdater(d_model=256, warmup_step=4), 1.0, "NoamLrUpdater: .* set to 0.031 at"),
        (OneCycleUpdater(lr_max=1e-3), 1e-3, "OneCycleUpdater: .* set to 0.001 at most"),
        (TorchLr("CosineAnnealingLR", {"T_max": 12}), 1e-3, "CosineAnnealingLR: .* set to 0.001"),
        (TorchLr("OneCycleLR", {"max_lr": 1e-3, "total_steps": 13}), 1.0, "OneCycleLR: .* 0.001 "),
    ],
)
def test_a_schedule_that_stays_low_is_warned_of_by_name(
    fit, optimizer_of, caplog, plugin, lr, peak
):
    with caplog.at_level(logging.WARNING, "hatbus"):
        fit(plugin, optimizer=optimizer_of((lr,), kind=Tuning))
    assert any(re.search(peak, record.getMessage()) for record in caplog.records)
    assert "give the optimizer lr=1.0" in caplog.text


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        (CosLrUpdater(warmup_len=4), {"kind": Tuning}),
        (TorchLr("OneCycleLR", {"max_lr": 1.0, "total_steps": 13}), {"kind": Tuning}),
        (CosLrUpdater(), {"kind": Tuning, "d": 0.02}),
    ],
)
def test_one_that_comes_near_1_is_not(fit, optimizer_of, caplog, plugin, options):
    with caplog.at_level(logging.WARNING, "hatbus"):
        fit(plugin, optimizer=optimizer_of((1e-3 if "d" in options else 1.0,), **options))
    assert "finds its step size" not in caplog.text


def test_a_group_with_a_d_of_another_meaning_is_left_alone(fit, optimizer_of, caplog):
    for d in ("a text", 64, None, True, torch.ones(3)):
        fit(CosLrUpdater(), optimizer=optimizer_of((1e-3,), kind=Tuning, d=d))
    assert "finds its step size" not in caplog.text
