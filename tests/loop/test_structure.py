"""Changes of a model's structure in mid-run are noticed, and cost nothing where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import batches
from torch import nn
from torch.nn.utils import parametrizations, prune

from hatbus import Bus, Context, Trainer, hookimpl
from hatbus.errors import JobError
from hatbus.loop import structure_changed, structure_of


class Net(nn.Module):
    """A body and a head; its buffers are replaced or made in forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 1))
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("grid", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + x.detach().sum(0)
        return self.head(self.body(x))


class Does:
    """Does something to the model at a step; how often the structure had changed by each."""

    def __init__(self, what: Callable[[Any], object], at: int = 1) -> None:
        self.what, self.at = what, at
        self.counts: list[int] = []

    @hookimpl
    def on_step_begin(self, ctx: Context) -> None:
        if ctx.global_step_id == self.at:
            self.what(ctx.model)

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        self.counts.append(structure_of(ctx))


def changes(what: Callable[[Any], object], steps: int = 3) -> list[bool]:
    """Whether the structure changed in each step."""
    model, does = Net(), Does(what)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        batches(6),
        nn.functional.mse_loss,
        [does],
    )
    trainer.fit(num_steps=steps)
    first = 1  # what was done before fit
    return [now > before for before, now in zip([first, *does.counts], does.counts, strict=False)]


def test_changes_of_structure_are_counted_per_run() -> None:
    one, other = Context(Bus()), Context(Bus())
    structure_changed(one)
    structure_changed(one)
    assert (structure_of(one), structure_of(other)) == (2, 0)


NOTICED = {
    "a module is assigned": lambda m: setattr(m, "head", nn.Linear(4, 1)),
    "an item of a container": lambda m: m.head.__setitem__(0, nn.Linear(4, 1)),
    "a container grows": lambda m: m.head.append(nn.Identity()),
    "a parameter is assigned": lambda m: setattr(m.body, "weight", nn.Parameter(torch.ones(4, 3))),
    "a buffer is made": lambda m: m.register_buffer("mean", torch.zeros(3)),
    "a buffer that was none": lambda m: setattr(m, "grid", torch.zeros(3)),
    "pruning": lambda m: prune.l1_unstructured(m.body, "weight", amount=0.5),
    "weight norm": lambda m: parametrizations.weight_norm(m.body),
    "weights loaded by assignment": lambda m: m.load_state_dict(
        {n: v.clone() for n, v in m.state_dict().items()}, assign=True
    ),
    "a part is compiled": lambda m: setattr(m, "body", torch.compile(m.body, backend="eager")),
}


@pytest.mark.parametrize("what", NOTICED.values(), ids=NOTICED)
def test_what_is_registered_is_noticed_in_its_step(what: Callable[[Any], object]) -> None:
    assert changes(what) == [False, True, False]


UNCHANGED = {
    "nothing": lambda _: None,
    "other modules are made": lambda _: nn.Sequential(nn.Linear(2, 2)),
    "values are loaded": lambda m: m.load_state_dict(m.state_dict()),
    "modes": lambda m: m.eval(),
    "plain attributes": lambda m: setattr(m, "note", torch.zeros(3)),
}


@pytest.mark.parametrize("what", UNCHANGED.values(), ids=UNCHANGED)
def test_what_leaves_the_structure_as_it_is_counts_for_nothing(
    what: Callable[[Any], object],
) -> None:
    assert changes(what) == [False, False, False]


def test_a_module_that_was_put_in_is_watched_as_well() -> None:
    def put_two(model: Net) -> None:
        model.head = nn.Sequential(nn.Linear(4, 1))

    class Again(Does):
        @hookimpl
        def on_epoch_end(self, model: Net) -> None:
            model.head[0] = nn.Linear(4, 1)

    model, does = Net(), Again(put_two)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, batches(2), nn.functional.mse_loss, [does])
    trainer.fit(num_epochs=2)
    assert does.counts == [1, 2, 3, 3]


def test_every_fit_looks_anew_and_leaves_no_hook_behind() -> None:
    from torch.nn.modules import module as torchs

    hooks = (
        torchs._global_module_registration_hooks,
        torchs._global_parameter_registration_hooks,
        torchs._global_buffer_registration_hooks,
    )
    model, does = Net(), Does(lambda _: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, batches(2), nn.functional.mse_loss, [does])
    trainer.fit(num_steps=1)
    trainer.fit(num_steps=2)
    assert does.counts == [1, 2]
    assert not any(hooks)


def test_a_model_that_is_put_in_the_place_of_the_trained_one_is_refused() -> None:
    class Other:
        @hookimpl
        def on_epoch_begin(self, ctx: Context) -> None:
            ctx.model = Net()

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, batches(2), nn.functional.mse_loss, [Other()])
    with pytest.raises(JobError, match=r"ctx\.model was replaced during the run"):
        trainer.fit(num_epochs=2)
