"""A run with any of torch's optimizers, or one of your own, goes on bit for bit, and again."""

from __future__ import annotations

import logging
import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from optimizers import Closure, Sparse, matrices, trial
from small import DATA

sys.path.pop(0)

from hatbus import Trainer, hookimpl, plugin
from hatbus.errors import CheckpointError
from hatbus_checkpoint import Checkpoint
from hatbus_checkpoint.as_built import is_same

O = torch.optim  # noqa: E741 - as short as it is often
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "Adam": [{}, {"amsgrad": True}, {"fused": True}, {"lr": torch.tensor(0.01)}],
    "AdamW": [{"foreach": True}, {"capturable": False, "lr": torch.tensor(0.01), "fused": True}],
    "SGD": [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "nesterov": True}],
    "RMSprop": [{"centered": True, "momentum": 0.9}],
    "NAdam": [{"decoupled_weight_decay": True}],
    "ASGD": [{"t0": 3}],
}
EXTRA = {"LBFGS": [Closure()], "SparseAdam": [Sparse()]}
NAMES = sorted(
    name
    for name, cls in vars(O).items()
    if isinstance(cls, type) and issubclass(cls, O.Optimizer) and cls is not O.Optimizer
)
CASES = [(name, options) for name in NAMES for options in OPTIONS.get(name, [{}])]


def test_torch_has_the_optimizers_that_are_tried() -> None:
    assert len(NAMES) >= 13
    assert OPTIONS.keys() | EXTRA.keys() <= set(NAMES)


@pytest.mark.filterwarnings("ignore:.*beta.*is deprecated:UserWarning")
@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda one: str(one)[:40])
def test_every_optimizer_of_torch_goes_on_twice(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    def make(model: nn.Module) -> Any:
        mine = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        return getattr(O, name)(list(model.parameters()), **mine)

    model = {"model": matrices} if name == "Muon" else {}
    trial(tmp_path, make, *EXTRA.get(name, []), **model)


class Lion(O.Optimizer):
    """An optimizer of somebody's own: only ``lr`` among its defaults, and a text in its state."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["mean"], state["kind"] = torch.zeros_like(parameter).double(), "sign"
                    state["last"] = deque(maxlen=2)
                state["last"].append(parameter.grad.double())
                state["mean"].lerp_(parameter.grad.double(), 0.1)
                parameter.sub_(state["mean"].sign().float(), alpha=group["lr"])


class Flattening(Lion):
    """Packs its state under another key, as bitsandbytes does."""

    def state_dict(self) -> Any:
        found = super().state_dict()
        packed = {k: {"packed": dict(v)} for k, v in found["state"].items()}
        return {**found, "state": packed}

    def load_state_dict(self, state_dict: Any) -> None:
        state = {k: v["packed"] for k, v in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": state})
        for held, saved in zip(self.state.values(), state.values(), strict=True):
            held |= {"mean": saved["mean"].clone(), "kind": saved["kind"], "last": saved["last"]}


class Wrapping:
    """Keeps an optimizer inside, as Lookahead of timm or pytorch-optimizer does."""

    def __init__(self, inner: O.Optimizer, *, whole: bool) -> None:
        self.inner, self.whole, self.slow = inner, whole, {}
        self.state: Any = {}

    @property
    def param_groups(self) -> Any:
        return self.inner.param_groups

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        self.inner.step()
        for number, parameter in enumerate(self.param_groups[0]["params"]):
            key = (0, number)
            slow = self.slow.setdefault(key, parameter.clone()) if self.whole else parameter
            parameter.lerp_(slow.lerp_(parameter, 0.5), 0.1)

    def state_dict(self) -> Any:
        inner = self.inner.state_dict()
        return {"slow": self.slow, "inner": inner} if self.whole else inner

    def load_state_dict(self, state: Any) -> None:
        self.inner.load_state_dict(state["inner"] if self.whole else state)
        self.slow = {k: v.clone() for k, v in state["slow"].items()} if self.whole else {}


OWN = {
    "few defaults": lambda m: Lion(m.parameters()),
    "packed state": lambda m: Flattening(m.parameters()),
    "a wrapper with torch's state": lambda m: Wrapping(O.Adam(m.parameters()), whole=False),
    "a wrapper with its own": lambda m: Wrapping(O.SGD(m.parameters(), 0.1, 0.9), whole=True),
}


@pytest.mark.parametrize("name", OWN)
def test_an_optimizer_of_ones_own_goes_on_twice(tmp_path: Path, name: str) -> None:
    trial(tmp_path, OWN[name])


def test_a_state_by_place_is_refused_for_parameters_in_another_order(tmp_path: Path) -> None:
    def run(order: int, **options: Any) -> None:
        model = nn.Linear(3, 1)
        parameters = list(model.parameters())[::order]
        optimizer: Any = Wrapping(O.Adam(parameters), whole=True)
        listed = [Checkpoint(str(tmp_path), **options)]
        Trainer(model, optimizer, DATA, nn.functional.mse_loss, listed).fit(num_epochs=2)

    run(1)
    with pytest.raises(CheckpointError, match="the state of Wrapping is by place"):
        run(-1, resume="auto")


def test_an_lr_tensor_that_is_filled_in_place_is_no_change_and_stays_a_tensor(
    tmp_path: Path,
) -> None:
    class Halves:
        @hookimpl
        def on_step_begin(self, optimizer: Any) -> None:
            optimizer.param_groups[0]["lr"].mul_(0.5)

    def run(steps: int, lr: float = 0.1, **options: Any) -> Any:
        model = nn.Linear(3, 1)
        optimizer = O.SGD(model.parameters(), lr=torch.tensor(lr))
        listed = [Halves(), Checkpoint(str(tmp_path), resume="auto", **options)]
        trainer = Trainer(model, optimizer, DATA, nn.functional.mse_loss, listed)
        return trainer.fit(num_steps=steps).optimizer.param_groups[0]["lr"]

    run(2)
    assert run(3).equal(torch.tensor(0.1 / 8))
    with pytest.raises(CheckpointError, match=r"optimizer.lr: 'tensor\(0.10*149.*float32\)' ->"):
        run(4, 0.2)
    assert run(4, 0.2, override=["optimizer.lr"]).equal(torch.tensor(0.2 / 2))


@plugin(stage="setup")
class Switch:
    """Puts SGD in the place of Adam at epoch 1, as often as a run comes there."""

    def __init__(self, *, remembers: bool) -> None:
        self.remembers, self.ctx = remembers, None

    @hookimpl
    def on_loop_begin(self, ctx: Any) -> None:
        self.ctx = ctx

    @hookimpl
    def on_epoch_begin(self, epoch_id: int) -> None:
        if epoch_id == 1 and type(self.ctx.optimizer) is O.Adam:
            self.switch()

    def switch(self) -> None:
        self.ctx.optimizer = O.SGD(self.ctx.model.parameters(), lr=0.01, momentum=0.9)

    def state_dict(self) -> dict[str, Any]:
        return {"switched": type(self.ctx.optimizer) is O.SGD}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.remembers and state["switched"]:
            self.switch()


def test_an_optimizer_that_a_plugin_puts_in_anothers_place_is_saved_and_goes_on(
    tmp_path: Path,
) -> None:
    def run(folder: str, epochs: int, *, remembers: bool = True) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        listed = [Switch(remembers=remembers), Checkpoint(str(tmp_path / folder), resume="auto")]
        trainer = Trainer(model, O.Adam(model.parameters()), DATA, nn.functional.mse_loss, listed)
        trainer.fit(num_epochs=epochs)
        return model

    whole = run("whole", 4)
    run("parts", 2)
    with pytest.raises(CheckpointError, match=r"is Adam, the checkpoint holds the state of SGD; a"):
        run("parts", 4, remembers=False)
    assert run("parts", 4).weight.equal(whole.weight)


def test_another_optimizer_that_is_asked_for_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(make: Any, **options: Any) -> Any:
        model = nn.Linear(3, 1)
        listed = [Checkpoint(str(tmp_path), resume="auto", **options)]
        trainer = Trainer(model, make(model.parameters()), DATA, nn.functional.mse_loss, listed)
        return trainer.fit(num_epochs=trainer.ctx.position.epoch + 2).optimizer

    run(O.Adam)
    with pytest.raises(CheckpointError, match="--override optimizer "):
        run(O.SGD)
    with caplog.at_level(logging.WARNING, "hatbus"):
        group = run(O.SGD, override=["all"]).param_groups[0]
    assert "betas" not in group
    assert "the optimizer SGD starts anew" in caplog.text


def test_a_tensor_shown_in_an_older_way_is_the_same_setting() -> None:
    older, now = "tensor(0.1000)", "tensor(0.10000000149011612, dtype=torch.float32)"
    assert is_same(older, now)
    assert is_same({"w": [older, 1]}, {"w": [now, 1]})
    assert is_same("tensor(0.1000, device='cuda:0')", now)
    assert not is_same(older, "tensor(0.101, dtype=torch.float32)")
    assert not is_same({"w": older}, {"b": now})
    assert not is_same("tensor(x)", now)
    assert not is_same("0.1", "0.10")


def test_an_lr_tensor_that_groups_share_is_one_tensor_after_a_resume_too(tmp_path: Path) -> None:
    def run(steps: int) -> Any:
        model = nn.Linear(3, 1)
        groups = [{"params": [one]} for one in model.parameters()]
        optimizer = O.SGD(groups, lr=torch.tensor(0.1))
        checkpoint = Checkpoint(str(tmp_path), resume="auto")
        Trainer(model, optimizer, DATA, nn.functional.mse_loss, [checkpoint]).fit(num_steps=steps)
        return optimizer

    first, again = run(1), run(2)
    for optimizer in (first, again):
        one, other = optimizer.param_groups
        assert one["lr"] is other["lr"]


def test_lr_tensors_of_their_own_stay_so(tmp_path: Path) -> None:
    def run(steps: int, lrs: tuple[float, float]) -> list[float]:
        model = nn.Linear(3, 1)
        given = zip(model.parameters(), lrs, strict=True)
        groups = [{"params": [one], "lr": torch.tensor(lr)} for one, lr in given]
        optimizer = O.SGD(groups, lr=0.5)
        checkpoint = Checkpoint(str(tmp_path), resume="auto")
        Trainer(model, optimizer, DATA, nn.functional.mse_loss, [checkpoint]).fit(num_steps=steps)
        one, other = optimizer.param_groups
        assert one["lr"] is not other["lr"]
        return [float(one["lr"]), float(other["lr"])]

    run(1, (0.1, 0.1))
    assert run(2, (0.1, 0.1)) == pytest.approx([0.1, 0.1])
