"""Two processes: how many messages a step and a validation cost, counted by torch's profiler, and
that what rank 0 alone shows is the mean over both."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from two_processes import run_on_two

from hatbus import Bus, Context, Trainer, hookimpl
from hatbus.callbacks import MetricUpdater, Progress, TensorBoard, Validation
from hatbus.data import loader
from hatbus.errors import HookError
from hatbus.parallel import summed
from hatbus_monitor.metrics import LossShow

STEPS = 12
RUNS = """
import json, sys
import test_messages_per_step as here

rank = int(sys.argv[1])
seen = {"counts": here.counted(), "shown": here.shown(rank), "passes": here.passes()}
seen["limited"] = here.limited()
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
"""


class Messages:
    """Counts what gloo is given between the begins of two steps, or around a validation."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.found: Counter[str] = Counter()

    @hookimpl(tryfirst=True)
    def on_step_begin(self, global_step_id: int) -> None:
        if global_step_id == self.first:
            self._profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
            )
            self._profile.start()
        if global_step_id == self.last:
            self._profile.stop()
            self.found = messages_in(self._profile)


def messages_in(profile: Any) -> Counter[str]:
    return Counter(e.name for e in profile.events() if e.name.startswith("gloo:"))


class SkipsNothing:
    @hookimpl
    def skip_update(self) -> None:
        """Is asked in every step."""


def updater(number: int) -> MetricUpdater:
    def update(metrics: Any, batch: Any, outs: Any, losses: Any) -> None:
        for metric in metrics:
            metric.update(losses["loss"])

    return MetricUpdater(update, [LossShow(f"m{number}"), LossShow(f"n{number}")], step_log_freq=1)


def trainer(plugins: Any, **more: Any) -> Trainer:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Linear(4, 1)
    samples = TensorDataset(torch.ones(120, 4), torch.arange(120.0).reshape(120, 1))
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), 0.0),
        loader(samples, 2),
        nn.functional.mse_loss,
        plugins,
        device="cpu",
        **more,
    )


def counted() -> dict[str, int]:
    """Messages in eight steps of several runs, those of the gradients among them."""
    cases = {
        "nothing": [],
        "the mean loss": [],
        "metrics": [updater(1), updater(2), updater(3)],
        "all": [updater(1), updater(2), SkipsNothing(), TensorBoard("board"), Progress()],
    }
    found = {}
    for name, plugins in cases.items():
        messages = Messages(2, 10)
        named = {f"p{number}": one for number, one in enumerate(plugins)}
        trainer({**named, "messages": messages}, log_every=2 * (name != "nothing")).fit(
            num_steps=STEPS
        )
        found[name] = sum(messages.found.values())
    return found


class AroundValidation:
    """Counts the messages of every validation."""

    def __init__(self) -> None:
        self.found: list[int] = []

    @hookimpl
    def on_validation_begin(self) -> None:
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self._profile.start()

    @hookimpl
    def on_validation_end(self) -> None:
        self._profile.stop()
        self.found.append(sum(messages_in(self._profile).values()))


def passes() -> list[int]:
    """Messages of three validations: three updaters and the mean of the losses, six batches."""
    from hatbus_validation.mean_losses import MeanLosses

    around = AroundValidation()
    data = loader(TensorDataset(torch.ones(24, 4), torch.ones(24, 1)), 2, shuffle=False)
    inside = [MeanLosses(), updater(1), updater(2), updater(3)]
    trainer([Validation(data, callbacks=inside), around]).fit(num_epochs=3)
    return around.found


def limited() -> int:
    """The steps of a run that was to have five."""
    return trainer([]).fit(num_epochs=9, limit_steps=5).position.global_step


class Losses:
    """What each process's own losses are, and what rank 0's progress shows in the end."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.own, self.shown = progress, [], {}

    @hookimpl
    def on_step_end(self, losses: Any) -> None:
        self.own.append(losses["loss"].item())

    @hookimpl(tryfirst=True)
    def on_loop_end(self) -> None:
        self.shown = {name: float(value) for name, value in self.progress._losses.items()}


def shown(rank: int) -> dict[str, Any]:
    progress = Progress()
    losses = Losses(progress)
    trainer([losses, progress, TensorBoard("curves")]).fit(num_steps=10)
    return {"own": losses.own, "progress": losses.shown, "board": curve() if rank == 0 else []}


def curve() -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator("curves")
    found.Reload()
    if "loss" in found.Tags()["scalars"]:
        return [one.value for one in found.Scalars("loss")]
    return [one.tensor_proto.float_val[0] for one in found.Tensors("loss")]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> list[dict[str, Any]]:
    """What both processes saw."""
    return run_on_two(RUNS, tmp_path_factory.mktemp("messages"), checkout)


def test_a_step_has_no_message_beside_the_gradients_or_one_if_something_is_published(
    ranks: Any,
) -> None:
    for seen in ranks:
        assert seen["counts"] == {"nothing": 8, "the mean loss": 12, "metrics": 16, "all": 16}


def test_a_validation_has_one_message_once_the_losses_are_known(ranks: Any) -> None:
    for seen in ranks:
        assert seen["passes"][1:] == [1, 1]


def test_a_limit_holds_to_the_step_as_on_one_process(ranks: Any) -> None:
    assert [seen["limited"] for seen in ranks] == [5, 5]


def test_the_progress_and_the_board_show_the_mean_over_the_processes(ranks: Any) -> None:
    one, other = (seen["shown"] for seen in ranks)
    means = [(a + b) / 2 for a, b in zip(one["own"], other["own"], strict=True)]
    assert one["own"] != other["own"]
    assert one["board"] == pytest.approx(means)
    assert one["progress"] == {"loss": pytest.approx(means[9])}


class Asks:
    """Gives its number at the end of an epoch, and in no step."""

    @hookimpl
    def on_step_end(self) -> None:
        """Makes it a plugin."""

    def rank_sums(self, ctx: Any, moment: str) -> torch.Tensor | None:
        return torch.tensor([3.0]) if moment == "epoch" else None


def test_a_plugin_that_asks_has_to_give() -> None:
    asks = Asks()
    ctx = Context(Bus({"asks": asks}), device=torch.device("cpu"))
    assert summed(ctx, asks, "epoch").tolist() == [3.0]
    with pytest.raises(HookError, match=r"Asks asks for sums .* end of the step"):
        summed(ctx, asks, "step")
