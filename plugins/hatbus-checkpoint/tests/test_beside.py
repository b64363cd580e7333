"""What stands beside the model, such as a loss with weights of its own, is saved and resumed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.errors import CheckpointError
from hatbus_checkpoint import Checkpoint
from hatbus_checkpoint.folder import CheckpointFolder

sys.path.insert(0, str(Path(__file__).parent))
from killing import Kills, killed
from small import DATA

sys.path.pop(0)


class Weighed(nn.Module):
    """A learned weight, a running buffer, and something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.log_var = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.note = 0

    def forward(self, outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.seen += outs.detach().mean()
        self.note += 1
        return torch.exp(-self.log_var) * (outs - target).square().mean() + self.log_var

    def get_extra_state(self) -> int:
        return self.note

    def set_extra_state(self, state: int) -> None:
        self.note = state


def run(
    path: Path, *plugins: object, loss: Any = None, critic: nn.Module | None = None, **options: Any
) -> Trainer:
    """Eight steps at most of a linear model, whose loss and critic are trained too."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    loss = loss or Weighed()
    modules = {} if critic is None else {"critic": critic}
    own = [*loss.parameters()] if isinstance(loss, nn.Module) else []
    more = [] if critic is None else [*critic.parameters()]
    optimizer = torch.optim.Adam([*model.parameters(), *own, *more], lr=0.05)
    checkpoint = Checkpoint(str(path), interval_by="step", **options)
    return Trainer(model, optimizer, DATA, loss, [checkpoint, *plugins], modules=modules)


def test_a_resumed_run_has_the_loss_that_the_whole_one_has(tmp_path: Path) -> None:
    whole, second = Weighed(), Weighed()
    ctx = run(tmp_path / "whole", loss=whole).fit(num_steps=8)
    first = run(tmp_path / "parts", Kills(4), save_interval=3)
    killed(lambda: first.fit(num_steps=8))
    trainer = run(tmp_path / "parts", loss=second, resume="auto")
    resumed = trainer.fit(num_steps=8)
    assert torch.equal(resumed.model.weight, ctx.model.weight)
    assert (second.log_var, second.seen, second.note) == (whole.log_var, whole.seen, 8)
    momentum = [
        o.state[w.log_var]["exp_avg"]
        for o, w in ((resumed.optimizer, second), (ctx.optimizer, whole))
    ]
    assert momentum[0] == momentum[1] != 0


def test_what_is_named_is_saved_beside_the_model_and_weights_for_others_are_the_models(
    tmp_path: Path,
) -> None:
    critic = nn.Linear(1, 1)
    run(tmp_path, critic=critic, weights_only_export=True).fit(num_steps=1)
    (entry,) = CheckpointFolder(tmp_path).entries()
    beside = load_file(entry.path / "beside.safetensors")
    assert sorted(beside) == ["critic.bias", "critic.weight", "loss.log_var", "loss.seen"]
    assert sorted(load_file(entry.path / "model.safetensors")) == ["bias", "weight"]
    assert sorted(load_file(tmp_path / "weights-last.safetensors")) == ["bias", "weight"]


def test_a_run_without_anything_beside_the_model_has_no_file_for_it(tmp_path: Path) -> None:
    run(tmp_path, loss=nn.MSELoss()).fit(num_steps=1)
    (entry,) = CheckpointFolder(tmp_path).entries()
    assert not any(name.startswith("beside") for name in entry.manifest["files"])


class Older:
    """Saves as an older version did: the loss is not known of."""

    @hookimpl
    def on_loop_begin(self, ctx: Any) -> None:
        ctx.modules = {}


def test_an_older_checkpoint_gives_the_optimizer_its_state_and_leaves_the_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, Older()).fit(num_steps=2)
    assert "loss.log_var" not in caplog.text
    loss = Weighed()
    ctx = run(tmp_path, loss=loss, resume="auto").fit(num_steps=2)
    assert "the checkpoint holds nothing of what stands beside the model" in caplog.text
    assert "missing     loss.log_var  ()" in caplog.text
    assert (loss.log_var, ctx.optimizer.state[loss.log_var]["step"]) == (0, 2)  # type: ignore[union-attr]  # it has one
    with pytest.raises(CheckpointError, match="the checkpoint holds nothing of what stands beside"):
        run(tmp_path, resume="auto", strict_match=True).fit(num_steps=3)


def test_another_shape_beside_the_model_is_refused_with_a_table(tmp_path: Path) -> None:
    run(tmp_path, critic=nn.Linear(1, 1)).fit(num_steps=1)
    message = r"what stands beside the model is not the one that was saved\n  reshaped    critic.w"
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path, critic=nn.Linear(2, 1), resume="auto").fit(num_steps=2)
