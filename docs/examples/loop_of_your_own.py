"""A hand-written training loop that emits hatbus's events: the bus without the Trainer."""

import torch
from torch import nn
from torch.nn.functional import mse_loss

from hatbus import Bus, Context, hookimpl
from hatbus.callbacks import CosLrUpdater


class Recorder:
    """Publishes the loss of every step, and asks for the end when it is small."""

    @hookimpl
    def on_step_end(self, ctx, losses):
        ctx.log({"train/loss": losses["loss"].item()})
        if ctx.latest["train/loss"] < 1e-3:
            ctx.control.stop("run", "the loss is small")


def train(epochs: int = 3) -> Context:
    """A line fitted to points; returns the context as it is at the end."""
    torch.manual_seed(0)
    x = torch.randn(64, 1)
    batches = [(part, 3 * part + 1) for part in x.split(16)]
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)

    bus = Bus([CosLrUpdater(warmup_len=2), Recorder()])
    ctx = Context(bus, model=model, optimizer=optimizer, num_epochs=epochs)
    ctx.steps_per_epoch, ctx.total_steps = len(batches), epochs * len(batches)
    with ctx.within("run_loop"):
        for ctx.epoch_id in range(epochs):
            with ctx.within("run_epoch"):
                for ctx.step_id, ctx.batch in enumerate(batches):
                    ctx.global_step_id = ctx.epoch_id * len(batches) + ctx.step_id
                    with ctx.within("run_step"):
                        inputs, target = ctx.batch
                        ctx.losses = {"loss": mse_loss(model(inputs), target)}
                        optimizer.zero_grad()
                        ctx.losses["loss"].backward()
                        with ctx.within("optimizer_step"):
                            optimizer.step()
                    if any(request.wish == "stop run" for request in ctx.control.take()):
                        return ctx
    return ctx


if __name__ == "__main__":
    print(f"loss {train().latest['train/loss']:.4f}")
