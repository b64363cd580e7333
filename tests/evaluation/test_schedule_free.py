"""Schedule-free optimizers train as they are given: hatbus calls ``train()`` and ``eval()``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import batches, weights

from hatbus import Trainer, hookimpl
from hatbus.callbacks import Checkpoint, ExponentialMovingAverage, Validation
from hatbus.cli import main


class ScheduleFreeSGD(torch.optim.Optimizer):
    """Schedule-free SGD after the paper, strict: in eval mode at first and after every load."""

    def __init__(self, parameters: Any, lr: float = 0.05, beta: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "beta": beta, "count": 0})
        self.is_training = False

    def train(self) -> None:
        if not self.is_training:
            self._move(lambda beta: 1 - beta)
        self.is_training = True

    def eval(self) -> None:
        if self.is_training:
            self._move(lambda beta: 1 - 1 / beta)
        self.is_training = False

    @torch.no_grad()
    def _move(self, weight: Callable[[float], float]) -> None:
        for group in self.param_groups:
            for one in group["params"]:
                if self.state[one]:
                    one.lerp_(self.state[one]["z"], weight(group["beta"]))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if not self.is_training:
            raise RuntimeError("not in train mode")
        for group in self.param_groups:
            group["count"] += 1
            for y in group["params"]:
                z = self.state[y].setdefault("z", y.clone())
                y.lerp_(z, 1 - 1 / group["beta"])  # x
                z.sub_(y.grad, alpha=group["lr"])
                y.lerp_(z, 1 / group["count"])
                y.lerp_(z, 1 - group["beta"])

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state)
        self.is_training = False


TRAIN = f"""
import torch
from typing import Any, Callable
from hatbus.data import loader

{inspect.getsource(ScheduleFreeSGD)}
def build():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    inputs = torch.randn(16, 3)
    data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
    return {{
        "model": model,
        "optimizer": ScheduleFreeSGD(model.parameters()),
        "data": loader(data, 4),
        "val_loader": loader(data, 8, shuffle=False),
        "loss": torch.nn.functional.mse_loss,
    }}
"""
JOB = """
[run]
entry = "train.py:build"
num_epochs = 2
[plugins.validation]
data_loader = "@val_loader"
[plugins.checkpoint]
save_dir = "saved"
"""


class Stop(Exception):  # noqa: N818 - no error
    """Ends a run as a crash would."""


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def on_step_begin(self, global_step_id: int) -> None:
        if global_step_id == self.step:
            raise Stop


class Another(ScheduleFreeSGD):
    """Of the same kind, under another name."""


def trainer(plugins: Any = (), kind: Any = ScheduleFreeSGD, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    loss = torch.nn.functional.mse_loss
    return Trainer(model, kind(model.parameters()), batches(3), loss, plugins, **options)


def by_hand(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What such an optimizer trains and what it shows, as everybody would write it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer, data = ScheduleFreeSGD(model.parameters()), batches(3)
    optimizer.train()
    for step in range(steps):
        inputs, target = data[step % 3]
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()
    trained = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer.eval()
    return trained, torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def vector(model: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def files_of(folder: Path, step: int) -> dict[str, str]:
    """The hashes of what the checkpoint of a step holds."""
    (path,) = folder.glob(f"checkpoint-step-{step}-*/MANIFEST.json")
    files = json.loads(path.read_text())["files"]
    return {name: file["sha256"] for name, file in files.items()}


class Looks:
    """Writes down the weights where they are looked at."""

    def __init__(self) -> None:
        self.trained: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []
        self.exported: list[torch.Tensor] = []

    @hookimpl
    def on_step_end(self, model: torch.nn.Module) -> None:
        self.trained.append(vector(model))

    @hookimpl
    def validate(self, ctx: Any) -> bool:
        self.validated.append(vector(ctx.model))
        return True

    @hookimpl
    def export_model(self, ctx: Any) -> str:
        self.exported.append(vector(ctx.model))
        return "a path"

    @hookimpl
    def on_epoch_end(self, ctx: Any) -> None:
        ctx.emit.validate(ctx, "a test")
        ctx.emit.export_model(ctx, "a test")
        with ctx.weights.showing("schedule_free"):
            assert vector(ctx.model).equal(self.validated[-1])


def test_training_is_that_of_a_loop_by_hand_and_what_is_looked_at_is_the_average() -> None:
    looks = Looks()
    found = trainer([looks])
    found.fit(num_epochs=3)
    assert [one.equal(by_hand(n + 1)[0]) for n, one in enumerate(looks.trained)] == [True] * 9
    averages = [by_hand(n)[1] for n in (3, 6, 9)]
    assert all(map(torch.equal, looks.validated, averages))
    assert all(map(torch.equal, looks.exported, averages))
    assert not averages[0].equal(by_hand(3)[0])
    assert weights(found).equal(averages[-1])  # whoever has the model now has the result


def test_validation_publishes_the_loss_of_the_average() -> None:
    found = trainer([Validation(batches(2, seed=5))])
    loss = float(found.fit(num_epochs=2).latest["val/loss"])
    model = found.ctx.model.requires_grad_(False)
    held = [float(torch.nn.functional.mse_loss(model(x), y)) for x, y in batches(2, seed=5)]
    assert loss == pytest.approx(sum(held) / 2)
    assert found.validate()["val/loss"] == loss
    assert found.validate("schedule_free")["val/loss"] == loss
    outputs = list(found.predict(batches(1)))
    assert outputs[0].equal(found.ctx.model(batches(1)[0][0]))


@pytest.mark.parametrize("stop", [4, 5])
def test_a_stopped_run_goes_on_bit_for_bit_and_its_checkpoints_hold_the_average(
    tmp_path: Path, stop: int
) -> None:
    def plugins(folder: str) -> list[object]:
        checkpoint = Checkpoint(str(tmp_path / folder), save_interval=2, interval_by="step")
        average = ExponentialMovingAverage(decay=0.5, decay_base=0)
        return [Validation(batches(1, seed=5)), average, checkpoint]

    whole = trainer(plugins("whole"), resume="auto")
    whole.fit(num_epochs=3)
    with pytest.raises(Stop):
        trainer([*plugins("parts"), StopAt(stop)], resume="auto").fit(num_epochs=3)
    parts = trainer(plugins("parts"), resume="auto")
    parts.fit(num_epochs=3)
    assert weights(parts).equal(weights(whole))
    assert weights(parts).equal(by_hand(9)[1])
    for folder in ("whole", "parts"):
        (saved,) = (tmp_path / folder).glob("checkpoint-step-4-*/model.safetensors")
        held = load_file(saved)
        average = torch.cat([held["weight"].flatten(), held["bias"]])
        assert average.equal(by_hand(4)[1])
    one, other = (files_of(tmp_path / folder, 9) for folder in ("whole", "parts"))
    assert one == other
    assert "plugins/core.schedule_free.json" in one


def test_a_second_fit_goes_on_where_the_first_ended() -> None:
    found = trainer()
    found.fit(num_steps=4)
    found.fit(num_steps=9)
    assert weights(found).equal(by_hand(9)[1])


def test_a_rehearsal_leaves_it_as_it_was() -> None:
    found = trainer()
    found.rehearse(2)
    found.fit(num_steps=4)
    found.rehearse(3)
    found.fit(num_steps=9)
    assert weights(found).equal(by_hand(9)[1])


def test_weights_that_were_changed_between_two_fits_are_trained_on() -> None:
    found, looks = trainer(), Looks()
    found.fit(num_steps=3)
    with torch.no_grad():
        found.ctx.model.weight.add_(1.0)
    changed = vector(found.ctx.model)
    found.ctx.optimizer.state.clear()
    found.bus.register(looks, "looks")
    found.fit(num_steps=4)
    assert (looks.trained[0] - changed).abs().max() < 0.5


def test_an_optimizer_that_begins_anew_trains_what_the_checkpoint_shows(tmp_path: Path) -> None:
    trainer([Checkpoint(str(tmp_path))]).fit(num_steps=3)
    looks = Looks()
    checkpoint = Checkpoint(str(tmp_path), resume="auto", override=["optimizer"])
    trainer([checkpoint, looks], Another).fit(num_steps=4)
    anew, average = trainer([looks]), by_hand(3)[1]
    torch.nn.utils.vector_to_parameters(average, anew.ctx.model.parameters())
    anew.fit(num_steps=1)
    assert looks.trained[0].equal(looks.trained[1])


def test_modes_that_a_plugin_of_the_users_own_sets_do_no_harm() -> None:
    class Own:
        @hookimpl
        def on_loop_begin(self, optimizer: Any) -> None:
            optimizer.train()

        @hookimpl
        def on_validation_begin(self, optimizer: Any) -> None:
            optimizer.eval()

        @hookimpl
        def on_validation_end(self, optimizer: Any) -> None:
            optimizer.train()

    found = trainer([Own(), Validation(batches(1, seed=5), val_interval=1, interval_by="step")])
    found.fit(num_epochs=3)
    assert weights(found).equal(by_hand(9)[1])


def test_a_run_that_fails_leaves_the_average() -> None:
    found = trainer([StopAt(4)])
    with pytest.raises(Stop):
        found.fit(num_epochs=3)
    assert weights(found).equal(by_hand(4)[1])


def test_evaluate_and_export_show_the_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(TRAIN)
    Path("job.toml").write_text(JOB)
    assert main(["run", "job.toml", "--quiet"]) == 0
    (manifest,) = Path("saved").glob("checkpoint-epoch-0002-*/MANIFEST.json")
    own = json.loads(manifest.read_text())["metrics"]["val/loss"]
    capsys.readouterr()
    assert main(["evaluate", "job.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["val/loss"] == own
    assert main(["export", "saved", "--single", "model.safetensors"]) == 0
    assert load_file("model.safetensors")["weight"].equal(
        load_file(manifest.with_name("model.safetensors"))["weight"]
    )


def test_an_optimizer_in_the_place_of_another_is_trained_too() -> None:
    class Switches:
        def __init__(self, *kinds: Any) -> None:
            self.kinds = kinds

        @hookimpl
        def on_epoch_begin(self, ctx: Any, epoch_id: int) -> None:
            if epoch_id:
                ctx.optimizer = self.kinds[epoch_id - 1](ctx.model.parameters())

    looks = Looks()
    found = trainer([Switches(Another, torch.optim.SGD), looks])
    found.fit(num_epochs=3)
    assert len(looks.trained) == 9
    assert weights(found).equal(looks.trained[-1])  # plain SGD shows what it trains
