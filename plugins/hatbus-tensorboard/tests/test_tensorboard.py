"""TensorBoard: what its own reader finds of a real run."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn

from hatbus import BatchProcessor, Context, hookimpl, plugin
from hatbus.data import OneTask
from hatbus.errors import HatbusError, SaveError
from hatbus_tensorboard.tensorboard import TensorBoard

sys.path.insert(0, str(Path(__file__).parent))
from boards import Heads, Logs, Losses, batches, curve, read, trainer

sys.path.pop(0)


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
    assert set(read(tmp_path / "a").Tags()["scalars"]) - {"train/loss"} == {
        "loss",
        "det_box_Loss_0",
        "det_box_Loss_1",
    }
    (first, *_) = curve(tmp_path / "a", "det_box_Loss_1")
    assert first[1] == pytest.approx(2 * curve(tmp_path / "a", "loss")[0][1])
    narrow = TensorBoard(str(tmp_path / "b"), loss_name_reg="DET_")
    trainer(narrow, model=Outs(), **options).fit(num_epochs=1)
    found = set(read(tmp_path / "b").Tags()["scalars"])
    assert found == {"det_cls", "det_box_Loss_0", "det_box_Loss_1", "train/loss"}


def test_a_loss_of_another_name_is_written_below_loss(tmp_path: Path) -> None:
    def loss(outs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"ce": (outs - target).square().mean(), "l2_loss": outs.square().mean()}

    trainer(TensorBoard(str(tmp_path)), loss=loss).fit(num_epochs=1)
    means = {"train/ce", "train/l2_loss", "train/loss"}
    assert set(read(tmp_path).Tags()["scalars"]) == {"loss/ce", "l2_loss", *means}


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


def test_values_published_before_the_file_is_open_are_not_lost(tmp_path: Path) -> None:
    @plugin(stage="setup")
    class Early:
        @hookimpl
        def on_loop_begin(self, ctx: Context) -> None:
            ctx.log({"parameters": 4})

    trainer(Early(), TensorBoard(str(tmp_path))).fit(num_steps=1)
    assert curve(tmp_path, "parameters") == [(0, 4.0)]


def test_every_kind_that_is_published_before_the_file_is_open_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @plugin(stage="train")
    class Early:
        @hookimpl
        def on_loop_begin(self, ctx: Context) -> None:
            ctx.log({"first": torch.zeros(3, 4, 4)}, "image")
            ctx.log({"spread": torch.arange(5.0)}, "histogram")
            ctx.log({"row": torch.ones(2), "one": torch.ones(1, 1)})

    trainer(Early(), TensorBoard(str(tmp_path))).fit(num_steps=1)
    found = read(tmp_path)
    assert (found.Images("first")[0].width, found.Histograms("spread")[0].step) == (4, 0)
    assert curve(tmp_path, "one") == [(0, 1.0)]
    assert "row" not in found.Tags()["scalars"]
    assert "'row' is no single number" in caplog.text


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


def test_of_two_values_of_one_name_in_a_step_the_later_one_is_written(tmp_path: Path) -> None:
    class Publishes:
        @hookimpl
        def on_step_begin(self, ctx: Context) -> None:
            for value in (1.0, 2.0):  # a parameter is no plain tensor, so it is kept as one
                ctx.log({"d": nn.Parameter(torch.tensor(value)), "h": value})
                ctx.log({"first": nn.Parameter(torch.tensor(value)), f"only_{value:g}": value})
                ctx.log({"first": -value, "then": -value})
                ctx.log({"then": nn.Parameter(torch.tensor(value))})
            ctx.log({"d": torch.ones(2)})

    trainer(Publishes(), TensorBoard(str(tmp_path), describe=False)).fit(num_steps=2)
    for tag, value in {"d": 2.0, "h": 2.0, "first": -2.0, "then": 2.0, "only_1": 1.0}.items():
        assert curve(tmp_path, tag) == [(0, value), (1, value)]


JOB = """{
    "run": {"seed": 3, "entry": "train.py:build", "run_dir": "runs", "args": {"width": 8}},
    "plugins": {
        "x": {"use": "cos_lr", "enabled": true, "stop_lr": 0.5, "names": ["a"]},
        "bare": {"use": "bare", "enabled": true},
        "off": {"use": "ema", "enabled": false, "decay": 0.9}
    }
}"""


def test_job_plugins_and_hyperparameters_are_described(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    run = trainer(TensorBoard(str(tmp_path / "tb")), Logs())
    run.ctx.storage["job"] = json.loads(JOB)
    run.fit(num_epochs=1)
    found = read(tmp_path / "tb")
    (text,) = found.Tensors("run/plugins/text_summary")
    assert b"tensorboard | TensorBoard | report" in text.tensor_proto.string_val[0]
    assert b'"seed": 3' in found.Tensors("run/job/text_summary")[0].tensor_proto.string_val[0]
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = parse_session_start_info_plugin_data(content).hparams
    mine = {name for name in hparams if not name.startswith("optimizer.")}
    assert mine == {"optimizer", "run.seed", "args.width", "x.stop_lr", "bare"}
    assert hparams["optimizer.lr"].number_value == 0.05
    assert hparams["x.stop_lr"].number_value == 0.5
    assert hparams["optimizer"].string_value == "SGD"


def test_no_graph_is_written(tmp_path: Path) -> None:
    trainer(TensorBoard(str(tmp_path))).fit(num_epochs=1)
    assert not read(tmp_path).Tags()["graph"]


def test_what_is_published_in_a_step_is_one_event_with_a_point_per_name(tmp_path: Path) -> None:
    class Publishes:
        @hookimpl
        def on_step_begin(self, ctx: Context) -> None:
            ctx.log({"a": 1.0})

        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            ctx.log({"b": torch.tensor(2.0), "c": 3})
            if ctx.global_step_id == 1:
                ctx.log({"a": 4.0})

    trainer(Publishes(), TensorBoard(str(tmp_path), describe=False)).fit(num_steps=2)
    (file,) = tmp_path.iterdir()
    events = [e for e in EventFileLoader(str(file)).Load() if e.summary.value]
    written = [(e.step, {v.tag for v in e.summary.value}) for e in events]
    of_steps = {"a", "b", "c", "loss"}
    assert written == [(0, of_steps), (1, of_steps), (1, {"train/loss"})]
    assert curve(tmp_path, "a") == [(0, 1.0), (1, 4.0)]


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = trainer(TensorBoard(str(tmp_path / "file" / "tb")))
    with pytest.raises(SaveError, match="choose another save_dir"):
        run.fit(num_epochs=1)
    assert run.ctx.position.global_step == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_freq": 0}, "update_freq is 0; accepted: a whole number of at least 1"),
        ({"update_by": "steps"}, "update_by is 'steps'; accepted: .*did you mean 'step'"),
        ({"loss_name_reg": "("}, "accepted: a regular expression"),
        ({"flush_sec": 3}, "unknown option 'flush_sec'; did you mean 'flush_secs'"),
        ({"flush_secs": "3"}, "flush_secs is '3'; accepted: a number above 0"),
        ({"max_queue": 0}, "max_queue is 0; accepted: a whole number of at least 1"),
        ({"purge_step": -1}, "purge_step is -1; accepted: a whole number of at least 0"),
        ({"filename_suffix": 3}, "filename_suffix is 3; accepted: a name"),
        ({"tb_update_funcs": [3]}, "tb_update_funcs holds 3; accepted: functions"),
        ({"tb_update_funcs": [lambda writer, outs: None]}, "unknown argument 'outs'"),
    ],
)
def test_wrong_options_are_refused_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HatbusError, match=message):
        TensorBoard("runs", **options)
