"""TensorBoard over resumes, kills and old folders: no step twice, none lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hatbus import Context, Trainer, hookimpl, plugin
from hatbus.data import ListedTasks
from hatbus_tensorboard.tensorboard import TensorBoard

sys.path.insert(0, str(Path(__file__).parent))
from boards import KILLED, Heads, Logs, Resumes, batches, curve, raw_steps, trainer

sys.path.pop(0)


def test_a_resumed_run_leaves_no_step_twice_and_none_out(tmp_path: Path) -> None:
    trainer(TensorBoard(str(tmp_path)), Logs()).fit(num_steps=7)
    trainer(TensorBoard(str(tmp_path), overwrite=True), Logs(), Resumes(1, 1)).fit(num_epochs=3)
    assert [step for step, _ in curve(tmp_path, "loss")] == list(range(12))
    assert raw_steps(tmp_path, "loss") == [*range(7), *range(5, 12)]
    assert [step for step, _ in curve(tmp_path, "lr")] == [3, 7, 11]


def test_after_kill_9_and_a_resume_no_step_is_twice_and_none_before_the_checkpoint_lost(
    tmp_path: Path,
) -> None:
    folder = str(Path(__file__).parent)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, folder, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -9
    assert raw_steps(tmp_path, "loss") == list(range(7))
    trainer(TensorBoard(str(tmp_path)), Logs(), Resumes(1, 3)).fit(num_epochs=3)
    assert [step for step, _ in curve(tmp_path, "loss")] == list(range(12))
    assert [step for step, _ in curve(tmp_path, "lr")] == [3, 7, 11]


def test_a_new_run_in_an_old_folder_takes_its_place(tmp_path: Path) -> None:
    trainer(TensorBoard(str(tmp_path))).fit(num_steps=7)
    trainer(TensorBoard(str(tmp_path))).fit(num_steps=3)
    assert [step for step, _ in curve(tmp_path, "loss")] == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_overwrite_deletes_event_files_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("precious")
    trainer(TensorBoard(str(tmp_path), overwrite=True)).fit(num_steps=1)
    sub = tmp_path / "sub"
    sub.mkdir()
    (old,) = tmp_path.glob("events.*")
    old.rename(sub / old.name)
    trainer(TensorBoard(str(tmp_path), overwrite=True)).fit(num_steps=1)
    (_,) = tmp_path.glob("events.*")
    assert not sub.exists()
    assert (tmp_path / "model.bin").read_text() == "precious"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_file_is_complete_and_closed_when_the_run_fails(
    tmp_path: Path, error: type[BaseException]
) -> None:
    class Fails:
        @hookimpl
        def on_step_begin(self, global_step_id: int) -> None:
            if global_step_id == 2:
                raise error

    board = TensorBoard(str(tmp_path))
    with pytest.raises(error):
        trainer(board, Fails()).fit(num_epochs=1)
    assert [step for step, _ in curve(tmp_path, "loss")] == [0, 1]
    assert board.writer is None
    assert not any(t.name == "tensorboard" for t in __import__("threading").enumerate())


@plugin(stage="checkpoint")
class Keeps:
    """Keeps the board's state as it is at the end of a step."""

    def __init__(self, board: TensorBoard, step: int) -> None:
        self.board, self.step = board, step

    @hookimpl
    def on_step_end(self, global_step_id: int) -> None:
        if global_step_id == self.step:
            self.state = self.board.state_dict()


@pytest.mark.parametrize("last", range(12))
def test_a_tasks_turns_are_those_of_a_run_that_never_stopped(tmp_path: Path, last: int) -> None:
    def run(board: TensorBoard, *more: object) -> Trainer:
        data = {"det": batches(9), "seg": batches(9)}
        order = ListedTasks(["det", "det", "det", "seg"])
        return trainer(board, *more, data=data, model=Heads(), task_sampler=order)

    def steps(name: str) -> list[list[int]]:
        tags = ("det/loss", "seg/loss")
        return [[step for step, _ in curve(tmp_path / name, tag)] for tag in tags]

    whole, first, second = (
        TensorBoard(str(tmp_path / name), update_freq=3) for name in ("whole", "parts", "parts")
    )
    run(whole).fit(num_steps=14)
    keeps = Keeps(first, last)
    run(first, keeps).fit(num_steps=last + 2)
    second.load_state_dict(keeps.state)
    run(second, Resumes(0, last + 1)).fit(num_steps=14)
    assert steps("parts") == steps("whole") == [[2, 5, 8, 12], [3, 7, 11]]


def test_turns_go_on_in_a_second_fit(tmp_path: Path) -> None:
    run = trainer(
        TensorBoard(str(tmp_path), update_freq=3),
        data={"det": batches(9), "seg": batches(9)},
        model=Heads(),
        task_sampler=ListedTasks(["det", "det", "det", "seg"]),
    )
    run.fit(num_steps=3)
    run.fit(num_steps=7)
    assert [step for step, _ in curve(tmp_path, "seg/loss")] == [3]


@plugin(stage="checkpoint")
class SavesEach:
    """Finds out which steps are in the file when a checkpoint is written."""

    def __init__(self, folder: Path, unit: str = "step") -> None:
        self.folder, self.unit = folder, unit
        self.found: list[list[int]] = []

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        if self.unit == "step":
            ctx.save("every step")

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        if self.unit == "epoch":
            ctx.save("every epoch")

    @hookimpl
    def save_checkpoint(self) -> bool:
        self.found.append(raw_steps(self.folder, "loss"))
        return True


def test_everything_is_in_the_file_before_a_checkpoint_is_written(tmp_path: Path) -> None:
    saves = SavesEach(tmp_path)
    board = TensorBoard(str(tmp_path), flush_secs=1000)
    trainer(saves, board).fit(num_steps=3)
    assert saves.found == [[0], [0, 1], [0, 1, 2]]
    assert raw_steps(tmp_path, "loss") == [0, 1, 2]


@pytest.mark.parametrize(
    ("unit", "found"),
    [("step", [[], [], [], [3], [3], [3], [3], [3, 7]]), ("epoch", [[3], [3, 7]])],
)
def test_by_epoch_the_last_steps_losses_are_in_the_file_before_its_checkpoint(
    tmp_path: Path, unit: str, found: list[list[int]]
) -> None:
    saves = SavesEach(tmp_path, unit)
    board = TensorBoard(str(tmp_path), update_by="epoch", flush_secs=1000)
    trainer(saves, board).fit(num_epochs=2)
    assert saves.found == found
    assert raw_steps(tmp_path, "loss") == [3, 7]


def test_a_run_resumed_at_an_epochs_end_calls_no_function_without_outputs(tmp_path: Path) -> None:
    seen = []

    def by_epoch(epoch_id: int, model_outs: torch.Tensor) -> None:
        seen.append((epoch_id, tuple(model_outs.shape)))

    board = TensorBoard(str(tmp_path), update_by="epoch", tb_update_funcs=[by_epoch])
    trainer(board, Resumes(0, 4)).fit(num_epochs=3)
    assert seen == [(1, (4, 1)), (2, (4, 1))]
