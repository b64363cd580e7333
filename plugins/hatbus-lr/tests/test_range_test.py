"""``find_lr`` and ``hatbus lr-find``: a suggestion, and nothing touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hatbus import Trainer
from hatbus.cli import main
from hatbus.errors import JobError, NonFiniteError
from hatbus_lr import CosLrUpdater, LrCurve, find_lr

JOB = """
import torch
from torch import nn

def build(noise=0.0, scale=1.0):
    model = nn.Linear(4, 1, bias=False)
    inputs = torch.randn(64, 4)
    target = inputs @ torch.tensor([[1.0], [2.0], [3.0], [4.0]]) * scale
    data = [(inputs, target)] * 5
    return model, torch.optim.SGD(model.parameters(), lr=0.01), data, nn.functional.mse_loss
"""


def trainer_of(scale: float = 1.0, **options: Any) -> Trainer:
    """A quadratic bowl: by gradient descent it diverges from 2 / (greatest curvature) on."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1, bias=False)
    inputs = torch.randn(64, 4)
    target = inputs @ torch.tensor([[1.0], [2.0], [3.0], [4.0]]) * scale
    groups = options.pop("groups", None) or [{"params": [*model.parameters()], "lr": 0.01}]
    optimizer = torch.optim.SGD(groups)
    loss = torch.nn.functional.mse_loss
    return Trainer(model, optimizer, [(inputs, target)] * 5, loss, **options)


def limit_of(trainer: Trainer) -> float:
    """The rate from which on descent diverges, in closed form."""
    inputs = trainer.ctx.data_loader[0][0]
    curvature = 2 * inputs.T @ inputs / len(inputs)
    return 2 / float(torch.linalg.eigvalsh(curvature).max())


def test_the_suggestion_lies_below_where_descent_diverges() -> None:
    trainer = trainer_of()
    curve = find_lr(trainer, 1e-5, 100.0)
    limit = limit_of(trainer)
    assert curve.suggestion is not None
    assert limit / 30 < curve.suggestion < limit
    assert limit / 10 < curve.rate_of_least < limit * 3
    assert curve.rates[0] == 1e-5
    assert curve.rates[1] / curve.rates[0] == pytest.approx(1e7 ** (1 / 99))
    assert curve.rates[-1] < 100.0  # it stopped where the loss grew
    assert len(curve.rates) == len(curve.losses)


def test_the_trainer_is_as_it_was() -> None:
    def trained(*, looks: bool) -> tuple[Any, ...]:
        trainer = trainer_of(plugins=[CosLrUpdater(warmup_len=2)])
        for steps in (3, 7):
            if looks:
                find_lr(trainer, 1e-4, 10.0, 20)
            trainer.fit(num_steps=steps)
        assert trainer.ctx.optimizer is not None
        weights = trainer.ctx.model.weight.detach().clone()
        return weights, trainer.ctx.optimizer.param_groups[0]["lr"], torch.get_rng_state()

    for one, other in zip(trained(looks=False), trained(looks=True), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_the_first_loss_is_that_of_the_trainers_own_weights() -> None:
    trainer = trainer_of()
    inputs, target = trainer.ctx.data_loader[0]
    loss = torch.nn.functional.mse_loss(trainer.ctx.model(inputs), target)
    assert find_lr(trainer).losses[0] == float(loss.detach())


def test_groups_keep_the_proportions_of_their_rates() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    rates = (0.1, 0.3)
    groups = [{"params": p.parameters(), "lr": lr} for p, lr in zip(model, rates, strict=True)]
    optimizer, seen = torch.optim.SGD(groups), []

    class Watch:
        from hatbus import hookimpl

        @hookimpl
        def optimizer_step(self, ctx: Any) -> bool:
            seen.append([group["lr"] for group in ctx.optimizer.param_groups])
            return True

    data = [(torch.ones(2, 1), torch.ones(2, 1))]
    find_lr(Trainer(model, optimizer, data, torch.nn.functional.mse_loss, [Watch()]), 1e-3, 1.0, 10)
    assert len(seen) == 10
    assert all(second == pytest.approx(3 * first) for first, second in seen)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.3]


@pytest.mark.parametrize(
    ("losses", "suggestion", "is_open"),
    [
        ([1.0] * 5, None, False),
        ([1.0, 0.995, 0.99, 0.995, 1.0], None, False),
        ([5.0, 4.0, 1.0, 4.0, 9.0], 0.1 / 3, False),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 10 / 3, True),
    ],
)
def test_a_curve_says_what_it_can(losses: Any, suggestion: Any, is_open: bool) -> None:
    curve = LrCurve([1e-3, 1e-2, 0.1, 1.0, 10.0], losses)
    assert curve.suggestion == (suggestion and pytest.approx(suggestion))
    assert suggestion is None or curve.is_open is is_open


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lowest": 10, "highest": 1e-3}, "learning rates is 10 to 0.001; accepted: the lower end"),
        ({"lowest": 0}, "lowest is 0; accepted: a number above 0"),
        ({"highest": float("nan")}, "highest is nan; accepted: a number above 0"),
        ({"num_steps": 3}, "num_steps is 3; accepted: a whole number of at least 10"),
    ],
)
def test_what_is_no_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        find_lr(trainer_of(), **arguments)


def test_a_loss_that_is_nan_at_once_is_told() -> None:
    with pytest.raises(NonFiniteError, match="the loss is nan in the first step already"):
        find_lr(trainer_of(scale=float("nan")))


def test_a_loss_that_becomes_infinite_ends_the_test() -> None:
    trainer = trainer_of(scale=1e15)
    curve = find_lr(trainer, 1.0, 1e30, 20)
    assert all(torch.isfinite(torch.tensor(curve.losses)))
    assert len(curve.losses) == len(curve.rates) < 20


def test_an_optimizer_without_a_rate_is_told() -> None:
    trainer = trainer_of()
    assert trainer.ctx.optimizer is not None
    del trainer.ctx.optimizer.param_groups[0]["lr"]
    with pytest.raises(JobError, match="the optimizer has no learning rate"):
        find_lr(trainer)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bowl.py").write_text(JOB)
    path = tmp_path / "job.toml"
    path.write_text('[run]\nentry = "bowl.py:build"\nnum_epochs = 3\n')
    return path


def test_the_command_draws_suggests_and_writes_nothing(job: Path, capsys: Any) -> None:
    assert main(["lr-find", "job.toml", "--from", "1e-4"]) == 0
    printed = capsys.readouterr().out
    assert "suggestion: 0." in printed
    assert "lr 0.0001" in printed
    assert sorted(p.name for p in job.parent.iterdir() if p.suffix) == ["bowl.py", "job.toml"]
    assert not (job.parent / "runs").exists()


def test_the_command_gives_json_and_a_picture(job: Path, capsys: Any) -> None:
    pytest.importorskip("matplotlib")
    assert main(["lr-find", "job.toml", "--json", "--quiet", "--out", "curves/lr.png"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["suggestion"] == pytest.approx(found["rate_of_least"] / 3)
    assert len(found["rates"]) == len(found["losses"])
    assert Path("curves/lr.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "1", "--to", "0.1"], "the range of learning rates is 1 to 0.1"),
        (["--steps", "-4"], "num_steps is -4; accepted: a whole number of at least 10"),
        (["--out", "lr.bmp"], "--out is 'lr.bmp'; accepted: a file in .png"),
        (["-o", "run.args.scale=nan"], "the loss is nan in the first step"),
        (["-o", "run.args.skale=1"], "unknown argument 'skale'"),
    ],
)
def test_a_mistake_is_one_line(job: Path, capsys: Any, words: list[str], message: str) -> None:
    assert main(["lr-find", "job.toml", *words]) in (2, 7)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]


def test_a_job_without_optimizer_is_told(job: Path, capsys: Any) -> None:
    job.with_name("bowl.py").write_text(JOB.replace("return model,", "return model, 1 or"))
    assert main(["lr-find", "job.toml"]) == 2
    assert "as 'optimizer'; accepted: a torch.optim.Optimizer" in capsys.readouterr().err
