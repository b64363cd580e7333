"""What every peer is asked to do: a job, its model and data, and callbacks that no peer knows.

A peer is a module ``of_<name>.py`` with one function, ``train(work)``, that trains ``work.model``
on ``work.data`` with the duties of ``work.job``, each in the way that the peer's own documentation
recommends. Everything else is the same for all: the batches, the optimizer, the loss, and what a
``Watcher`` does when it is told of a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

WIDTHS = {
    "tiny": (8, 8),
    "toy": (64, 128, 10),
    "net": (256, 512, 512, 512, 512, 512, 256, 10),
    "thin": (256, 512, 512, 512, 512, 512, 256, 10),
    "large": (1024, *(1024,) * 8, 10),
    "dropout": (16, 32, 4),
}
"""Widths of the layers: 1.3 million parameters in a net and in a thin one, which is a net whose
batches are small, and 8.4 million in a large one."""
BATCH = {"tiny": 4, "toy": 64, "net": 64, "thin": 4, "large": 4, "dropout": 4}
MANY, FEW = 64, 8
"""Batches that are given again and again: many for the net, which must not know them by heart in
the longest run (numbers near zero are slow); one where a resumed run may begin at any of them."""
TASKS = ("a", "b", "c", "d")
SCALARS = ("loss", "mean_loss", "accuracy", "lr", "samples")
MAX_NORM, DECAY, SCALE = 1.0, 0.99, 0.5
SAMPLES, SEED = 80, 3
"""Of the data set that is shuffled: twenty batches an epoch."""


@dataclass(frozen=True)
class Job:
    """What is trained, and with what.

    Attributes:
        model: a name in ``WIDTHS``.
        steps: optimizer steps.
        length: of the data, in batches; 0: as many as there are steps.
        callbacks: callbacks that do nothing, on every event of a step that the peer has.
        tasks: every step has a batch of one of so many tasks, in turn.
        ema, clip, scale, lr: an average of the weights; a limit on the norm of the gradients; a
            factor on those of the first layer; cosine annealing, step by step.
        metrics: mean loss and accuracy of the epoch.
        scalars: so many values to TensorBoard at every step: the first of ``SCALARS``, or others.
        save_every: a checkpoint every so many steps, the newest two kept.
        in_background: saved while the training goes on, where the peer can.
        validate: batches of a validation after every step.
        folder: of what is written.
        resume: go on from the newest checkpoint in the folder, as the peer does it.
        shuffled: two epochs of a shuffled loader, with dropout, random numbers included.
    """

    model: str = "tiny"
    steps: int = 100
    length: int = 0
    callbacks: int = 0
    tasks: int = 1
    ema: bool = False
    clip: bool = False
    scale: bool = False
    lr: bool = False
    metrics: bool = False
    scalars: int = 0
    save_every: int = 0
    in_background: bool = False
    validate: int = 0
    folder: str = ""
    resume: bool = False
    shuffled: bool = False


def do_nothing(*_: Any, **__: Any) -> None:
    """What an empty callback does."""


class Watcher:
    """A callback that a peer runs as one of its own.

    Attributes:
        name: of this instance.
        after: of the instance that must run before this one.
        calls: what it was told, in a list that several may share.
        count: its state.
    """

    def __init__(self, name: str, calls: list[str] | None = None, after: str = "") -> None:
        self.name, self.after = name, after
        self.calls = [] if calls is None else calls
        self.count = 0
        self.first: int | None = None

    def step(self, number: int) -> None:
        """A step is over.

        Args:
            number: of steps that are behind the run.
        """
        if self.first is None:
            self.first = number
        self.count += 1
        self.calls.append(self.name)

    def over(self) -> None:
        """The run is over, well or not."""
        self.calls.append(f"{self.name} is told of the end")

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Net(nn.Module):
    """Linear layers and what is between them; a head for each of several tasks."""

    def __init__(self, widths: tuple[int, ...], tasks: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for given, wanted in pairwise(widths[:-1]):
            layers += [nn.Linear(given, wanted), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        self.body = nn.Sequential(*layers)
        heads = {task: nn.Linear(*widths[-2:]) for task in TASKS[:tasks]}
        self.heads = nn.ModuleDict(heads)

    def forward(self, inputs: torch.Tensor, task: str | None = None) -> torch.Tensor:
        return self.heads[task or TASKS[0]](self.body(inputs))

    @property
    def first_layer(self) -> str:
        """Its name."""
        return "body.0" if len(self.body) else "heads.a"


class Batches:
    """Batches that note when each was taken, and when there was no further one.

    Args:
        batches: that are given again and again.
        steps: how often.
        times: by the clock, in seconds.
        worked: by what this process has worked, in seconds.
        pause: called before each.
    """

    def __init__(
        self,
        batches: list[Any],
        steps: int,
        times: list[float],
        worked: list[float],
        pause: Callable[[], None] = do_nothing,
    ) -> None:
        self.batches, self.steps = batches, steps
        self.times, self.worked, self.pause = times, worked, pause
        self.dataset = range(steps * len(batches[0][-1]))  # some peers ask for its length
        self.batch_size, self.batch_sampler = len(batches[0][-1]), None
        self.sampler = SequentialSampler(self.dataset)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        clock, work, pause = time.perf_counter, time.process_time, self.pause
        for batch in islice(cycle(self.batches), self.steps):
            pause()
            self.times.append(clock())
            self.worked.append(work())
            yield batch
        self.times.append(clock())
        self.worked.append(work())


@dataclass
class Work:
    """A job made ready: what ``train`` is given, and where it leaves what it found.

    Attributes:
        times: when each batch of the training was taken, in seconds; the end last.
        worked: the same by what the process has worked.
        accuracy: of the validation, or of the training where there is none.
        average: the averaged weights.
        pause: called before each batch of the training.
    """

    job: Job
    watchers: list[Watcher] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)
    accuracy: float | None = None
    average: list[torch.Tensor] | None = None
    pause: Callable[[], None] = do_nothing

    def __post_init__(self) -> None:
        job = self.job
        torch.manual_seed(SEED)
        widths = WIDTHS[job.model]
        self.model = Net(widths, job.tasks, 0.3 if job.model == "dropout" else 0.0)
        options: dict[str, Any] = {"lr": 1e-2} if job.model == "tiny" else {"lr": 1e-3}
        kind: Any = torch.optim.SGD if job.model == "tiny" else torch.optim.AdamW
        if kind is torch.optim.AdamW:
            options["fused"] = True  # the quickest that torch has
        self.optimizer = kind(self.model.parameters(), **options)
        self.loss = nn.functional.cross_entropy
        count = MANY if job.model == "net" else 1 if job.save_every else FEW
        self.batches = drawn(widths, BATCH[job.model], count)
        self.folder = Path(job.folder)

    @property
    def data(self) -> Any:
        """Batches ``(inputs, target)``; ``(task, inputs, target)`` where there are several."""
        if self.job.shuffled:
            return DataLoader(self.dataset, BATCH[self.job.model], shuffle=True)
        batches = self.batches
        if self.job.tasks > 1:
            batches = [(TASKS[n % self.job.tasks], *b) for n, b in enumerate(batches)]
        steps = self.job.length or self.job.steps
        return Batches(batches, steps, self.times, self.worked, self.pause)

    @property
    def dataset(self) -> TensorDataset:
        """The data set that is shuffled."""
        inputs, target = drawn(WIDTHS[self.job.model], SAMPLES, 1)[0]
        return TensorDataset(inputs, target)

    @property
    def validation(self) -> Batches:
        """Batches to validate on."""
        return Batches(self.batches, self.job.validate, [], [])

    @property
    def epochs(self) -> int:
        return 2 if self.job.shuffled else 1

    def rate(self, step: int) -> float:
        """The share of the learning rate that is left at a step."""
        return 0.5 * (1 + math.cos(math.pi * step / self.job.steps))

    def first_gradients(self) -> list[torch.Tensor]:
        """Those of the first layer."""
        layer = self.model.get_submodule(self.model.first_layer)
        return [p.grad for p in layer.parameters()]

    def values(self, loss: torch.Tensor, step: int) -> dict[str, Any]:
        """So many scalars as the job wants, those of a run without metrics: tensors, all."""
        return {f"value_{n}": loss for n in range(self.job.scalars)}


def drawn(widths: tuple[int, ...], batch: int, count: int) -> list[tuple[torch.Tensor, ...]]:
    """Random batches, always the same ones."""
    draws = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(batch, widths[0], generator=draws),
            torch.randint(widths[-1], (batch,), generator=draws),
        )
        for _ in range(count)
    ]


def newest(folder: Path, pattern: str) -> Path | None:
    """The entry whose name has the highest number at its end, as users choose it."""
    found = sorted(
        folder.glob(pattern), key=lambda p: int("0" + "".join(filter(str.isdigit, p.name)))
    )
    return found[-1] if found else None
