"""One process fails, hangs or differs: all end, and say which it was, where and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from failing_ranks import TIMEOUT, two_of_whom_one_fails


@pytest.mark.timeout(300)
def test_a_plugin_that_fails_on_one_rank_is_named_by_both(tmp_path: Path, checkout: Path) -> None:
    # Rank 0 keeps the board, which lasts until the other has read it.
    guilty, peer = two_of_whom_one_fails("raise", 0, tmp_path, checkout)
    assert (peer.code, guilty.code) == (8, 3)
    line = "rank 0 failed in plugin 'boom', on_step_end, step 7: RuntimeError: a bug"
    assert peer.errors == f"hatbus: error: [rank 1] {line}"
    assert "[rank 0] plugin 'boom'" in guilty.errors
    assert "Traceback" in guilty.err
    assert "gloo" not in peer.err


@pytest.mark.timeout(300)
def test_a_plugin_that_hangs_on_one_rank_is_ended_and_named(tmp_path: Path, checkout: Path) -> None:
    peer, guilty = two_of_whom_one_fails("sleep", 1, tmp_path, checkout)
    assert (peer.code, guilty.code) == (8, 3)
    line = "rank 1 hangs in plugin 'boom', on_step_end, step 7"
    assert line in peer.errors
    assert line in guilty.errors
    assert "time.sleep(600)" in guilty.err  # the stacks
    assert max(peer.seconds, guilty.seconds) < TIMEOUT + 30  # 10 where nobody else computes


@pytest.mark.timeout(300)
def test_a_folder_that_is_not_shared_is_noticed_at_the_start(
    tmp_path: Path, checkout: Path
) -> None:
    for end in two_of_whom_one_fails("unshared", 1, tmp_path, checkout):
        assert end.code == 2, end.err
        assert "rank 1 does not see what rank 0 writes into 'saved'; checkpoints need" in end.errors
    assert not list(tmp_path.glob("disk-*/saved/.tmp-*"))
