"""MeanTeacher: the pair, the worked numbers, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.errors import JobError
from hatbus_model.fuse_bn import FuseBN
from hatbus_model.mean_teacher import MeanTeacher
from hatbus_model.moving_average import decay_at


class Pair(nn.Module):
    def __init__(self, teacher: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 1, 1))
        self.teacher = teacher or nn.Sequential(
            nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 1, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.teacher(x)
        return self.student(x)


def trainer_of(*plugins: object, model: nn.Module | None = None) -> Trainer:
    model = model or Pair()
    seeded = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(5, 3, 2, generator=seeded), torch.randn(5, 1, 2, generator=seeded))
        for _ in range(5)
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    return Trainer(model, optimizer, data, nn.functional.mse_loss, list(plugins))


def test_the_teacher_is_the_average_of_the_student() -> None:
    students: list[torch.Tensor] = []

    class Students:
        @hookimpl
        def on_step_begin(self, model: nn.Module) -> None:
            if not students:
                students.append(model.student[0].weight.detach().clone())

        @hookimpl
        def on_step_end(self, model: nn.Module) -> None:
            students.append(model.student[0].weight.detach().clone())

    trainer = trainer_of(MeanTeacher(0.9, 2), Students())
    trainer.fit(num_steps=6)
    value = students[0]
    for x, student in enumerate(students[1:], start=1):
        d = decay_at(x, 0.9, 2)
        value = d * value + (1 - d) * student
    assert torch.allclose(trainer.ctx.model.teacher[0].weight, value, rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in trainer.ctx.model.teacher.parameters())
    assert trainer.ctx.model.teacher[1].num_batches_tracked.item() == 6


def test_a_given_teacher_can_be_kept() -> None:
    trainer = trainer_of(MeanTeacher(0.5, 0, copy_student=False))
    given = trainer.ctx.model.teacher[0].weight.detach().clone()
    trainer.fit(num_steps=1)
    model = trainer.ctx.model
    assert torch.allclose(model.teacher[0].weight, (given + model.student[0].weight) / 2)


@pytest.mark.parametrize("at", [0, 3])
def test_it_continues_exactly(continues_exactly: Callable[..., object], at: int) -> None:
    def build(more: list[object]) -> Trainer:
        fuse = FuseBN([["student", "teacher"]], [2], "step")
        return trainer_of(MeanTeacher(0.9, 3), fuse, *more)

    continues_exactly(build, 7, at)


def test_another_name_of_a_module() -> None:
    model = Pair()
    model.pupil = model.student
    del model.student
    with pytest.raises(JobError, match="mean_teacher: student: unknown module 'student'"):
        trainer_of(MeanTeacher(), model=model).fit(num_steps=1)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (nn.Sequential(nn.Conv1d(3, 5, 1)), "one architecture"),
        (nn.Sequential(nn.Conv1d(3, 4, 1)), "the student holds '1.weight'"),
        (nn.ModuleDict({"x": nn.Conv1d(3, 4, 1)}), "the teacher holds 'x.weight'"),
    ],
)
def test_modules_that_are_no_pair_are_refused(teacher: nn.Module, words: str) -> None:
    with pytest.raises(JobError, match=words):
        trainer_of(MeanTeacher(), model=Pair(copy.deepcopy(teacher))).fit(num_steps=1)


def test_one_module_cannot_be_both() -> None:
    with pytest.raises(JobError, match="name two modules"):
        MeanTeacher(student="net", teacher="net")


class Shared(nn.Module):
    """A student and a teacher on one encoder."""

    def __init__(self, share: str = "both") -> None:
        super().__init__()
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.student = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(4, 1)})
        own = copy.deepcopy(encoder) if share == "outside" else encoder
        self.teacher = nn.ModuleDict({"encoder": own, "head": nn.Linear(4, 1)})
        self.other = own if share == "outside" else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.student["head"](self.student["encoder"](x))
        with torch.no_grad():
            self.teacher["head"](self.teacher["encoder"](x))
        return found + self.other(x).sum() * 0.1


def rows() -> list[tuple[torch.Tensor, torch.Tensor]]:
    seeded = torch.Generator().manual_seed(1)
    draw = [torch.randn(5, n, generator=seeded) for n in (3, 1) * 5]
    return list(zip(draw[::2], draw[1::2], strict=True))


@pytest.mark.parametrize("share", ["both", "outside"])
def test_what_the_teacher_shares_trains_as_it_would_without_it(share: str) -> None:
    trained = []
    for plugins in ([], [MeanTeacher(0.5, 0)]):
        model = Shared(share)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Trainer(model, optimizer, rows(), nn.functional.mse_loss, plugins).fit(num_epochs=1)
        trained.append(model)
    plain, taught = trained
    part = "other" if share == "outside" else "student.encoder"
    for module in (part, "student"):
        one, other = (m.get_submodule(module).state_dict() for m in (plain, taught))
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert all(p.requires_grad for p in taught.get_submodule(part).parameters())
    assert not any(p.requires_grad for p in taught.teacher["head"].parameters())
    assert not torch.equal(taught.teacher["head"].weight, taught.student["head"].weight)


def test_a_teacher_with_nothing_of_its_own_is_refused() -> None:
    model = nn.ModuleDict({"student": nn.Linear(3, 1)})
    model["teacher"] = model["student"]
    with pytest.raises(JobError, match="the teacher 'teacher' has no tensor of its own"):
        trainer_of(MeanTeacher(), model=model).fit(num_steps=1)


def test_a_teacher_that_is_put_in_during_the_run_gets_no_gradients_either() -> None:
    class NewTeacher:
        @hookimpl
        def on_step_begin(self, model: Pair, global_step_id: int) -> None:
            if global_step_id == 1:
                model.teacher = copy.deepcopy(model.student)

    trainer = trainer_of(MeanTeacher(0.9, 0), NewTeacher())
    trainer.fit(num_steps=3)
    assert not any(p.requires_grad for p in trainer.ctx.model.teacher.parameters())
    assert not torch.equal(trainer.ctx.model.teacher[0].weight, trainer.ctx.model.student[0].weight)
