"""The smallest real run there is, and plugins that write down what they hear."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from hatbus import Trainer, hookimpl, plugin
from hatbus.events.training import EVENTS, MOMENT


def batches(count: int, size: int = 4, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """``count`` batches of a linear problem, the same for the same seed."""
    chance = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, size, 3, generator=chance)
    target = inputs.sum(dim=2, keepdim=True)
    return list(zip(inputs, target, strict=True))


def tiny_trainer(plugins: Any = (), data: Any = None, **options: Any) -> Trainer:
    """A trainer of a 3-to-1 linear model by plain SGD, the same weights every time."""
    torch.manual_seed(0)
    model = options.pop("model", None) or torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss = options.pop("loss", torch.nn.functional.mse_loss)
    return Trainer(model, optimizer, batches(3) if data is None else data, loss, plugins, **options)


def by_hand(steps: int) -> torch.Tensor:
    """The tiny run as everybody would write it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data = batches(3)
    for step in range(steps):
        inputs, target = data[step % 3]
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def weights(trainer: Trainer) -> torch.Tensor:
    """The model's parameters as one vector, copied."""
    return torch.nn.utils.parameters_to_vector(trainer.ctx.model.parameters()).detach().clone()


def hearing(events: Iterable[str], note: Callable[..., Any]) -> object:
    """A plugin that calls ``note(event, arguments)`` on every one of the events.

    Moments are plain implementations; spans and decisions are wrapped, and left as they are.
    """
    methods: dict[str, Any] = {}
    for name in events:
        arguments = EVENTS[name].arguments
        names: dict[str, Any] = {"note": note}
        call = f"note({name!r}, dict({', '.join(f'{a}={a}' for a in arguments)}))"
        after = f"note({name + ' done'!r}, {{}})"
        if EVENTS[name].kind == MOMENT:
            body = call
        else:
            body = f"{call}\n    result = yield\n    {after}\n    return result"
        exec(f"def {name}(self, {', '.join(arguments)}):\n    {body}", names)
        methods[name] = hookimpl(names[name], wrapper=EVENTS[name].kind != MOMENT)
    return type("Hearing", (), methods)()


class Listens:
    """Hears the ends of steps, and does nothing."""

    @hookimpl
    def on_step_end(self) -> None: ...


@plugin(stage="monitor")
class MeanLoss:
    """Publishes the mean loss of every four steps; remembers what it has to."""

    def __init__(self) -> None:
        self.sum: Any = 0.0
        self.count = 0

    @hookimpl
    def on_step_end(self, ctx: Any, losses: dict[str, torch.Tensor], global_step_id: int) -> None:
        if ctx.exception is not None:  # then there may be no losses
            return
        self.sum = self.sum + torch.stack([v.detach() for v in losses.values()]).sum()
        self.count += 1
        if (global_step_id + 1) % 4 == 0:
            ctx.log({"mean_loss": self.sum / self.count})
            self.sum, self.count = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self.sum, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sum, self.count = state["sum"], state["count"]
