"""CyclicLrUpdater against its table."""

import pytest

from hatbus.errors import JobError
from hatbus_lr import CyclicLrUpdater

TABLE = [0.1, 0.2318019485, 0.55, 0.8681980515, 1, 0.9330133718, 0.7500025, 0.500005]
TABLE += [0.2500075, 0.06699662823]


def test_one_cycle_follows_the_table(fit):
    assert fit(CyclicLrUpdater(), num_steps=10).first == pytest.approx(TABLE, abs=1e-9)


def test_every_cycle_is_the_same(fit):
    found = fit(CyclicLrUpdater(cyclic_times=3), num_steps=30).first
    assert found == pytest.approx(TABLE * 3, abs=1e-9)


def test_steps_left_over_and_steps_past_the_end_stay_at_the_lowest_value(fit):
    updater = CyclicLrUpdater(cyclic_times=3)
    found = fit(updater, num_steps=32).first
    assert found == pytest.approx([*TABLE * 3, 1e-5, 1e-5], abs=1e-9)
    assert updater.get_lr(0.1, 10_000) == pytest.approx(1e-5)


def test_more_cycles_than_steps_are_refused(fit):
    with pytest.raises(
        JobError, match="cyclic_times is 13 and the run has 12 steps; accepted: 1 to"
    ):
        fit(CyclicLrUpdater(cyclic_times=13))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_ratio": (10,)}, "target_ratio is .* accepted: two numbers"),
        ({"target_ratio": (10, -1)}, "target_ratio is -1"),
        ({"cyclic_times": 0}, "cyclic_times is 0; accepted: a whole number of at least 1"),
        ({"step_ratio_up": -0.1}, "step_ratio_up is -0.1"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(options, message):
    with pytest.raises(JobError, match=message):
        CyclicLrUpdater(**options)
