"""TensorBoard: what its own reader and its own server find of a real run."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn

from hatbus import BatchProcessor, Context, Trainer, hookimpl, plugin
from hatbus.errors import PluginError, SaveError
from hatbus.task_sampler import OneTask
from hatbus_tensorboard.event_file import EventFile, Scalars
from hatbus_tensorboard.tensorboard import TensorBoard

torch.set_num_threads(1)
KINDS = ("scalars", "tensors", "images", "histograms")


def batches(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, 3, generator=chance)
    return list(zip(inputs, inputs.sum(dim=2, keepdim=True), strict=True))


def trainer(*plugins: object, data: Any = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = options.pop("model", None) or nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss = options.pop("loss", nn.functional.mse_loss)
    return Trainer(model, optimizer, data or batches(4), loss, plugins, **options)


class Losses:
    """The losses as they were."""

    def __init__(self) -> None:
        self.values: list[float] = []

    @hookimpl
    def on_step_end(self, losses: dict[str, torch.Tensor]) -> None:
        self.values.append(float(losses["loss"].detach()))


@plugin(stage="monitor")
class Logs:
    """Publishes one of each kind, at the end of each epoch."""

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        ctx.log({"val/accuracy": torch.tensor(0.5), "lr": 0.1, "count": 3})
        ctx.log({"a": torch.rand(3, 8, 8), "b": torch.rand(8, 8)}, "image")
        ctx.log({"weights": ctx.model.weight}, "histogram")
        ctx.log({"note": "all is well"}, "text")


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance=dict.fromkeys(KINDS, 0))
    found.Reload()
    return found


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in read(folder).Scalars(tag)]


def raw_steps(folder: Path, tag: str) -> list[int]:
    """Steps as they stand in the files, purged ones too."""
    return [
        event.step
        for file in sorted(folder.iterdir())
        for event in EventFileLoader(str(file)).Load()
        if any(value.tag == tag for value in event.summary.value)
    ]


def test_every_steps_loss_is_read_back(tmp_path: Path) -> None:
    losses = Losses()
    trainer(TensorBoard(str(tmp_path)), losses).fit(num_epochs=2)
    steps, values = zip(*curve(tmp_path, "loss"), strict=True)
    assert list(steps) == list(range(8))
    assert list(values) == pytest.approx(losses.values)


def test_losses_are_written_every_update_freq_steps_or_epochs(tmp_path: Path) -> None:
    losses = Losses()
    trainer(TensorBoard(str(tmp_path / "s"), update_freq=3), losses).fit(num_epochs=2)
    assert curve(tmp_path / "s", "loss") == [
        (2, pytest.approx(losses.values[2])),
        (5, pytest.approx(losses.values[5])),
    ]
    trainer(TensorBoard(str(tmp_path / "e"), update_freq=2, update_by="epoch")).fit(num_epochs=5)
    assert [step for step, _ in curve(tmp_path / "e", "loss")] == [7, 15]


class Outs(nn.Module):
    """Returns nested outputs, losses among them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, batch: Any) -> Any:
        loss = (self.layer(batch[0]) - batch[1]).square().mean()
        parts = {"cls": loss * 0.25, "box_Loss": [loss * 0.5, loss * 2]}
        return {
            "loss": loss,
            "det": parts,
            "scores": self.layer(batch[0]),
            "aux_loss_map": batch[0],
        }


def test_losses_are_found_by_their_flattened_names_whatever_the_case(tmp_path: Path) -> None:
    processor = BatchProcessor(loss_collector=lambda outs: outs["loss"])
    options = {"loss": None, "batch_processor": processor}
    trainer(TensorBoard(str(tmp_path / "a")), model=Outs(), **options).fit(num_epochs=1)
    assert set(read(tmp_path / "a").Tags()["scalars"]) == {
        "loss",
        "det_box_Loss_0",
        "det_box_Loss_1",
    }
    (first, *_) = curve(tmp_path / "a", "det_box_Loss_1")
    assert first[1] == pytest.approx(2 * curve(tmp_path / "a", "loss")[0][1])
    narrow = TensorBoard(str(tmp_path / "b"), loss_name_reg="DET_")
    trainer(narrow, model=Outs(), **options).fit(num_epochs=1)
    found = set(read(tmp_path / "b").Tags()["scalars"])
    assert found == {"det_cls", "det_box_Loss_0", "det_box_Loss_1"}


def test_a_loss_of_another_name_is_written_below_loss(tmp_path: Path) -> None:
    def loss(outs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"ce": (outs - target).square().mean(), "l2_loss": outs.square().mean()}

    trainer(TensorBoard(str(tmp_path)), loss=loss).fit(num_epochs=1)
    assert set(read(tmp_path).Tags()["scalars"]) == {"loss/ce", "l2_loss"}


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"det": nn.Linear(3, 1), "seg": nn.Linear(3, 1)})

    def forward(self, inputs: torch.Tensor, task: str) -> torch.Tensor:
        return self.heads[task](inputs)


def test_tasks_have_curves_of_their_own_and_micro_batches_their_mean(tmp_path: Path) -> None:
    seen: list[tuple[str, int, float]] = []

    class Sees:
        @hookimpl
        def on_batch_end(self, task: str, global_step_id: int, losses: Any) -> None:
            seen.append((task, global_step_id, float(losses["loss"].detach())))

    data = {"det": batches(4), "seg": batches(4, seed=1)}
    run = trainer(TensorBoard(str(tmp_path)), Sees(), data=data, model=Heads(), accumulate=2)
    run.fit(num_epochs=1)
    for task in data:
        for step, value in curve(tmp_path, f"{task}/loss"):
            parts = [v for t, s, v in seen if (t, s) == (task, step)]
            assert len(parts) == 2
            assert value == pytest.approx(sum(parts) / 2)


def test_every_task_is_written_although_it_is_never_in_an_nth_step(tmp_path: Path) -> None:
    data = {"det": batches(4), "seg": batches(4, seed=1)}
    board = TensorBoard(str(tmp_path), update_freq=4)
    run = trainer(board, data=data, model=Heads(), task_sampler=OneTask())
    run.fit(num_steps=10)
    assert [step for step, _ in curve(tmp_path, "seg/loss")] == [3, 7]
    assert [step for step, _ in curve(tmp_path, "det/loss")] == [4, 8]


def test_everything_published_is_written_as_its_kind(tmp_path: Path) -> None:
    trainer(TensorBoard(str(tmp_path), update_freq=3), Logs()).fit(num_epochs=2)
    found = read(tmp_path)
    tags = found.Tags()
    assert {"val/accuracy", "lr", "count"} <= set(tags["scalars"])
    assert curve(tmp_path, "val/accuracy") == [(3, 0.5), (7, 0.5)]
    assert curve(tmp_path, "count") == [(3, 3.0), (7, 3.0)]
    assert set(tags["images"]) == {"a", "b"}
    assert [(i.step, i.width, i.height) for i in found.Images("b")] == [(3, 8, 8), (7, 8, 8)]
    assert tags["histograms"] == ["weights"]
    assert "note/text_summary" in tags["tensors"]


def test_published_values_are_those_of_the_time_they_were_published(tmp_path: Path) -> None:
    class Adds:
        total = torch.zeros(())

        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            self.total += 1
            ctx.log({"total": self.total})

    trainer(Adds(), TensorBoard(str(tmp_path))).fit(num_epochs=1)
    assert curve(tmp_path, "total") == [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)]


def test_what_is_no_number_is_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd:
        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            ctx.log({"many": torch.ones(3), "fine": 1, "word": "no"})

    with caplog.at_level(logging.WARNING, "hatbus"):
        trainer(Odd(), TensorBoard(str(tmp_path))).fit(num_epochs=1)
    assert len(curve(tmp_path, "fine")) == 4
    assert len(caplog.records) == 2


def test_user_functions_get_what_they_name(tmp_path: Path) -> None:
    def images(writer: Any, model_outs: Any, global_step_id: int) -> None:
        writer.add_histogram("outs", model_outs, global_step_id)

    def hat(writer: Any, step_id: int, **kwargs: Any) -> None:
        writer.add_scalar("hat", kwargs["epoch_id"], step_id)

    board = TensorBoard(str(tmp_path / "s"), update_freq=2, tb_update_funcs=[images, hat])
    trainer(board).fit(num_epochs=2)
    assert [h.step for h in read(tmp_path / "s").Histograms("outs")] == [1, 3, 5, 7]
    assert curve(tmp_path / "s", "hat") == [(1, 0), (3, 0), (5, 1), (7, 1)]

    def by_epoch(writer: Any, epoch_id: int) -> None:
        writer.add_scalar("epoch", epoch_id, epoch_id)

    board = TensorBoard(str(tmp_path / "e"), update_by="epoch", tb_update_funcs=[by_epoch])
    trainer(board).fit(num_epochs=3)
    assert curve(tmp_path / "e", "epoch") == [(0, 0), (1, 1), (2, 2)]


@plugin(stage="checkpoint")
class Resumes:
    """Puts the counters where a checkpoint would."""

    def __init__(self, epoch: int, step: int) -> None:
        self.place = epoch, step

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        ctx.position.epoch, ctx.position.step = self.place
        ctx.position.global_step = self.place[0] * 4 + self.place[1]


def test_a_resumed_run_leaves_no_step_twice_and_none_out(tmp_path: Path) -> None:
    trainer(TensorBoard(str(tmp_path)), Logs()).fit(num_steps=7)
    trainer(TensorBoard(str(tmp_path), overwrite=True), Logs(), Resumes(1, 1)).fit(num_epochs=3)
    assert [step for step, _ in curve(tmp_path, "loss")] == list(range(12))
    assert raw_steps(tmp_path, "loss") == [*range(7), *range(5, 12)]
    assert [step for step, _ in curve(tmp_path, "lr")] == [3, 7, 11]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_tensorboard import Logs, TensorBoard, hookimpl, plugin, trainer

@plugin(stage="checkpoint")
class Saves:
    @hookimpl
    def on_step_end(self, ctx):
        if ctx.global_step_id == 6:
            ctx.save("step 6")
    @hookimpl
    def save_checkpoint(self):
        return True

class Dies:
    @hookimpl
    def on_step_begin(self, global_step_id):
        if global_step_id == 9:
            os.kill(os.getpid(), signal.SIGKILL)

trainer(TensorBoard(sys.argv[2], flush_secs=1000), Saves(), Logs(), Dies()).fit(num_epochs=3)
"""


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


def test_everything_is_in_the_file_before_a_checkpoint_is_written(tmp_path: Path) -> None:
    found: list[list[int]] = []

    @plugin(stage="checkpoint")
    class Saves:
        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            ctx.save("every step")

        @hookimpl
        def save_checkpoint(self) -> bool:
            found.append(raw_steps(tmp_path, "loss"))
            return True

    board = TensorBoard(str(tmp_path), flush_secs=1000)
    trainer(Saves(), board).fit(num_steps=3)
    assert found == [[0], [0, 1], [0, 1, 2]]
    assert raw_steps(tmp_path, "loss") == [0, 1, 2]


def test_values_published_before_the_file_is_open_are_not_lost(tmp_path: Path) -> None:
    @plugin(stage="setup")
    class Early:
        @hookimpl
        def on_loop_begin(self, ctx: Context) -> None:
            ctx.log({"parameters": 4})

    trainer(Early(), TensorBoard(str(tmp_path))).fit(num_steps=1)
    assert curve(tmp_path, "parameters") == [(0, 4.0)]


class Watched(torch.Tensor):
    """A tensor that counts who waits for it in the training's own thread."""

    waits = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import threading

        if func.__name__ in ("item", "tolist", "__float__", "cpu", "numpy", "__bool__"):
            cls.waits += threading.current_thread() is threading.main_thread()
        return super().__torch_function__(func, types, args, kwargs or {})


def test_the_training_never_waits_for_a_value(tmp_path: Path) -> None:
    class Publishes:
        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            ctx.log({"watched": torch.tensor(float(ctx.global_step_id)).as_subclass(Watched)})

        @hookimpl(wrapper=True)
        def compute_loss(self) -> Any:
            losses = yield
            return {name: value.as_subclass(Watched) for name, value in losses.items()}

    board = TensorBoard(str(tmp_path), describe=False)
    Watched.waits = 0
    trainer(Publishes(), board, nan="ignore").fit(num_steps=6)
    assert Watched.waits == 0
    assert curve(tmp_path, "watched") == [(s, float(s)) for s in range(6)]
    float(torch.ones(()).as_subclass(Watched))
    assert Watched.waits == 1


def test_job_plugins_and_hyperparameters_are_described(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"run": {"seed": 3}, "plugins": {"x": {"lr": 0.5}}}')
    run = trainer(TensorBoard(str(tmp_path / "tb")), Logs(), run_dir=tmp_path)
    run.fit(num_epochs=1)
    found = read(tmp_path / "tb")
    (text,) = found.Tensors("run/plugins/text_summary")
    assert b"tensorboard | TensorBoard | report" in text.tensor_proto.string_val[0]
    assert b'"seed": 3' in found.Tensors("run/job/text_summary")[0].tensor_proto.string_val[0]
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = parse_session_start_info_plugin_data(content)
    assert start.hparams["x.lr"].number_value == 0.5


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = trainer(TensorBoard(str(tmp_path / "file" / "tb")))
    with pytest.raises(SaveError, match="choose another save_dir"):
        run.fit(num_epochs=1)
    assert run.ctx.position.global_step == 0


def test_a_disk_that_is_full_is_reported(tmp_path: Path) -> None:
    class Full:
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    events = EventFile(tmp_path)
    events._file.close()
    events._file = Full()  # type: ignore[assignment]
    events.add_scalars(Scalars(("a",), 0, 0.0, (1.0,)))
    with pytest.raises(SaveError, match="No space left on device; make room"):
        events.close()


def test_a_file_that_takes_less_than_it_is_given_is_written_whole(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    taken = bytearray()

    class Short:
        def write(self, data: Any) -> int:
            taken.extend(data[:7])
            return min(7, len(data))

        def close(self) -> None: ...

    events._file.close()
    events._file = Short()  # type: ignore[assignment]
    events.add_scalars(Scalars(("a",), 5, 0.0, torch.ones(1)))
    events.close()
    events.path.write_bytes(taken)
    assert raw_steps(tmp_path, "a") == [5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_freq": 0}, "update_freq=0; accepted: 1 or more"),
        ({"update_by": "steps"}, "update_by='steps'; did you mean 'step'"),
        ({"loss_name_reg": "("}, "no regular expression"),
        ({"flush_sec": 3}, "unknown option 'flush_sec'; did you mean 'flush_secs'"),
        ({"tb_update_funcs": [3]}, "tb_update_funcs holds 3; accepted: functions"),
        ({"tb_update_funcs": [lambda writer, outs: None]}, "unknown argument 'outs'"),
    ],
)
def test_wrong_options_are_refused_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        TensorBoard("runs", **options)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real TensorBoard server on tmp_path/tb; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--logdir"]
    command += [str(tmp_path / "tb"), "--port", str(port), "--host", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def asked(url: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.load(answer)


def test_a_real_server_shows_scalars_per_task_images_and_histograms(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    class Weights(Logs):
        @hookimpl
        def on_epoch_end(self, ctx: Context) -> None:
            ctx.log({"lr": 0.1})
            ctx.log({"a": torch.rand(3, 8, 8)}, "image")
            ctx.log({"weights": ctx.model.heads["det"].weight}, "histogram")

    data = {"det": batches(4), "seg": batches(4, seed=1)}
    board = TensorBoard(str(tmp_path / "tb"))
    trainer(board, Weights(), data=data, model=Heads()).fit(num_epochs=2)
    url = request.getfixturevalue("server") + "/data/plugin"
    deadline, runs = time.monotonic() + 60, {}
    while time.monotonic() < deadline:
        try:
            runs = asked(f"{url}/scalars/tags")
        except OSError:
            runs = {}
        if "lr" in runs.get(".", {}):
            break
        time.sleep(0.3)
    assert {"det/loss", "seg/loss", "lr"} <= set(runs["."])
    points = asked(f"{url}/scalars/scalars", run=".", tag="det/loss")
    assert [step for _, step, _ in points] == list(range(8))
    assert "a" in asked(f"{url}/images/tags")["."]
    assert "weights" in asked(f"{url}/histograms/tags")["."]
    assert "run/plugins/text_summary" in asked(f"{url}/text/tags")["."]
