"""``compile = true``: what torch compiles and how often, with every plugin on, by its own count.

A bare loop that compiles the same model and loss is the measure: hatbus causes no graph more, no
graph break and no recompilation, also after a validation and at a last batch that is smaller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled import (
    EPOCHS,
    Net,
    bare,
    bare_steps,
    data,
    every_plugin,
    loss_of,
    made,
    other_plugins,
)
from torch._dynamo.utils import counters

from hatbus import Trainer

torch.set_num_threads(1)


@contextmanager
def recompilations() -> Iterator[list[str]]:
    """What ``TORCH_LOGS=recompiles`` says meanwhile."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("torch._dynamo.guards.__recompiles")
    torch._logging.set_logs(recompiles=True)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        torch._logging.set_logs()


def counted(run: Callable[[Any], Any]) -> tuple[int, int, dict[str, int]]:
    """Graphs that were compiled, recompilations, and graph breaks of a run."""
    torch._dynamo.reset()
    counters.clear()
    graphs = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    with recompilations() as said:
        run(backend)
    return len(graphs), len(said), dict(counters["graph_break"])


@pytest.mark.parametrize("plugins", ["none", "every"])
def test_hatbus_causes_no_graph_more_than_a_bare_loop(plugins: str, tmp_path: Path) -> None:
    expected = counted(lambda backend: bare(lambda part: torch.compile(part, backend=backend)))

    def run(backend: Any) -> None:
        model = Net()
        if plugins == "none":
            model.stem.requires_grad_(False)
            model.norm.eval()
        chosen = every_plugin(tmp_path) if plugins == "every" else {}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        trainer = Trainer(model, optimizer, data(), loss_of, chosen, compile={"backend": backend})
        trainer.fit(num_epochs=EPOCHS - 1)
        trainer.fit(num_epochs=EPOCHS)  # a second fit compiles nothing anew

    found = counted(run)
    assert found == expected
    assert found[0] >= 4  # of model and loss, each for two sizes of batch
    assert found[1] >= 2
    assert found[2] == {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", other_plugins(Path()))
def test_a_plugin_that_is_on_alone_causes_no_graph_more_than_a_bare_loop(
    name: str, tmp_path: Path
) -> None:
    kind, options = other_plugins(tmp_path)[name]

    def run(backend: Any) -> None:
        model = kind()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        plugins = {name: made(name, options)}
        trainer = Trainer(model, optimizer, data(), loss_of, plugins, compile={"backend": backend})
        trainer.fit(num_epochs=EPOCHS - 1)
        trainer.fit(num_epochs=EPOCHS)
        trainer.predict(data())

    expected = counted(
        lambda backend: bare_steps(lambda part: torch.compile(part, backend=backend), kind)
    )
    found = counted(run)
    assert found == expected
    assert found[0] >= 4  # of model and loss, each for two sizes of batch


def test_a_break_in_the_users_own_code_is_counted_so_that_none_could_hide() -> None:
    class Breaks(Net):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return super().forward(inputs)

    def run(backend: Any) -> None:
        model = Breaks()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        Trainer(model, optimizer, data(), loss_of, compile={"backend": backend}).fit(num_epochs=1)

    assert sum(counted(run)[2].values()) >= 1


@pytest.mark.parametrize(("wanted", "count"), [(True, 2), (False, 1)])
def test_the_losses_are_compiled_too_unless_that_is_not_wanted(wanted: bool, count: int) -> None:
    def run(backend: Any) -> None:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        options = {"backend": backend, "loss": wanted}
        Trainer(model, optimizer, data()[:1], loss_of, compile=options).fit(num_steps=1)

    assert counted(run)[0] == count


def test_each_task_has_its_own_compiled_loss_and_trains_as_without() -> None:
    def fitted(**options: Any) -> list[torch.Tensor]:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = {"a": loss_of, "b": lambda outs, target: 2 * loss_of(outs, target)}
        Trainer(model, optimizer, {"a": data(), "b": data()}, losses, seed=1, **options).fit(
            num_epochs=1
        )
        return list(model.parameters())

    torch._dynamo.reset()
    for one, other in zip(fitted(), fitted(compile={"backend": "eager"}), strict=True):
        assert torch.equal(one, other)
