"""Callbacks of Transformers and Lightning that nobody here wrote, in hatbus: `tox -e hosts`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import host_loops as loops
import pytest
import torch
import transformers
from pytorch_lightning import callbacks as lightnings
from transformers.integrations import integration_utils

from hatbus import HatbusError, Trainer
from hatbus.callbacks import Checkpoint, Validation
from hatbus_hosts import LightningCallback, TransformersCallback

STEPS = loops.STEPS


def trained(plugins: Any, folder: Path, epochs: int = 3, **options: Any) -> Trainer:
    """A run of hatbus's own, with validation and checkpoints."""
    model = loops.new_model()
    trainer = Trainer(
        model,
        loops.new_optimizer(model),
        loops.new_loader(),
        plugins=[
            *(plugins if isinstance(plugins, list) else [plugins]),
            Validation(loops.new_loader(8)),
            Checkpoint(str(folder / "saved"), **options),
        ],
        device="cpu",
        run_dir=folder,
    )
    trainer.fit(num_epochs=epochs)
    return trainer


# ---- ten of Transformers -------------------------------------------------------------------------


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
    curves = loops.curves_of(tmp_path / "tb")
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


# ---- five and more of Lightning ------------------------------------------------------------------


def test_early_stopping_of_lightning_stops(tmp_path: Path) -> None:
    callback = lightnings.EarlyStopping("val/loss", patience=1, mode="max")
    found = trained(LightningCallback(callback), tmp_path, epochs=9)
    assert found.ctx.position.epoch < 9
    assert callback.stopped_epoch == found.ctx.position.epoch - 1


def test_timer_counts_and_stops(tmp_path: Path) -> None:
    timer = lightnings.Timer("00:00:10:00")
    trained(LightningCallback(timer), tmp_path)
    assert timer.time_elapsed("train") > 0
    short = lightnings.Timer("00:00:00:00")
    found = trained(LightningCallback(short), tmp_path / "b", epochs=9)
    assert found.ctx.position.global_step < 9 * STEPS


def test_lambda_callback_hears_its_hooks(tmp_path: Path) -> None:
    heard: list[str] = []
    callback = lightnings.LambdaCallback(
        on_train_start=lambda trainer, module: heard.append(f"start {trainer.max_epochs}"),
        on_train_batch_end=lambda trainer, module, outputs, batch, index: heard.append(
            f"batch {index} {outputs['loss'].item():.3f}"
        ),
        on_train_end=lambda trainer, module: heard.append("end"),
    )
    stranger = loops.Stranger()
    trained([LightningCallback(callback), stranger], tmp_path, epochs=1)
    batches = [f"batch {index} {loss:.3f}" for index, loss in enumerate(stranger.losses)]
    assert heard == ["start 1", *batches, "end"]


def test_learning_rate_monitor_publishes_rates(tmp_path: Path) -> None:
    found = trained(LightningCallback(lightnings.LearningRateMonitor("step")), tmp_path)
    assert found.ctx.latest["lr-SGD"] == 0.1


def test_device_stats_monitor_publishes_what_the_cpu_does(tmp_path: Path) -> None:
    found = trained(LightningCallback(lightnings.DeviceStatsMonitor(cpu_stats=True)), tmp_path)
    assert any("cpu_percent" in name for name in found.ctx.latest)


def test_ema_weight_averaging_is_hatbuss_own_average(tmp_path: Path) -> None:
    from hatbus.callbacks import ExponentialMovingAverage

    averaging = lightnings.EMAWeightAveraging(decay=0.9)
    ema = ExponentialMovingAverage(0.9, decay_base=0)
    averages: list[torch.Tensor] = []
    end = averaging.on_train_end

    def on_train_end(*given: Any) -> None:
        state = averaging._average_model.module.state_dict()
        averages.append(state["model.head.weight"].clone())
        end(*given)

    averaging.on_train_end = on_train_end
    trained([LightningCallback(averaging), ema], tmp_path)
    # Lightning's average begins as the weights after the first update, ours as those before it.
    assert averages[0].shape == ema.averages()["head.weight"].shape
    assert torch.isfinite(averages[0]).all()


def test_pruning_prunes(tmp_path: Path) -> None:
    callback = lightnings.ModelPruning("l1_unstructured", amount=0.5)
    found = trained(LightningCallback(callback), tmp_path)
    assert (found.ctx.model.head.weight == 0).float().mean() >= 0.5


def test_backbone_finetuning_unfreezes_at_its_epoch(tmp_path: Path) -> None:
    class Seen(lightnings.BaseFinetuning):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[int] = []

        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.body, train_bn=False)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            self.asked.append(epoch)

    seen = Seen()
    found = trained(LightningCallback(seen), tmp_path, epochs=2)
    assert seen.asked == [0, 1]
    assert not found.ctx.model.body[0].weight.requires_grad


@pytest.mark.parametrize(
    ("make", "instead"),
    [
        (lambda: lightnings.ModelCheckpoint(), "checkpoint saves"),
        (lambda: lightnings.GradientAccumulationScheduler({0: 2}), r"accumulate=\.\.\."),
        (lambda: lightnings.RichProgressBar(), "progress shows"),
        (lambda: lightnings.ModelSummary(), "only Lightning knows"),
        (lambda: lightnings.LearningRateFinder(), "in the optimizer"),
        (lambda: lightnings.StochasticWeightAveraging(0.1), "ema averages"),
    ],
)
def test_what_cannot_run_here_is_refused_with_what_does_it(
    make: Callable[[], Any], instead: str
) -> None:
    with pytest.raises(HatbusError, match=f"cannot run here; .*{instead}"):
        LightningCallback(make())


def test_what_is_not_there_of_lightnings_trainer_is_named(tmp_path: Path) -> None:
    callback = lightnings.ThroughputMonitor(lambda batch: len(batch["x"]))
    with pytest.raises(HatbusError, match=r"ThroughputMonitor asks for trainer.precision_plugin"):
        trained(LightningCallback(callback), tmp_path)


# ---- in a job ------------------------------------------------------------------------------------

BUILD = """
import host_loops as loops


def build():
    model = loops.new_model()
    return {"model": model, "optimizer": loops.new_optimizer(model), "data": loops.new_loader()}


def loader():
    return loops.new_loader(8)
"""
JOB = """
[run]
entry = "build.py:build"
num_epochs = {epochs}
device = "cpu"
[plugins.validation]
data_loader = {{ call = "build.py:loader" }}
[plugins.checkpoint]
save_dir = "saved"
[plugins.stop]
use = "transformers:EarlyStoppingCallback"
early_stopping_patience = 3
training_arguments = {arguments}
[plugins.rates]
use = "pytorch_lightning.callbacks:LearningRateMonitor"
logging_interval = "step"
[plugins.jsonl_log]
path = "log.jsonl"
"""
ARGUMENTS = "{ eval_strategy = 'epoch', metric_for_best_model = 'loss', greater_is_better = true }"


def job(folder: Path, epochs: int, more: str = "", **changes: str) -> Path:
    (folder / "build.py").write_text(BUILD)
    values: Mapping[str, Any] = {"epochs": epochs, "arguments": ARGUMENTS, **changes}
    path = folder / "job.toml"
    path.write_text(JOB.format(**values) + more)
    return path


def ran(path: Path, *words: str) -> int:
    from hatbus.cli import main

    try:
        return int(main(["run", str(path), *words]) or 0)
    except SystemExit as left:
        return int(left.code or 0)


def test_callbacks_are_named_in_a_job_and_their_state_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ran(job(tmp_path, 2)) == 0
    assert ran(job(tmp_path, 9), "-o", "run.resume=last") == 0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any("lr-SGD" in row for row in rows)
    last = max(row["step"] for row in rows)
    assert 2 * STEPS < last + 1 < 9 * STEPS


def test_an_option_that_the_callback_does_not_have_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = ran(job(tmp_path, 2), "-o", "stop.early_stoping_patience=2")
    assert code == 2
    assert "did you mean 'early_stopping_patience'" in capsys.readouterr().err
