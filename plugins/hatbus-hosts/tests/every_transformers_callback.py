"""Callbacks of Transformers that nobody here wrote, in hatbus: `tox -e hosts`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import host_loops as loops
import host_nine
import pytest
import torch
import transformers
from host_trained import trained
from pytorch_lightning import callbacks as lightnings
from transformers.integrations import integration_utils

from hatbus import HatbusError, Trainer
from hatbus_hosts import TransformersCallback

STEPS = loops.STEPS


def test_default_flow_logs_saves_and_evaluates_when_its_arguments_say_so(tmp_path: Path) -> None:
    strategies = {"logging": 4, "eval": 6, "save": 5}
    arguments: dict[str, Any] = {f"{what}_strategy": "steps" for what in strategies}
    arguments |= {f"{what}_steps": n for what, n in strategies.items()}
    history = TransformersCallback(transformers.DefaultFlowCallback(), arguments)
    found = trained(history, tmp_path, save_interval=100)
    logged = [row["step"] for row in history.state.log_history if "loss" in row]
    validated = [row["step"] for row in history.state.log_history if "val/loss" in row]
    assert logged == [4, 8, 12, 16, 20, 24]
    assert {6, 12, 18, 24} <= set(validated)
    saved = {path.name.split("-")[2] for path in (tmp_path / "saved").glob("checkpoint-step-*")}
    assert "20" in saved
    assert found.ctx.position.global_step == 3 * STEPS


def test_printer_prints_what_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(TransformersCallback(transformers.PrinterCallback()), tmp_path)
    assert capsys.readouterr().out.count("val/loss") == 3


def test_progress_shows_every_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trained(TransformersCallback(transformers.ProgressCallback()), tmp_path)
    assert f"{3 * STEPS}/{3 * STEPS}" in capfd.readouterr().err


def test_early_stopping_stops_and_keeps_its_patience(tmp_path: Path) -> None:
    arguments = {"eval_strategy": "epoch", "metric_for_best_model": "loss"}
    arguments["greater_is_better"] = True  # the loss falls, so it never gets better
    callback = transformers.EarlyStoppingCallback(early_stopping_patience=2)
    found = trained(TransformersCallback(callback, arguments), tmp_path, epochs=9)
    assert found.ctx.position.epoch < 9
    assert callback.early_stopping_patience_counter == 2
    state = TransformersCallback(transformers.EarlyStoppingCallback(9)).state_dict()
    assert state["callback"] == {"early_stopping_patience_counter": 0}


def test_tensorboard_of_transformers_writes_what_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    trained(TransformersCallback(integration_utils.TensorBoardCallback()), tmp_path)
    curves = host_nine.curves_of(tmp_path / "tb")
    (name,) = (tag for tag in curves if tag.endswith("val/loss"))
    assert [step for step, _ in curves[name]] == [STEPS, 2 * STEPS, 3 * STEPS]


class Configured(loops.Net):
    """As models of Transformers are made: of a config."""

    config = None

    def __init__(self, config: Any = None) -> None:
        super().__init__()

    def save_pretrained(self, folder: str) -> None:
        """Is asked for at the end."""


def both(make: Callable[[], Any], folder: Path, arguments: Mapping[str, Any]) -> list[Any]:
    """A callback after two epochs in Transformers' Trainer, and another in hatbus's."""
    made = []
    for where in ("theirs", "ours"):
        torch.manual_seed(0)
        model, callback = Configured(), make()
        made.append(callback)
        place = folder / where
        if where == "theirs":
            loops.transformers_trainer(
                model, [callback], 2, folder=place, arguments=arguments
            ).train()
        else:
            plugin = TransformersCallback(callback, arguments)
            data, optimizer = loops.new_loader(), loops.new_optimizer(model)
            Trainer(model, optimizer, data, plugins=[plugin], device="cpu", run_dir=place).fit(
                num_epochs=2
            )
    return made


def test_trls_average_is_bit_for_bit_what_it_is_in_transformers(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl.trainer.callbacks")
    theirs, ours = both(lambda: trl.BEMACallback(update_freq=3), tmp_path, {})
    assert len(ours.ema_params) == len(theirs.ema_params) > 0
    for one, other in zip(theirs.ema_params, ours.ema_params, strict=True):
        assert torch.equal(one, other)


def test_trls_reference_model_follows_by_the_arguments_of_its_own_class(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl.trainer.callbacks")

    class Arguments(transformers.TrainingArguments):
        ref_model_sync_steps = 4
        ref_model_mixup_alpha = 0.5

    reference, model = loops.new_model(), loops.new_model()
    expected, plain = [p.detach().clone() for p in reference.parameters()], loops.new_model()
    callback = trl.SyncRefModelCallback(reference, None)
    plugin = TransformersCallback(callback, Arguments(str(tmp_path), report_to=[], use_cpu=True))
    __import__("accelerate").Accelerator(cpu=True)  # the callback looks for its state
    loader, optimizer = loops.new_loader(), loops.new_optimizer(model)
    Trainer(model, optimizer, loader, plugins=[plugin], device="cpu").fit(num_steps=4)
    again = Trainer(plain, loops.new_optimizer(plain), loops.new_loader(), device="cpu")
    again.fit(num_steps=4)
    for one, other, trained_one in zip(
        expected, reference.parameters(), plain.parameters(), strict=True
    ):
        assert torch.equal(other, one.mul(0.5).add(trained_one.detach(), alpha=0.5))


def test_trls_rich_progress_shows_the_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trl = pytest.importorskip("trl.trainer.callbacks")
    trained(TransformersCallback(trl.RichProgressCallback()), tmp_path)
    assert "Training" in capsys.readouterr().out


def test_the_progress_of_notebooks_shows_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("IPython")
    from transformers.utils.notebook import NotebookProgressCallback

    arguments = {"eval_strategy": "epoch"}
    callback = NotebookProgressCallback()
    trained(TransformersCallback(callback, arguments), tmp_path)
    assert "HTML object" in capsys.readouterr().out


def test_wandb_of_transformers_gets_what_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    callback = integration_utils.WandbCallback()
    trained(TransformersCallback(callback), tmp_path, epochs=1)
    found = dict(callback._wandb.run.summary)
    assert any(name.endswith("val/loss") for name in found)
    callback._wandb.finish()


def counts(*events: str) -> tuple[type[Any], dict[str, int]]:
    """A callback as strangers write them: a subclass of ``TrainerCallback``."""
    heard: dict[str, int] = {}

    def method(name: str) -> Callable[..., None]:
        def hear(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            heard[name] = heard.get(name, 0) + 1

        return hear

    parts = {name: method(name) for name in events}
    return type("Counts", (transformers.TrainerCallback,), parts), heard


def test_every_event_that_hatbus_has_comes_as_often_as_in_transformers(tmp_path: Path) -> None:
    events = (
        *("on_init_end", "on_train_begin", "on_epoch_begin", "on_step_begin", "on_substep_end"),
        *("on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_epoch_end"),
        *("on_evaluate", "on_train_end"),
    )
    ours, here = counts(*events)
    theirs, there = counts(*events)
    trained(TransformersCallback(ours()), tmp_path)
    loops.transformers_trainer(
        loops.new_model(),
        [theirs()],
        3,
        folder=tmp_path / "out",
        arguments={"eval_strategy": "epoch"},
        evaluate=True,
    ).train()
    assert here == there
    assert here["on_step_end"] == 3 * STEPS


def test_what_is_no_callback_of_transformers_is_refused() -> None:
    with pytest.raises(HatbusError, match="is no TrainerCallback of Transformers"):
        TransformersCallback(object())
    with pytest.raises(HatbusError, match="unknown argument 'loging_steps'; did you mean"):
        TransformersCallback(transformers.PrinterCallback(), {"loging_steps": 3})


def test_a_callback_that_is_not_wrapped_is_refused_with_what_to_do() -> None:
    model = loops.new_model()
    for callback, wrapper in (
        (transformers.PrinterCallback(), "TransformersCallback"),
        (lightnings.EarlyStopping("val/loss"), "LightningCallback"),
    ):
        with pytest.raises(HatbusError, match=f"wrap it in hatbus_hosts.{wrapper}"):
            Trainer(model, loops.new_optimizer(model), loops.new_loader(), plugins=[callback])
