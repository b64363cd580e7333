"""``run.log``: a run's log is in its folder, whatever the terminal shows and however it ends."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from stranger import write_job

from hatbus.cli import main
from hatbus.jobs.run_log import logged
from hatbus.log import log


@pytest.fixture(autouse=True)
def _log_as_before():
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = before[0], before[2]
    log.setLevel(before[1])


def lines(folder: Path) -> list[str]:
    """Without their times."""
    return [line.split(" ", 2)[2].strip() for line in (folder / "run.log").read_text().splitlines()]


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_a_run_writes_what_it_logs_quiet_or_not_and_a_second_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet
) -> None:
    job = write_job(tmp_path, "[plugins.stats_monitor]\n")
    monkeypatch.chdir(tmp_path)
    words = ["run", str(job), "-o", "run.run_dir=here", *quiet]
    assert main(words) == main(words) == 0
    found = lines(tmp_path / "here")
    assert found[0].startswith("INFO    job.toml with hatbus 0.1.0 begins")
    assert "INFO    epoch 1/2 begins" in found
    assert [line.endswith("with hatbus 0.1.0 ends") for line in found].count(True) == 2
    printed = capsys.readouterr()
    assert ("epoch 1/2 begins" in printed.err) == (not quiet)
    assert ("job.json  plan.json  run.log" in printed.out) == (not quiet)
    assert not any(isinstance(handler, logging.FileHandler) for handler in log.handlers)


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (ValueError("what happened"), "ERROR   it fails: ValueError: what happened"),
        (SystemExit(75), "INFO    it ends with exit code 75"),
    ],
)
def test_the_last_line_says_how_it_ended(tmp_path: Path, error: BaseException, last: str) -> None:
    with pytest.raises(type(error)), logged(tmp_path, "it"):
        raise error
    assert lines(tmp_path)[-1] == last


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    with logged(tmp_path / "nowhere", "it"):
        pass
    (tmp_path / "run.log").symlink_to("/dev/full")
    with logged(tmp_path, "it"):
        log.warning("no room for this")


def test_an_error_of_a_run_without_a_log_file_is_not_the_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine") as caught, logged(tmp_path / "absent", "a run"):
        raise ValueError("mine")
    assert caught.value.__context__ is None
