"""Progress: what it shows, where, at what cost, and how it leaves the terminal."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import select
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from rich.console import Console

from hatbus import hookimpl, plugin
from hatbus.errors import JobError
from hatbus_monitor import progress, progress_display
from hatbus_monitor.metric_updater import MetricUpdater
from hatbus_monitor.progress import Progress
from hatbus_monitor.progress_view import Snapshot, bars, html, line
from hatbus_monitor.update_functions import usual


class Screen:
    """A display that keeps what it is shown."""

    is_live = True

    def __init__(self) -> None:
        self.shown: list[Snapshot] = []
        self.is_open = False

    def start(self, snapshot: Snapshot) -> None:
        self.is_open = True
        self.shown.append(snapshot)

    def show(self, snapshot: Snapshot) -> None:
        assert self.is_open
        self.shown.append(snapshot)

    def stop(self) -> None:
        self.is_open = False


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    found = Screen()
    monkeypatch.setattr("hatbus_monitor.progress.display_of", lambda kind: found)
    return found


def of_steps(screen: Screen) -> list[tuple[int, int]]:
    return [(s.epoch, s.step) for s in screen.shown]


def test_every_step_is_shown_when_nothing_holds_back(trainer, screen) -> None:
    trainer([Progress(refresh=0)]).fit(num_epochs=2)
    epochs = [[(e, s) for s in range(1, 7)] + [(e, 6)] for e in (1, 2)]
    assert of_steps(screen) == [(1, 0), *epochs[0], *epochs[1], (2, 6)]
    last = screen.shown[-1]
    assert (last.done, last.total, last.epoch_steps, last.num_epochs) == (12, 12, 6, 2)
    assert not screen.is_open


def test_values_are_loss_lr_and_published_metrics(trainer, screen, events) -> None:
    updater = MetricUpdater(usual, ["accuracy"])
    trainer([updater, Progress(refresh=0), events]).fit(num_epochs=1)
    assert list(screen.shown[3].values) == ["loss", "lr", "train/accuracy"]
    assert screen.shown[3].values["loss"] == pytest.approx(events.losses[2])
    assert screen.shown[3].values["lr"] == 0.1


def test_chosen_names_only(trainer, screen) -> None:
    updater = MetricUpdater(usual, ["accuracy", "loss"])
    trainer([updater, Progress(refresh=0, show=["*/acc*"])]).fit(num_epochs=1)
    assert list(screen.shown[-1].values) == ["loss", "lr", "train/accuracy"]


def test_the_loss_of_every_task_stays_in_sight(trainer, data, screen) -> None:
    from hatbus.data import OneTask

    tasks = {"a": data(3), "b": data(3)}
    trainer([Progress(refresh=0)], tasks, task_sampler=OneTask()).fit(num_epochs=1)
    assert list(screen.shown[2].values) == ["a/loss", "b/loss", "lr"]


def test_between_two_looks_nothing_is_read_from_the_device(trainer, screen, reads) -> None:
    trainer([Progress(refresh=1000)], nan="ignore").fit(num_steps=5)
    looks = len(screen.shown)
    assert looks == 3  # begin, the epoch's end, the run's end
    assert reads.count == looks - 1  # one loss each time but the first


def test_a_resumed_run_starts_where_it_is(trainer, screen) -> None:
    run = trainer([Progress(refresh=0)])
    run.ctx.position.epoch, run.ctx.position.step, run.ctx.position.global_step = 1, 2, 8
    run.fit(num_epochs=3)
    assert of_steps(screen)[:2] == [(2, 2), (2, 3)]
    assert screen.shown[1].total == 18


class Length:
    """A loader without a length."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def test_an_unknown_length_is_left_open_until_it_is_known(trainer, data, screen) -> None:
    trainer([Progress(refresh=0)], Length(data())).fit(num_epochs=2)
    assert (screen.shown[3].epoch_steps, screen.shown[3].total) == (None, None)
    assert (screen.shown[-1].epoch_steps, screen.shown[-1].total) == (6, 12)


@plugin(stage="validate")
class Validates:
    @hookimpl
    def on_epoch_end(self, ctx: Any) -> None:
        ctx.emit.validate(ctx, "test")

    @hookimpl
    def validate(self, ctx: Any) -> bool:
        ctx.storage["progress"]("validation", 3, 9)
        return True


def test_a_validation_has_a_bar_of_its_own(trainer, screen) -> None:
    trainer([Validates(), Progress(refresh=0)]).fit(num_epochs=1)
    nested = [s.nested for s in screen.shown if s.nested]
    assert nested == [("validation", 0, None), ("validation", 3, 9)]
    assert screen.shown[-1].nested is None


@pytest.mark.parametrize(
    ("error", "ending"), [(ValueError, "failed (ValueError)"), (KeyboardInterrupt, "interrupted")]
)
def test_the_end_says_what_ended_the_run(trainer, screen, error: Any, ending: str) -> None:
    class Fails:
        @hookimpl
        def on_step_end(self, global_step_id: int) -> None:
            if global_step_id == 2:
                raise error

    with pytest.raises(error):
        trainer([Fails(), Progress(refresh=0)]).fit(num_epochs=1)
    assert screen.shown[-1].ending == ending
    assert not screen.is_open


def test_quiet_runs_show_nothing(trainer, screen) -> None:
    run = trainer([Progress(refresh=0)])
    run.ctx.storage["quiet"] = True
    run.fit(num_epochs=1)
    assert screen.shown == []


def test_losses_are_bit_identical_with_and_without(trainer, screen, events) -> None:
    plain = type(events)()
    trainer([Progress(refresh=0), events]).fit(num_epochs=2)
    trainer([plain]).fit(num_epochs=2)
    assert events.losses == plain.losses


FULL = Snapshot(
    epoch=2,
    num_epochs=5,
    step=30,
    epoch_steps=40,
    done=70,
    total=200,
    samples_per_second=5210.4,
    elapsed=61,
    remaining=3661.0,
    values={"loss": 0.123456, "lr": 0.1},
)


def test_a_line_says_everything() -> None:
    assert line(FULL) == (
        "epoch 2/5, step 30/40: loss 0.1235, lr 0.1, 5,210 samples/s, 1:01:01 left"
    )
    nested = Snapshot(nested=("validation", 3, 9), ending="interrupted", elapsed=5)
    assert line(nested) == "epoch 1, step 0, validation 3/9: interrupted after 0:00:05"


def drawn(snapshot: Snapshot, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(bars(snapshot))
    return console.file.getvalue().splitlines()


def test_bars_fit_the_width_and_hold_the_same() -> None:
    first, second = drawn(FULL)
    assert re.fullmatch(r"epoch 2/5 ━+.*━* 30/40 5,210 samples/s, 1:01:01 left ?", first)
    assert second.strip() == "loss 0.1235, lr 0.1"
    for width in (40, 60, 200):
        assert all(len(row) <= width for row in drawn(FULL, width))


def test_a_notebook_gets_a_bar_and_no_markup_of_the_values() -> None:
    text = html(Snapshot(step=3, epoch_steps=9, values={"<b>": 1}))
    assert '<progress value="3" max="9">' in text
    assert "&lt;b&gt; 1" in text


def test_a_notebook_has_a_table_of_the_epochs_that_are_over() -> None:
    epochs = [(n, {"loss": n / 4, **({"val/<acc>": 0.5} if n == 2 else {})}, 61.0) for n in (1, 2)]
    text = html(Snapshot(epochs=epochs))
    table = re.sub(r"</?(table|tr)>", "", text.partition("<table>")[2].partition("</table>")[0])
    assert re.findall(r"<t[hd]>(.*?)</t[hd]>", table) == [
        *("epoch", "loss", "val/&lt;acc&gt;", "time"),
        *("1", "0.25", "", "0:01:01"),
        *("2", "0.5", "0.5", "0:01:01"),
    ]
    many = html(Snapshot(epochs=[(n, {}, 1.0) for n in range(1, 81)]))
    assert "the last 50 of 80 epochs" in many
    assert many.count("<tr>") == 51


def test_epochs_are_noted_with_what_was_published_in_them(trainer, monkeypatch) -> None:
    shown: list[Any] = []

    class Screen:
        is_live = True
        start = show = shown.append
        stop = staticmethod(lambda: None)

    monkeypatch.setattr(progress, "display_of", lambda kind: Screen())
    run = trainer([Progress(refresh=0)])
    ctx = run.fit(num_epochs=2)
    first, second = shown[-1].epochs
    assert (first[0], second[0]) == (1, 2)
    assert first[1]["loss"] != second[1]["loss"]
    run.fit(num_steps=ctx.position.global_step + 1)  # a third one is begun, and not over
    assert [number for number, _, _ in shown[-1].epochs] == [1, 2]
    run.fit(num_epochs=3)
    assert [number for number, _, _ in shown[-1].epochs] == [1, 2, 3]


def test_notebook_display_replaces_its_cell_and_shows_the_log(monkeypatch, capsys) -> None:
    import types

    monkeypatch.setattr(logging.getLogger("hatbus"), "hasHandlers", lambda: False)  # pytest's own

    updates: list[str] = []

    class Handle:
        def update(self, cell: Any) -> None:
            updates.append(repr(cell))

    ipython, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    module.display = lambda cell, display_id: updates.append(cell._repr_html_()) or Handle()
    ipython.display = module
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    display = progress_display.display_of("notebook")
    display.start(FULL)
    logging.getLogger("hatbus").info("a record")
    display.show(FULL)
    display.stop()
    assert [u[:9] for u in updates] == ["<div><pro", "epoch 2/5"]
    assert capsys.readouterr().out == "a record\n"


@pytest.mark.parametrize("options", [{"refresh": -1}, {"plain_interval": -1}, {"display": "lvie"}])
def test_wrong_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="accepted: "):
        Progress(**options)


def test_a_pipe_gets_one_line_per_epoch(trainer, capsys) -> None:
    trainer([Progress()]).fit(num_epochs=2)
    lines = capsys.readouterr().err.splitlines()
    assert [one.split(":")[0] for one in lines] == ["epoch 1/2, step 6/6", "epoch 2/2, step 6/6"]
    assert all("\x1b" not in one for one in lines)


def test_a_reader_that_went_away_does_not_end_the_run(trainer, monkeypatch) -> None:
    read, write = os.pipe()
    os.close(read)
    broken = os.fdopen(write, "w")
    monkeypatch.setattr(sys, "stderr", broken)
    assert trainer([Progress()]).fit(num_epochs=1).updates == 6
    with pytest.raises(BrokenPipeError):
        broken.close()


def test_the_log_and_its_level_are_as_before() -> None:
    log = logging.getLogger("hatbus")
    before = (log.level, list(log.handlers), sys.stdout, sys.stderr)
    display = progress_display.LiveDisplay(Console(file=io.StringIO(), force_terminal=True))
    display.start(FULL)
    display.show(FULL)
    display.stop()
    display.stop()
    assert (log.level, list(log.handlers), sys.stdout, sys.stderr) == before


SCRIPT = """
    import logging, os, signal, torch
    from hatbus import Trainer, hookimpl
    from hatbus_monitor.progress import Progress

    class Talks:
        def __init__(self, act):
            self.act = act

        @hookimpl
        def on_step_end(self, global_step_id):
            if global_step_id == 1:
                logging.getLogger("hatbus").info("a record")
                print("a print")
            if global_step_id == 2:
                self.act()

    def fail(error):
        raise error

    acts = {
        "well": lambda: None,
        "error": lambda: fail(ValueError()),
        "interrupt": lambda: fail(KeyboardInterrupt()),
        "signal": lambda: os.kill(os.getpid(), signal.SIGINT),
        "killed": lambda: os._exit(1),
    }
    for name, act in acts.items():
        print(f"<<{name}>>", flush=True)
        model = torch.nn.Linear(2, 1)
        data = [(torch.ones(4, 2), torch.ones(4, 1))] * 4
        run = Trainer(model, torch.optim.SGD(model.parameters(), 0.1), data,
                      torch.nn.functional.mse_loss, [Talks(act), Progress(refresh=0)])
        try:
            run.fit(num_epochs=1)
        except BaseException as error:
            pass
        print("after", flush=True)
"""


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a terminal gets from runs that end in different ways, by name."""
    script = tmp_path_factory.mktemp("terminal") / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, script], stdin=theirs, stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    found = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            found += os.read(ours, 65536)
        except OSError:  # the other end is closed: the runs are over
            break
    process.wait(60)
    os.close(ours)
    parts = re.split(r"<<(\w+)>>\r\n", found.decode())[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize(
    ("act", "ending"),
    [
        ("well", "took 0:00:0"),
        ("error", "failed (ValueError) after"),
        ("interrupt", "interrupted after"),
        ("signal", "stopped (SIGINT) after"),
    ],
)
def test_a_terminal_is_left_clean(act: str, ending: str, terminal: dict[str, str]) -> None:
    text = terminal[act]
    assert "epoch 1/1" in text
    assert ending in text
    bar, _, after = text.rpartition("\x1b[?25h")
    assert "\x1b[?25l" not in after, "the cursor is hidden"
    assert bar.endswith("\n"), "the bar's last line is not ended"
    assert after.endswith("after\r\n")
    assert "\x1b" not in after


def test_a_process_that_is_killed_leaves_a_cursor_to_see(terminal: dict[str, str]) -> None:
    text = terminal["killed"]
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert text.endswith("\n")


def test_records_and_prints_appear_above_the_bar(terminal: dict[str, str]) -> None:
    for said in ("a record\r\n", "a print\r\n"):
        before, _, after = terminal["well"].partition(said)
        assert before.endswith("\x1b[2K"), "the bar's place is cleared before the text"
        assert after.startswith("\x1b[1mepoch 1/1")
