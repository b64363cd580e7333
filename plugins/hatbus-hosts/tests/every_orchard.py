"""Hooks of RoboOrchardLab in hatbus: `tox -e orchard`, for it needs older packages."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pages
import pytest
import torch
from torch import nn

from hatbus import HatbusError, Trainer
from hatbus_hosts import OrchardHooks

hooks = pytest.importorskip("robo_orchard_lab.pipeline.hooks")
CHANNELS = ("on_loop", "on_epoch", "on_step", "on_batch", "on_model_forward", "on_model_backward")


def heard(channel: str, log: list[Any]) -> Any:
    """A hook that writes down its begin and end."""

    def before(given: Any) -> None:
        log.append(("before", channel, given.global_step_id))

    def after(given: Any) -> None:
        loss = None if given.reduce_loss is None else round(float(given.reduce_loss), 4)
        log.append(("after", channel, given.global_step_id, loss))

    class Heard(hooks.PipelineHooks):
        def __init__(self) -> None:
            super().__init__()
            self.register_hook(channel, hooks.HookContext.from_callable(before=before, after=after))

    return Heard()


def trainer(plugin: Any, batches: int = 2) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    data = [(torch.randn(4, 4), torch.randn(4, 1)) for _ in range(batches)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, optimizer, data, nn.functional.mse_loss, [plugin], device="cpu")


def test_every_channel_begins_and_ends_in_pairs_around_what_it_names() -> None:
    log: list[Any] = []
    trainer(OrchardHooks([heard(channel, log) for channel in CHANNELS]), 1).fit(num_epochs=1)
    names = [entry[:2] for entry in log]
    opening = [name for word, name in names if word == "before"]
    assert opening == list(CHANNELS)
    inner = ("on_model_forward", "on_model_backward")
    outer = ["on_batch", "on_step", "on_epoch", "on_loop"]
    assert [name for word, name in names if word == "after"] == [*inner, *outer]
    losses = {entry[1]: entry[3] for entry in log if entry[0] == "after"}
    assert losses["on_batch"] == losses["on_step"] is not None
    assert losses["on_model_forward"] is None


def test_the_stats_monitor_of_orchard_logs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        monitor = hooks.StatsMonitorConfig(step_log_freq=1, batch_size=4)
        trainer(OrchardHooks(monitor)).fit(num_epochs=1)
    assert "Step[1" in caplog.text or "Step" in caplog.text


def test_a_hook_that_is_not_wrapped_is_refused_with_what_to_do() -> None:
    with pytest.raises(HatbusError, match=r"wrap it in hatbus_hosts\.OrchardHooks"):
        trainer(heard("on_step", []))


def test_a_class_of_hooks_is_named_in_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hatbus_hosts.orchard_hooks import plugin_class

    made = plugin_class(hooks.StatsMonitor)
    assert issubclass(made, OrchardHooks)
    assert made.__name__ == "StatsMonitor"


def test_the_example_of_the_page_runs() -> None:
    (block,) = pages.blocks(pages.DOCS / "plugins/hatbus-hosts.md", "python")
    names: dict[str, Any] = {"__name__": "hosts"}
    exec(compile(block.text, "hatbus-hosts.md", "exec", dont_inherit=True), names)
    found = names["with_orchard"]()
    found.fit(num_epochs=1)
    assert found.ctx.updates == 4
