"""A loop as a host that is written by hand, and plugins that tell what they hear in it."""

from collections.abc import Generator
from typing import Any

import torch
from torch import nn

from hatbus import Context, hookimpl, plugin
from hatbus.events import EVENTS, MOMENT
from hatbus_hosts import Capabilities, Host, rows

STEPS = 4
STEP_MOMENTS = [
    f"on_{span}_{end}"
    for span in ("step", "batch", "forward", "optimizer_step")
    for end in ("begin", "end")
]


class HandWritten(Host):
    """Tells everything but that which its table denies."""

    name = "HandWritten"
    capabilities = Capabilities(
        {
            row: True
            for row in rows()
            if not row.endswith("replaced") or row in ("clip_gradients replaced",)
            if row not in ("skip_batch", "skip_update", "request save", "request validate")
        }
    )


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(4), x.sum(dim=1, keepdim=True).split(4), strict=True))


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def run(
    host: Host,
    epochs: int = 2,
    *,
    state: tuple[dict[str, Any], ...] = (),
    stop_after: int | None = None,
) -> tuple[dict[str, Any], ...]:
    """A training loop; gives everything that a checkpoint of its own would hold."""
    model, optimizer = parts()
    if state:
        model.load_state_dict(state[0])
        host.load_state_dict(state[1])
    host.begin(model=model, optimizer=optimizer, num_epochs=epochs, steps_per_epoch=STEPS)
    place, stopped = host.ctx.position, []
    try:
        while place.epoch < epochs and not stopped:
            host.begin_epoch()
            for x, y in batches()[place.step :]:
                host.begin_batch((x, y))
                host.begin_forward()
                outs = host.end_forward(model(x))
                loss = nn.functional.mse_loss(outs, y)
                optimizer.zero_grad()
                host.begin_backward({"loss": loss}, loss)
                loss.backward()
                host.end_backward()
                host.begin_update()
                optimizer.step()
                host.end_update()
                host.end_step()
                host.serve({"stop run": stopped.append})
                if place.global_step == stop_after:
                    left = copied(model), host.state_dict()
                    host.end()
                    return left
                if stopped:
                    break
            host.end_epoch(is_complete=not stopped)
        host.end()
    except BaseException as error:
        host.fail(error)
        raise
    return copied(model), host.state_dict()


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in model.state_dict().items()}


def hearing(event: str) -> object:
    """A plugin that writes down when it hears one event, and with which ids."""
    source = f"def {event}(self, ctx): self.heard.append(said('{event}', ctx))"
    found: dict[str, Any] = {"said": said}
    exec(source, found)
    return type("Hearing", (), {event: hookimpl(found[event])})


def said(event: str, ctx: Context) -> tuple[Any, ...]:
    losses = {name: value.item() for name, value in ctx.losses.items()}
    return event, ctx.epoch_id, ctx.step_id, ctx.global_step_id, ctx.updates, losses


class Recorder:
    """Hears every moment of the loop."""

    def __init__(self) -> None:
        self.heard: list[Any] = []


for _name, _event in EVENTS.items():
    if _event.kind == MOMENT and _name not in ("on_log", "on_checkpoint_saved"):
        setattr(Recorder, _name, vars(hearing(_name))[_name])


class Surrounds:
    """Stands around the spans that a host opens without a call where nobody does."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def around(self, span: str, ctx: Context) -> Generator[None, Any, Any]:
        self.steps.append((span, ctx.global_step_id))
        return (yield)

    @hookimpl(wrapper=True)
    def run_step(self, ctx: Context) -> Generator[None, Any, Any]:
        return (yield from self.around("run_step", ctx))

    @hookimpl(wrapper=True)
    def run_batch(self, ctx: Context) -> Generator[None, Any, Any]:
        return (yield from self.around("run_batch", ctx))

    @hookimpl(wrapper=True)
    def forward(self, ctx: Context) -> Generator[None, Any, Any]:
        return (yield from self.around("forward", ctx))

    @hookimpl(wrapper=True)
    def optimizer_step(self, ctx: Context) -> Generator[None, Any, Any]:
        return (yield from self.around("optimizer_step", ctx))


@plugin(stage="average")
class Mean:
    """The running mean of the weights, which a checkpoint has to keep."""

    def __init__(self) -> None:
        self.count, self.mean = 0, torch.zeros(1, 3)

    @hookimpl
    def on_optimizer_step_end(self, ctx: Context) -> None:
        self.count += 1
        self.mean += (ctx.model.weight.detach() - self.mean) / self.count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean = state["count"], state["mean"].clone()
