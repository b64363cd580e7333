"""An option that is another than in the saved run takes effect at a resume, or is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from hatbus import Trainer, hookimpl, plugin
from hatbus.callbacks import Checkpoint, CosLrUpdater, FreezeModule, FuseBN, TorchLr
from hatbus.cli import main
from hatbus.errors import CheckpointError, JobError

torch.set_num_threads(1)

STOP, END = 5, 12
ANY = {"override": ["all"]}


class Lr:
    """Notes the lr of every step; publishes a loss that is better at steps 0, 3 and 6 only."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    @hookimpl
    def on_step_end(self, ctx: Any, optimizer: Any, global_step_id: int) -> None:
        self.seen.append(float(optimizer.param_groups[0]["lr"]))
        ctx.log({"val/loss": 1.0 - 0.1 * min(global_step_id // 3, 2)})


def lr_of(path: Path, steps: int, schedule: object, lr: Any = 0.1, **options: Any) -> list[float]:
    torch.manual_seed(0)
    model, note = nn.Linear(3, 1), Lr()
    start = lr.clone() if isinstance(lr, torch.Tensor) else lr
    optimizer = torch.optim.SGD(model.parameters(), lr=start, momentum=0.9)
    checkpoint = Checkpoint(str(path), resume="auto", **options)
    listed = {"lr": schedule, "note": note, "checkpoint": checkpoint}
    data = [(torch.ones(2, 3), torch.ones(2, 1))] * 4
    Trainer(model, optimizer, data, nn.functional.mse_loss, listed).fit(num_steps=steps)
    return note.seen


def half(optimizer: Any) -> Any:
    return lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** (step // 2))


def warmup(optimizer: Any) -> Any:
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)]
    parts += [lr_scheduler.CosineAnnealingLR(optimizer, 20)]
    return lr_scheduler.SequentialLR(optimizer, parts, [3])


def chained(optimizer: Any) -> Any:
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(optimizer, 0.9), lr_scheduler.StepLR(optimizer, 4)]
    )


ONE_CYCLE = {"total_steps": 20, "max_lr": 0.1}
KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "StepLR": ("StepLR", {"step_size": 100}, {"step_size": 2, "gamma": 0.5}),
    "MultiStepLR": ("MultiStepLR", {"milestones": [3, 50]}, {"milestones": [4, 7]}),
    "ExponentialLR": ("ExponentialLR", {"gamma": 0.9}, {"gamma": 0.8}),
    "CosineAnnealingLR": ("CosineAnnealingLR", {"T_max": 20}, {"T_max": 12, "eta_min": 0.01}),
    "warm restarts": ("CosineAnnealingWarmRestarts", {"T_0": 4}, {"T_0": 3, "T_mult": 2}),
    "PolynomialLR": ("PolynomialLR", {"total_iters": 20}, {"total_iters": 12, "power": 2.0}),
    "OneCycleLR": ("OneCycleLR", ONE_CYCLE, {**ONE_CYCLE, "max_lr": 0.2}),
    "CyclicLR": (
        "CyclicLR",
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4},
        {"base_lr": 0.02, "max_lr": 0.2, "step_size_up": 3},
    ),
    "LambdaLR": (half, {}, {}),
    "SequentialLR": (warmup, {}, {}),
    "ChainedScheduler": (chained, {}, {}),
}


@pytest.mark.parametrize("kind", [k for k, v in KINDS.items() if v[1]])
def test_other_arguments_give_the_lr_of_a_run_that_had_them_from_the_start(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, before, after = KINDS[kind]
    whole = lr_of(tmp_path / "a", END, TorchLr(make, after))[STOP:]
    lr_of(tmp_path / "b", STOP, TorchLr(make, before))
    with caplog.at_level(logging.WARNING, "hatbus"):
        found = lr_of(tmp_path / "b", END, TorchLr(make, after), **ANY)
    assert found == whole
    assert "torch_lr: another schedule than the saved one from here: arguments {" in caplog.text
    caplog.clear()
    lr_of(tmp_path / "b", END + 1, TorchLr(make, after))  # it is the saved run's by now
    assert "another schedule" not in caplog.text


@pytest.mark.parametrize(
    ("kind", "lr"),
    [
        ("CosineAnnealingLR", 0.01),
        ("warm restarts", 0.01),
        ("LambdaLR", 0.01),
        ("LambdaLR", torch.tensor(0.01)),
        ("SequentialLR", 0.01),
        ("ChainedScheduler", torch.tensor(0.01)),
    ],
)
def test_an_overridden_lr_is_scheduled_as_from_the_start(
    tmp_path: Path, kind: str, lr: Any
) -> None:
    make, arguments, _ = KINDS[kind]
    before = torch.tensor(0.1) if isinstance(lr, torch.Tensor) else 0.1
    whole = lr_of(tmp_path / "a", END, TorchLr(make, arguments), lr)[STOP:]
    lr_of(tmp_path / "b", STOP, TorchLr(make, arguments), before)
    with pytest.raises(CheckpointError, match=r"--override optimizer\.lr"):
        lr_of(tmp_path / "b", END, TorchLr(make, arguments), lr)
    options = {"override": ["optimizer.lr"]}
    assert lr_of(tmp_path / "b", END, TorchLr(make, arguments), lr, **options) == whole


def test_another_scheduler_or_unit_gives_the_lr_of_a_run_that_had_it_from_the_start(
    tmp_path: Path,
) -> None:
    others = [("ExponentialLR", {"gamma": 0.9}, "step"), ("StepLR", {"step_size": 1}, "epoch")]
    for number, other in enumerate(others):
        whole = lr_of(tmp_path / f"a{number}", END, TorchLr(*other))[STOP:]
        lr_of(tmp_path / f"b{number}", STOP, TorchLr("StepLR", {"step_size": 2}))
        assert lr_of(tmp_path / f"b{number}", END, TorchLr(*other)) == whole


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_a_plateau_goes_on_exactly_and_keeps_its_reductions_under_another_lr(
    tmp_path: Path, lr: Any
) -> None:
    def plateau(**more: Any) -> TorchLr:
        return TorchLr("ReduceLROnPlateau", {"patience": 0, "eps": 0, **more}, metric="val/loss")

    options = {"save_interval": 1, "interval_by": "step"}
    whole = lr_of(tmp_path / "a", END, plateau(), lr, **options)
    parts = lr_of(tmp_path / "b", STOP, plateau(), lr, **options)
    assert whole[STOP - 1] < whole[0] / 5
    parts += lr_of(tmp_path / "b", END, plateau(), lr, **options)
    assert parts == whole
    other = lr_of(tmp_path / "a", END + 1, plateau(), lr * 2, **options, **ANY)
    assert other[0] == pytest.approx(2 * whole[-1] / 10)
    last = lr_of(tmp_path / "a", END + 3, plateau(factor=0.5), lr * 2, **options, **ANY)
    assert last == pytest.approx([other[0] / 2, other[0] / 4])


def test_overridden_betas_reach_a_schedule_of_the_first_one(tmp_path: Path) -> None:
    def run(folder: str, steps: int, beta: float, **options: Any) -> float:
        model = nn.Linear(3, 1)
        optimizer = torch.optim.Adam(model.parameters(), betas=(beta, 0.99))
        checkpoint = Checkpoint(str(tmp_path / folder), resume="auto", **options)
        listed = [CosLrUpdater(field="beta1", max_steps=20), checkpoint]
        data = [(torch.ones(2, 3), torch.ones(2, 1))] * 4
        Trainer(model, optimizer, data, nn.functional.mse_loss, listed).fit(num_steps=steps)
        return optimizer.param_groups[0]["betas"][0]

    run("b", STOP, 0.9)
    expected = run("a", END, 0.5)
    assert run("b", END, 0.5, override=["optimizer.betas"]) == expected != run("c", END, 0.9)


def test_an_override_on_the_command_line_moves_the_lr(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import torch\n\n\ndef build():\n    model = torch.nn.Linear(3, 1)\n"
        "    data = [(torch.ones(2, 3), torch.ones(2, 1))] * 4\n"
        "    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "    return model, optimizer, data, torch.nn.functional.mse_loss\n"
    )
    job = tmp_path / "job.toml"
    job.write_text(
        f'[run]\nentry = "{tmp_path}/train.py:build"\nnum_steps = 5\n'
        f'run_dir = "{tmp_path}"\nname = "run"\n'
        '[plugins.torch_lr]\nscheduler = "StepLR"\narguments = { step_size = 100 }\n'
        '[plugins.checkpoint]\nresume = "auto"\n'
    )
    assert main(["run", str(job)]) == 0
    more = ["-o", "run.num_steps=10", "-o", "torch_lr.arguments={ step_size = 2, gamma = 0.5 }"]
    assert main(["run", str(job), *more]) == 4
    assert main(["run", str(job), *more, "--override", "torch_lr.arguments"]) == 0
    last = sorted((tmp_path / "run" / "checkpoint").glob("checkpoint-step-10*"))[-1]
    group = json.loads((last / "optim.json").read_text())["groups"][0]
    assert group["lr"] == pytest.approx(0.1 * 0.5**4)


def network() -> nn.Module:
    torch.manual_seed(0)
    names = "abc"
    parts = {n: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for n in names}
    return nn.Sequential(nn.ModuleDict(parts)["a"], *(parts[n] for n in names[1:]))


def frozen_after(path: Path, steps: int, *marks: Any, **options: Any) -> set[str]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    listed = {"freeze": FreezeModule(*marks, **options), "c": Checkpoint(str(path), resume="auto")}
    data = [(torch.randn(4, 2), torch.zeros(4, 2))] * 4
    Trainer(model, optimizer, data, nn.functional.mse_loss, listed).fit(num_steps=steps)
    parts = {n.partition(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    modes = {name for name, part in model.named_children() if not part.training}
    return parts | {f"{name} in eval" for name in modes - parts}


@pytest.mark.parametrize(
    ("marks", "options", "expected"),
    [
        (([["0"], ["1"]], [0, 0], "step"), {}, {"0", "1"}),
        (([["1"], ["0"]], [0, 0], "step"), {}, {"0", "1"}),
        (([["1"]], [0], "step"), {}, {"1"}),
        (([["1"], ["0"]], [0, 7], "step"), {}, {"0", "1"}),
        (([["0"], ["1"]], [9, 7], "step"), {}, {"0", "1"}),
        (([["0"], ["1"]], [20, 7], "step"), {}, {"1"}),
        (([["0"]], [0], "step"), {"unfreeze_at": [3]}, set()),
        (([["0"], ["0"]], [0, 4], "step"), {"unfreeze_at": [2, None]}, {"0"}),
        (([["0"], ["1"]], [0, 1], "epoch"), {}, {"0", "1"}),
        (([[""]], [0], "step"), {"only_batchnorm": True}, set()),
    ],
)
def test_other_freeze_marks_freeze_what_they_say(
    tmp_path: Path, marks: Any, options: dict[str, Any], expected: set[str]
) -> None:
    assert frozen_after(tmp_path / "b", STOP, [["0"]], [0], "step") == {"0"}
    assert frozen_after(tmp_path / "b", END, *marks, **options) == expected


def test_the_same_freeze_marks_are_not_passed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marks = [["0"], ["1"]], [0, 8], "step"
    assert frozen_after(tmp_path, STOP, *marks, unfreeze_at=[3, None]) == set()
    assert frozen_after(tmp_path, END, *marks, unfreeze_at=[3, None]) == {"1"}
    assert "other marks" not in caplog.text


def test_a_frozen_state_that_names_no_marks_is_told_from_another_by_what_is_frozen() -> None:
    state = {"frozen": {"0": []}, "in_eval": {"0": []}, "begun": 1, "ended": 0}
    same, other = (FreezeModule([[name]], [0], "step") for name in "01")
    for freeze in (same, other):
        freeze.load_state_dict(state)
    assert (same.state_dict()["begun"], other.state_dict()["begun"]) == (1, 0)


def norms_after(path: Path, steps: int, modules: Any, at: list[int]) -> list[str]:
    torch.manual_seed(0)
    pairs = [nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)) for _ in range(3)]
    model = nn.Sequential(*pairs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    listed = {"fuse": FuseBN(modules, at, "step"), "c": Checkpoint(str(path), resume="auto")}
    data = [(torch.randn(4, 2, 3, 3), torch.zeros(4, 2, 3, 3))] * 4
    Trainer(model, optimizer, data, nn.functional.mse_loss, listed).fit(num_steps=steps)
    return [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]


def test_a_fuse_mark_that_is_added_fuses_and_one_that_is_gone_is_refused(tmp_path: Path) -> None:
    assert norms_after(tmp_path, STOP, [["0"]], [2]) == ["1.1", "2.1"]
    for modules, at in ([["1"]], [2]), ([["0"]], [3]), ([], []):
        with pytest.raises(CheckpointError, match=r"has fused '0' at step 2, which cannot be undo"):
            norms_after(tmp_path, END, modules, at)
    assert norms_after(tmp_path, STOP + 1, [["1"], ["0"]], [0, 2]) == ["2.1"]
    assert norms_after(tmp_path, END, [["1"], ["0"], ["2"]], [0, 2, 7]) == []


@plugin(stage="setup")
class Adds:
    """Adds the bias in a group of its own at step 3."""

    def __init__(self) -> None:
        self.ctx: Any = None

    @hookimpl
    def on_loop_begin(self, ctx: Any) -> None:
        self.ctx = ctx

    @hookimpl
    def on_step_begin(self, global_step_id: int) -> None:
        if global_step_id == 3 and len(self.ctx.optimizer.param_groups) == 1:
            self.add()

    def add(self) -> None:
        self.ctx.optimizer.add_param_group({"params": [self.ctx.model.bias], "lr": 0.01})

    def state_dict(self) -> dict[str, Any]:
        return {"groups": len(self.ctx.optimizer.param_groups)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["groups"] == 2:
            self.add()


@pytest.mark.parametrize("kind", ["StepLR", "LambdaLR", "warm restarts", "ChainedScheduler"])
def test_a_group_that_is_added_in_the_run_follows_the_schedule_over_a_resume(
    tmp_path: Path, kind: str
) -> None:
    make, arguments, _ = KINDS[kind]

    def run(folder: str, steps: int) -> list[Any]:
        torch.manual_seed(0)
        model, found = nn.Linear(3, 1), []

        class Note:
            @hookimpl
            def on_step_end(self, optimizer: Any) -> None:
                found.append([group["lr"] for group in optimizer.param_groups])

        optimizer = torch.optim.SGD([model.weight], lr=0.1, momentum=0.9)
        checkpoint = Checkpoint(str(tmp_path / folder), resume="auto")
        listed = [Adds(), TorchLr(make, arguments), Note(), checkpoint]
        data = [(torch.ones(2, 3), torch.ones(2, 1))] * 4
        Trainer(model, optimizer, data, nn.functional.mse_loss, listed).fit(num_steps=steps)
        return found

    whole = run("a", END)
    assert run("b", STOP) + run("b", END) == whole
    if kind in {"LambdaLR", "warm restarts"}:  # functions of the step and of the first lr alone
        assert whole[-1][1] == pytest.approx(whole[-1][0] / 10)


def test_a_cycle_of_torch_that_cannot_take_in_a_group_says_so(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD([model.weight], lr=0.1, momentum=0.9)
    listed = [Adds(), TorchLr("OneCycleLR", ONE_CYCLE)]
    data = [(torch.ones(2, 3), torch.ones(2, 1))] * 4
    with pytest.raises(JobError, match="OneCycleLR cannot take in a param group"):
        Trainer(model, optimizer, data, nn.functional.mse_loss, listed).fit(num_steps=6)
