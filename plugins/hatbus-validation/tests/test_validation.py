"""Validation: what is evaluated, when, under which names, and that training never notices."""

from __future__ import annotations

import copy
import json
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hatbus import BatchProcessor, CallbackMixin, Context, Trainer, hookimpl, plugin
from hatbus.errors import DataError, JobError, PluginError
from hatbus.rng import capture, restore
from hatbus_validation.mean_losses import MeanLosses
from hatbus_validation.validation import Validation

torch.set_num_threads(1)


def batches(count: int, size: int = 4, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, size, 3, generator=chance)
    return list(zip(inputs, inputs.sum(dim=2, keepdim=True), strict=True))


class Net(nn.Module):
    """Draws random numbers in training and keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(inputs))


def trainer(*plugins: object, data: Any = None, model: Any = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = model or Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss = options.pop("loss", nn.functional.mse_loss)
    return Trainer(model, optimizer, data or batches(5), loss, plugins, **options)


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.ctx.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def mean_loss(model: nn.Module, data: Any) -> float:
    """By hand: the mean of the squared error over every sample."""
    was = model.training
    model.eval()
    with torch.no_grad():
        errors = torch.cat([(model(x) - y).square().flatten() for x, y in data])
    model.train(was)
    return float(errors.double().mean())


class Draws:
    """A callback that draws from every global generator."""

    def __init__(self) -> None:
        self.batches = 0

    @hookimpl
    def on_batch_end(self) -> None:
        self.batches += 1
        random.random(), np.random.rand(), torch.rand(3)


class Raises:
    """A callback that fails in its n-th batch."""

    def __init__(self, at: int, error: type[BaseException] = RuntimeError) -> None:
        self.left, self.error = at, error

    @hookimpl
    def on_batch_end(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error("midway")


@plugin(stage="average")
class Average:
    """A weight view as EMA offers it: half of the raw weights, exchanged without copies."""

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        self.model = ctx.model
        ctx.weights.add("ema", self.show)

    @contextmanager
    def show(self) -> Iterator[None]:
        kept = [(p, p.data) for p in self.model.parameters()]
        try:
            for p, data in kept:
                p.data = data * 0.5
            yield
        finally:
            for p, data in kept:
                p.data = data


class Sees:
    """A callback that notes the first parameter and the mode of the model it validates."""

    def __init__(self) -> None:
        self.first: list[torch.Tensor] = []
        self.pointers: list[int] = []
        self.training: list[bool] = []

    @hookimpl
    def on_batch_end(self, model: nn.Module) -> None:
        first = next(model.parameters())
        self.first.append(first.detach().clone())
        self.pointers.append(first.data_ptr())
        self.training.append(any(m.training for m in model.modules()))


@plugin(stage="checkpoint")
class Saves:
    """Notes the first parameter wherever a checkpoint would be written."""

    def __init__(self) -> None:
        self.saved: dict[str, list[torch.Tensor]] = {"step": [], "epoch": [], "loop": []}

    def _note(self, ctx: Context, when: str) -> None:
        assert ctx.weights.current == "raw"
        self.saved[when].append(next(ctx.model.parameters()).detach().clone())

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        self._note(ctx, "step")

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        self._note(ctx, "epoch")

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        self._note(ctx, "loop")


def shuffled(seed: int = 3) -> DataLoader[Any]:
    """A loader that draws from torch's global generator."""
    inputs = torch.randn(10, 3, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 4, shuffle=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"val_interval": 1, "interval_by": "step"}, {"val_interval": 3, "interval_by": "step"}],
    ids=["every epoch", "every step", "every 3 steps"],
)
def test_final_weights_are_bitwise_those_of_a_run_without_validation(
    options: dict[str, Any],
) -> None:
    without = trainer()
    without.fit(num_epochs=3)
    draws = Draws()
    with_it = trainer(Validation(shuffled(), callbacks=[draws], **options))
    with_it.fit(num_epochs=3)
    assert draws.batches >= 9
    assert same(weights(with_it), weights(without))


@plugin(stage="checkpoint")
class Snapshots:
    """The smallest checkpoint there is: everything a run is made of, in memory."""

    def __init__(self, kept: dict[str, Any] | None = None) -> None:
        self.kept = kept

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        if self.kept is None:
            return
        kept = copy.deepcopy(self.kept)
        ctx.bus.load_state_dict(kept["plugins"])
        ctx.model.load_state_dict(kept["model"])
        ctx.optimizer.load_state_dict(kept["optimizer"])  # type: ignore[union-attr]
        ctx.position.epoch, ctx.position.step, ctx.position.global_step = kept["position"]
        restore(kept["random"])

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        if ctx.exception is None:
            state = {
                "plugins": ctx.bus.state_dict(),
                "model": ctx.model.state_dict(),
                "optimizer": ctx.optimizer.state_dict(),  # type: ignore[union-attr]
                "position": (ctx.position.epoch, ctx.position.step, ctx.position.global_step),
                "random": capture(),
            }
            self.kept = copy.deepcopy(state)


def test_a_run_resumed_after_a_validation_raised_ends_bitwise_as_one_without_validation() -> None:
    without = trainer()
    without.fit(num_epochs=4)
    snapshots = Snapshots()
    raising = trainer(Validation(shuffled(), callbacks=[Raises(5)]), snapshots)
    with pytest.raises(RuntimeError, match="midway"):
        raising.fit(num_epochs=4)
    assert raising.ctx.position.global_step == 10
    resumed = trainer(Validation(shuffled(), callbacks=[Draws()]), Snapshots(snapshots.kept))
    resumed.fit(num_epochs=4)
    assert same(weights(resumed), weights(without))


def test_the_average_is_validated_and_raw_weights_are_there_at_every_save() -> None:
    sees, saves = Sees(), Saves()
    validation = Validation(batches(1), callbacks=[sees], val_interval=1, interval_by="step")
    run = trainer(Average(), validation, saves)
    run.fit(num_epochs=1)
    assert len(sees.first) == len(saves.saved["step"]) == 5
    for shown, saved in zip(sees.first, saves.saved["step"], strict=True):
        assert torch.equal(shown, saved * 0.5)
    raw = next(run.ctx.model.parameters())
    assert torch.equal(saves.saved["epoch"][0], raw)
    assert torch.equal(saves.saved["loop"][0], raw)


def test_raw_weights_are_validated_when_they_are_asked_for_or_there_is_no_average() -> None:
    for plugins, wanted in (([Average()], "raw"), ([], None)):
        sees, saves = Sees(), Saves()
        validation = Validation(batches(1), callbacks=[sees], weights=wanted)
        trainer(*plugins, validation, saves).fit(num_epochs=1)
        assert torch.equal(sees.first[0], saves.saved["epoch"][0])


def test_an_unknown_view_is_refused_before_training() -> None:
    run = trainer(Average(), Validation(batches(1), weights="emma"))
    with pytest.raises(PluginError, match="no weights 'emma' in this run; did you mean 'ema'"):
        run.fit(num_epochs=1)
    assert run.ctx.position.global_step == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_modes_gradients_and_random_state_are_back_after_a_validation_that_fails(
    error: type[BaseException],
) -> None:
    sees = Sees()
    validation = Validation(shuffled(), callbacks=[sees, Draws(), Raises(2, error)])
    run = trainer(Average(), validation)
    run.ctx.model.body[1].eval()
    before: dict[str, Any] = {}

    @plugin(stage="monitor")
    class Notes:
        @hookimpl
        def on_epoch_begin(self, model: nn.Module) -> None:
            model.body[1].eval()

        @hookimpl
        def on_validation_begin(self, model: nn.Module) -> None:
            before["weights"] = weights(run)
            before["grads"] = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
            before["modes"] = [m.training for m in model.modules()]
            before["random"] = capture()

    run.bus.register(Notes(), "notes")
    with pytest.raises(error):
        run.fit(num_epochs=1)
    assert sees.training == [False, False]
    model = run.ctx.model
    assert run.ctx.weights.current == "raw"
    assert same(weights(run), before["weights"])
    assert [m.training for m in model.modules()] == before["modes"]
    assert before["modes"].count(False) == 1
    for p, grad in zip(model.parameters(), before["grads"], strict=True):
        assert torch.equal(p.grad, grad)
    assert torch.equal(capture()["torch"], before["random"]["torch"])
    assert capture()["python"] == before["random"]["python"]
    assert str(capture()["numpy"]) == str(before["random"]["numpy"])


def test_no_copy_of_the_model_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a copy was made")

    sees = Sees()
    run = trainer(Validation(batches(1), callbacks=[sees]))
    monkeypatch.setattr(copy, "deepcopy", refuse)
    run.fit(num_epochs=1)
    assert sees.pointers == [next(run.ctx.model.parameters()).data_ptr()]


def test_without_callbacks_the_mean_loss_over_all_samples_is_published() -> None:
    data = [*batches(3), *batches(1, size=1, seed=7)]
    run = trainer(Validation(data))
    run.fit(num_epochs=1)
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(mean_loss(run.ctx.model, data))


def test_metrics_reach_sinks_before_the_end_event_and_validate_returns_them() -> None:
    heard: list[Any] = []

    class Sink:
        @hookimpl
        def on_log(self, logs: dict[str, Any], kind: str, ctx: Context) -> None:
            heard.append((sorted(logs), kind, ctx.weights.current))

        @hookimpl
        def on_validation_begin(self) -> None:
            heard.append("begin")

        @hookimpl
        def on_validation_end(self, ctx: Context) -> None:
            heard.append(("end", float(ctx.latest["val/loss"])))

    run = trainer(Validation(batches(2)), Sink(), Average())
    run.fit(num_epochs=1)
    assert heard[:2] == ["begin", (["val/loss"], "scalar", "raw")]
    assert heard[2][0] == "end"
    found = run.ctx.emit.validate(run.ctx, "by hand")
    assert list(found) == ["val/loss"]
    assert float(found["val/loss"]) == heard[2][1]


def test_images_and_names_of_training_are_published_as_their_kind_under_val() -> None:
    class Logs:
        @hookimpl
        def on_epoch_end(self, ctx: Context) -> None:
            ctx.log({"train/seen": torch.zeros(2, 2)}, "image")
            ctx.log({"val/score": 1.5})

    kinds: dict[str, list[str]] = {}

    class Sink:
        @hookimpl
        def on_log(self, logs: dict[str, Any], kind: str) -> None:
            kinds.setdefault(kind, []).extend(logs)

    trainer(Validation(batches(1), callbacks=[Logs()]), Sink()).fit(num_epochs=1)
    assert kinds == {"image": ["val/seen"], "scalar": ["val/score"]}


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"det": nn.Linear(3, 1), "seg": nn.Linear(3, 1)})

    def forward(self, inputs: torch.Tensor, task: str) -> torch.Tensor:
        return self.heads[task](inputs)


class Batches:
    """Notes the task and the inputs of every batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[str | None, torch.Tensor]] = []
        self.steps: list[tuple[int, int, int]] = []

    @hookimpl
    def on_batch_end(self, task: str | None, batch: Any) -> None:
        self.seen.append((task, batch[0]))

    @hookimpl
    def on_step_end(self, epoch_id: int, step_id: int, global_step_id: int) -> None:
        self.steps.append((epoch_id, step_id, global_step_id))


def test_every_sample_of_every_task_is_seen_once_and_losses_are_told_apart() -> None:
    seen = Batches()
    data = {"det": batches(4), "seg": batches(2, seed=1)}
    val = {"det": batches(1, seed=2), "seg": batches(3, seed=3)}
    bound = {"type": Batches, "tasks": ["seg"]}
    validation = Validation(val, callbacks=[seen, bound, {"type": Batches}])
    run = trainer(validation, data=data, model=Heads())
    run.fit(num_epochs=2)
    expected = [("det", val["det"][0][0]), *(("seg", x) for x, _ in val["seg"])]
    assert len(seen.seen) == 8
    for (task, inputs), (t, x) in zip(seen.seen[:4], expected, strict=True):
        assert task == t
        assert torch.equal(inputs, x)
    assert seen.steps[:4] == [(0, 0, 0), (0, 1, 1), (0, 2, 2), (0, 3, 3)]
    only_seg = validation.callbacks[0][1].callback
    assert [task for task, _ in only_seg.seen] == ["seg"] * 6  # type: ignore[attr-defined]


def test_per_task_losses_are_published_by_task() -> None:
    data = {"det": batches(4), "seg": batches(2, seed=1)}
    run = trainer(Validation(data), data=data, model=Heads())
    run.fit(num_epochs=1)
    for task, batches_of_task in data.items():
        by_hand = mean_loss(run.ctx.model.heads[task], batches_of_task)
        assert float(run.ctx.latest[f"val/{task}/loss"]) == pytest.approx(by_hand)


def test_several_loaders_are_told_apart_by_name() -> None:
    clean, noisy = batches(1), batches(2, seed=5)
    run = trainer(Validation({"clean": clean, "noisy": noisy}))
    run.fit(num_epochs=1)
    model = run.ctx.model
    assert float(run.ctx.latest["val/clean/loss"]) == pytest.approx(mean_loss(model, clean))
    assert float(run.ctx.latest["val/noisy/loss"]) == pytest.approx(mean_loss(model, noisy))
    run = trainer(Validation([shuffled(1), shuffled(2)]))
    run.fit(num_epochs=1)
    assert set(run.ctx.latest) == {"val/0/loss", "val/1/loss"}


def test_unshared_callbacks_belong_to_one_loader_each() -> None:
    first, second = Draws(), Draws()
    loaders = {"a": batches(1), "b": batches(3)}
    callbacks = [[first], [second]]
    run = trainer(Validation(loaders, callbacks=callbacks, share_callbacks=False))
    run.fit(num_epochs=1)
    assert (first.batches, second.batches) == (1, 3)
    shared = Draws()
    trainer(Validation(loaders, callbacks=[shared])).fit(num_epochs=1)
    assert shared.batches == 4


def test_wrong_loaders_and_callbacks_are_refused_in_words() -> None:
    with pytest.raises(PluginError, match="a list of callbacks per loader"):
        Validation(batches(1), callbacks=[Draws()], share_callbacks=False)
    few = Validation([shuffled(1), shuffled(2)], callbacks=[[Draws()]], share_callbacks=False)
    with pytest.raises(PluginError, match="1 lists of callbacks for 2 loaders"):
        trainer(few).fit(num_epochs=1)
    data = {"det": batches(1), "seg": batches(1)}
    mixed = Validation({"det": batches(1), "other": batches(1)})
    with pytest.raises(PluginError, match=r"mixes tasks \('det'\) with other names \('other'\)"):
        trainer(mixed, data=data, model=Heads()).fit(num_epochs=1)
    for empty in ([], {}):
        with pytest.raises(PluginError, match="data_loader is empty"):
            trainer(Validation(empty)).fit(num_epochs=1)


def test_an_empty_loader_is_an_error_that_names_it() -> None:
    class Nothing:
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    with pytest.raises(DataError, match="the validation loader 'b' gave no batch"):
        trainer(Validation({"a": batches(1), "b": Nothing()})).fit(num_epochs=1)


class Reasons:
    """Notes every validation: its reason and the steps behind it."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, int]] = []

    @hookimpl(wrapper=True)
    def validate(self, ctx: Context, reason: str) -> Any:
        self.noted.append((reason, ctx.position.global_step))
        return (yield)


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        ({}, 2, [("every epoch", 5), ("every epoch", 10)]),
        ({"val_interval": 2}, 3, [("every 2 epochs", 10), ("end of the run", 15)]),
        (
            {"val_interval": 4, "interval_by": "step"},
            2,
            [("every 4 steps", 4), ("every 4 steps", 8), ("end of the run", 10)],
        ),
        ({"val_interval": 5, "interval_by": "step"}, 1, [("every 5 steps", 5)]),
        ({"val_interval": 2, "val_on_train_end": False}, 3, [("every 2 epochs", 10)]),
        ({"val_interval": None}, 2, [("end of the run", 10)]),
        ({"callbacks": []}, 2, []),
    ],
)
def test_it_validates_at_its_interval_and_once_at_the_end(
    options: dict[str, Any], epochs: int, expected: list[tuple[str, int]]
) -> None:
    reasons = Reasons()
    trainer(Validation(batches(1), **options), reasons).fit(num_epochs=epochs)
    assert reasons.noted == expected


def test_an_epoch_cut_short_is_not_validated_but_the_end_of_the_run_is() -> None:
    reasons = Reasons()
    trainer(Validation(batches(1)), reasons).fit(num_steps=7)
    assert reasons.noted == [("every epoch", 5), ("end of the run", 7)]


def test_a_run_that_failed_is_not_validated() -> None:
    class Fails:
        @hookimpl
        def on_step_begin(self, step_id: int) -> None:
            if step_id == 3:
                raise RuntimeError

    reasons = Reasons()
    with pytest.raises(RuntimeError):
        trainer(Validation(batches(1), val_interval=4, interval_by="step"), Fails(), reasons).fit(1)
    assert reasons.noted == []


def test_an_empty_list_of_callbacks_never_touches_the_loader() -> None:
    class Untouchable:
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError

    run = trainer(Validation(Untouchable(), callbacks=[]))
    run.fit(num_epochs=1)
    assert run.ctx.emit.validate(run.ctx, "by hand") is False


def test_a_request_for_validation_is_served_at_the_step_boundary() -> None:
    class Asks:
        @hookimpl
        def on_step_end(self, ctx: Context, global_step_id: int) -> None:
            if global_step_id == 1:
                ctx.control.validate("curious")

    reasons = Reasons()
    trainer(Validation(batches(1), val_on_train_end=False), Asks(), reasons).fit(num_steps=3)
    assert reasons.noted == [("curious", 2)]


def test_requests_made_inside_reach_the_training_and_saving_waits_for_raw_weights() -> None:
    saved: list[tuple[str, str]] = []

    class Saver:
        @hookimpl
        def save_checkpoint(self, ctx: Context, reason: str) -> bool:
            saved.append((reason, ctx.weights.current))
            return True

    class Asks(CallbackMixin):
        def on_epoch_end(self, ctx: Context, **kwargs: Any) -> None:
            ctx.control.stop("run", "enough")
            assert ctx.save("best so far") is False

    run = trainer(Average(), Saver(), Validation(batches(1), callbacks=[Asks()]))
    run.fit(num_epochs=9)
    assert run.ctx.position.epoch == 1
    assert saved == [("best so far", "raw")]


def test_a_processor_of_its_own_is_used_and_one_with_gradients_refused() -> None:
    run = trainer(
        Validation(batches(2), BatchProcessor(nn.functional.l1_loss, need_grad_update=False))
    )
    run.fit(num_epochs=1)
    assert run.ctx.latest["val/loss"] != pytest.approx(mean_loss(run.ctx.model, batches(2)))
    run = trainer(Validation(batches(2), {"loss": nn.functional.mse_loss}))
    run.fit(num_epochs=1)
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(mean_loss(run.ctx.model, batches(2)))
    wrong = trainer(Validation(batches(1), BatchProcessor(nn.functional.l1_loss)))
    with pytest.raises(PluginError, match="need_grad_update=False"):
        wrong.fit(num_epochs=1)


def test_a_validation_model_gets_the_shown_weights_and_differences_are_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Wider(Net):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(2, 2)

    sees, saves, wider = Sees(), Saves(), Wider()
    validation = Validation(batches(1), callbacks=[sees], val_model=wider)
    with caplog.at_level(logging.WARNING, "hatbus"):
        trainer(Average(), validation, saves).fit(num_epochs=2)
    assert torch.equal(sees.first[1], saves.saved["epoch"][1] * 0.5)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1
    assert "2 not in the trained model (extra.weight, extra.bias)" in said[0]
    strict = trainer(Validation(batches(1), val_model=Wider, strict_match=True))
    with pytest.raises(PluginError, match=r"extra\.weight"):
        strict.fit(num_epochs=1)


def test_a_validation_model_that_is_not_initialised_keeps_its_weights() -> None:
    sees, own = Sees(), Net()
    kept = next(own.parameters()).detach().clone()
    validation = Validation(
        batches(1), callbacks=[sees], val_model=own, init_with_train_model=False
    )
    trainer(validation).fit(num_epochs=1)
    assert torch.equal(sees.first[0], kept)
    with pytest.raises(PluginError, match="val_model is 'net'; accepted: a model"):
        Validation(batches(1), val_model="net")  # type: ignore[arg-type]


def test_converters_are_applied_in_order_to_a_copy() -> None:
    def doubled(model: nn.Module) -> nn.Module:
        for p in model.parameters():
            p.data.mul_(2)
        return model

    def plus_one(model: nn.Module) -> None:
        for p in model.parameters():
            p.data.add_(1)

    sees, saves = Sees(), Saves()
    validation = Validation(
        batches(1), callbacks=[sees], model_convert_pipeline=[doubled, plus_one]
    )
    trainer(Average(), validation, saves).fit(num_epochs=1)
    assert torch.equal(sees.first[0], saves.saved["epoch"][0] * 0.5 * 2 + 1)
    assert torch.equal(saves.saved["loop"][0], saves.saved["epoch"][0])
    with pytest.raises(PluginError, match="model_convert_pipeline holds 3; accepted: callables"):
        Validation(batches(1), model_convert_pipeline=[3])  # type: ignore[list-item]
    with pytest.raises(PluginError, match="returned int; accepted: a model"):
        trainer(Validation(batches(1), model_convert_pipeline=lambda m: 1)).fit(num_epochs=1)


def test_precision_of_the_training_holds_in_validation_too() -> None:
    seen: list[torch.dtype] = []

    class Dtype:
        @hookimpl
        def on_forward_end(self, model_outs: torch.Tensor) -> None:
            seen.append(model_outs.dtype)

    run = trainer(Validation(batches(1), callbacks=[Dtype()]), precision="bf16")
    run.fit(num_epochs=1)
    assert seen == [torch.bfloat16]


def test_the_profiler_writes_a_trace_that_perfetto_can_read(tmp_path: Path) -> None:
    options = {"wait": 0, "warmup": 1, "active": 2, "activities": ["cpu"]}
    run = trainer(Validation(batches(6), profiler=options), run_dir=tmp_path)
    run.fit(num_epochs=2)
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name.endswith(".pt.trace.json")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::mse_loss" in names
    with pytest.raises(PluginError, match="unknown profiler option 'warm_up'; did you mean"):
        Validation(batches(1), profiler={"warm_up": 1})
    with pytest.raises(PluginError, match="unknown profiler activity 'gpu'"):
        Validation(batches(1), profiler={"activities": ["gpu"]})


def test_a_signal_cuts_a_validation_short_and_the_resumed_run_makes_up_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Cuts:
        """A signal comes during the second validation."""

        left = 4

        @hookimpl
        def on_batch_end(self) -> None:
            self.left -= 1
            if self.left == 0:
                monkeypatch.setattr("hatbus_validation.inner_run.stop_wanted", lambda: True)
                monkeypatch.setattr("hatbus_validation.validation.stop_wanted", lambda: True)

    class Published:
        def __init__(self) -> None:
            self.values: list[tuple[int, int, float]] = []

        @hookimpl
        def on_log(self, ctx: Context, logs: dict[str, Any]) -> None:
            self.values.append((ctx.epoch_id, ctx.global_step_id, float(logs["val/loss"])))

    def watched(*plugins: object) -> tuple[Trainer, Published]:
        published = Published()
        run = trainer(*plugins, published)
        run.fit(num_epochs=3)
        return run, published

    def validation(*callbacks: object) -> Validation:
        return Validation(batches(3), callbacks=[{"type": MeanLosses}, *callbacks])

    whole, expected = watched(validation())
    snapshots = Snapshots()
    cut, before = watched(validation(Cuts()), snapshots)
    assert cut.ctx.position.global_step == 10
    monkeypatch.undo()
    resumed, after = watched(validation(), Snapshots(snapshots.kept))
    assert before.values + after.values == expected.values
    assert [epoch for epoch, _, _ in after.values] == [1, 2]
    assert same(weights(resumed), weights(whole))


def test_a_progress_bar_is_told_every_step() -> None:
    shown: list[tuple[str, int, int | None]] = []

    class Bar:
        @hookimpl
        def on_loop_begin(self, ctx: Context) -> None:
            ctx.storage["progress"] = lambda *values: shown.append(values)

    trainer(Validation({"a": batches(2), "b": batches(1)}), Bar()).fit(num_epochs=1)
    assert shown == [
        ("validation of 'a'", 1, 2),
        ("validation of 'a'", 2, 2),
        ("validation of 'b'", 1, 1),
    ]


def test_lines_are_logged_every_log_interval(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hatbus"):
        trainer(Validation(batches(5), log_interval=2)).fit(num_epochs=1)
    said = [r.getMessage() for r in caplog.records]
    assert [line[:25] for line in said[:2]] == [
        "validation: step 2 of 5, ",
        "validation: step 4 of 5, ",
    ]
    assert said[2].startswith("validation (every epoch), step 4: val/loss 1.")


def test_callbacks_may_be_tables_with_filters_and_two_of_one_class() -> None:
    validation = Validation(
        batches(4), callbacks=[{"type": Batches, "every": "2 steps"}, {"type": Batches}]
    )
    trainer(validation).fit(num_epochs=1)
    (one, other) = validation.callbacks[0]
    assert (one.name, other.name) == ("batches", "batches_2")
    assert (len(one.callback.seen), len(other.callback.seen)) == (2, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"type": Raises, "att": 1}, "unknown option 'att'; did you mean 'at'"),
        ({"type": Raises}, "missing option 'at'"),
        ({"metrics": []}, "names no plugin in 'use'"),
        ({"use": "metric_updatr"}, "unknown plugin 'metric_updatr'"),
    ],
)
def test_wrong_tables_are_refused_in_words(table: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Validation(batches(1), callbacks=[table])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_interval": 0}, "val_interval=0; accepted: 1 or more"),
        ({"log_interval": -1}, "log_interval=-1; accepted: 1 or more"),
        ({"interval_by": "steps"}, "interval_by='steps'; did you mean 'step'"),
    ],
)
def test_wrong_options_are_refused_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Validation(batches(1), **options)


def test_a_batch_that_is_no_pair_is_refused_as_in_training() -> None:
    with pytest.raises(JobError, match="not a pair"):
        trainer(Validation([torch.zeros(4, 3)])).fit(num_epochs=1)


def test_metric_updater_and_ema_of_their_own_distributions_work_inside() -> None:
    monitor = pytest.importorskip("hatbus_monitor.metric_updater")
    ema = pytest.importorskip("hatbus_model.ema")

    def add(metrics: Any, losses: dict[str, torch.Tensor]) -> None:
        metrics[0].update(losses["loss"], 4)

    def update(metrics: Any, batch: Any, model_outs: Any, losses: Any) -> None:
        add(metrics, losses)

    table = {
        "type": monitor.MetricUpdater,
        "metric_update_func": update,
        "metrics": ["loss"],
        "step_log_freq": 0,
    }
    data, saves = batches(3, seed=4), Saves()
    average = ema.ExponentialMovingAverage(decay=0.9, decay_base=2)
    run = trainer(average, Validation(data, callbacks=[table]), saves)
    run.fit(num_epochs=2)
    assert float(run.ctx.latest["val/loss"]) != pytest.approx(mean_loss(run.ctx.model, data))
    with run.ctx.weights.showing("ema"):
        expected = mean_loss(run.ctx.model, data)
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(expected)
    assert torch.equal(saves.saved["loop"][0], next(run.ctx.model.parameters()))
