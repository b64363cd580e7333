"""Every way of sharing a model trains it as DDP does, with one exchange of gradients per step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from modes_run import FEWER_DIGITS
from processes import run_on

Found = dict[str, Any]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two processes found."""
    return run_on(2, Path(__file__).with_name("modes_run.py"), tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("how", ["views", "root", "blocks", "scaled"])
def test_losses_validations_weights_and_averages_are_those_of_ddp(
    two: list[Found], how: str
) -> None:
    by = "ddp scaled" if how == "scaled" else "ddp"
    for rank, found in enumerate(two):
        mine, ddp = found[how], found[by]
        assert (len(mine["losses"]), len(mine["validated"])) == (12, 2)
        for part in ("losses", "validated", "weights"):
            assert mine[part] == pytest.approx(ddp[part], rel=1e-6, abs=1e-6), (part, rank)
    # DDP leaves other processes than the first their own statistics of batch norms
    assert two[0][how]["averages"] == pytest.approx(two[0][by]["averages"], rel=1e-6, abs=1e-6)
    assert two[0]["ddp"]["losses"] != pytest.approx(two[0]["ddp scaled"]["losses"], abs=1e-4)


@pytest.mark.parametrize("how", ["root", "blocks"])
def test_each_process_keeps_its_part_and_all_have_the_first_ones_statistics(
    two: list[Found], how: str
) -> None:
    first, second = two[0][how], two[1][how]
    assert first["local"] + second["local"] == two[0]["ddp"]["local"]
    assert first["local"] < 0.6 * two[0]["ddp"]["local"]
    assert first["buffers"] == second["buffers"]
    assert first["buffers"] == pytest.approx(two[0]["ddp"]["buffers"], rel=1e-6, abs=1e-6)


def test_gradients_are_exchanged_once_in_a_step_of_several_batches(two: list[Found]) -> None:
    assert two[0]["root"]["scattered"] == [1, 1, 1, 1]
    assert two[0]["blocks"]["scattered"] == [6, 6, 5, 5]  # three blocks, then two, and three heads
    # a plugin that scales what each batch adds needs it after each
    assert min(two[0]["scaled"]["scattered"]) > 12


def test_a_run_resumed_from_shards_goes_on_bit_for_bit(two: list[Found]) -> None:
    for found in two:
        mine, all_at_once = found["resumed"], found["blocks"]
        assert mine["losses"] == all_at_once["losses"][6:]
        for part in ("weights", "averages", "buffers"):
            assert mine[part] == all_at_once[part], part


def test_a_model_on_the_meta_device_begins_alike_however_many_processes_there_are(
    two: list[Found],
) -> None:
    for found in two:
        assert found["meta"]["first"] == found["meta"]["by hand"]
        assert found["meta"]["weights"] == two[0]["meta"]["weights"] != found["meta"]["first"]


@pytest.mark.parametrize("how", FEWER_DIGITS)
def test_fewer_digits_come_near_and_the_weights_keep_all_of_theirs(
    two: list[Found], how: str
) -> None:
    for found in two:
        mine, full = found[how], found["blocks"]
        assert mine["losses"] != full["losses"]
        for part, abs_ in (("losses", 0.1), ("validated", 0.1), ("weights", 0.05)):
            assert mine[part] == pytest.approx(full[part], abs=abs_), part
        assert any(one != torch.tensor(one).bfloat16().item() for one in mine["weights"])
    assert two[0][how]["weights"] == two[1][how]["weights"]


def test_what_only_accelerators_have_is_refused_on_all_processes(two: list[Found]) -> None:
    for found in two:
        offload, norm = found["refused"]
        assert offload == (
            "parallel: offload keeps on the host what an accelerator computes with, and the "
            "device is 'cpu'; leave it out there"
        )
        assert norm == (
            "parallel: sync_batchnorm: torch has it for accelerators alone, and the device is "
            "'cpu'; leave it out there"
        )
