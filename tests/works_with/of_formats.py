"""Pairs with what reads a run's records, and with the formats that it writes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hatbus.callbacks import SaveTraced, TensorBoard
from hatbus_checkpoint.folder import CheckpointFolder
from works_with.pair import Pair
from works_with.small import EPOCHS, STEPS, Plain, batches

KIND = "Readers and formats"
ALL = list(range(EPOCHS * STEPS))
"""Every step, once: a killed run wrote one that the run that went on makes again."""


def board(_: Path) -> dict[str, Any]:
    return {"plugins": {"board": TensorBoard("board")}}


def reader(library: str, name: str, steps: Callable[[Path], list[int]]) -> Pair:
    """A reader of event files, which has to show every step of the loss once."""

    def looks(_: Any, place: Path) -> list[int]:
        found = steps(place / "board")
        assert found == ALL, f"it shows {found}"
        return found

    return Pair(KIND, library, name, board, looks=looks)


def importable(folder: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Scalars("loss")]


def of_page(folder: Path) -> list[int]:
    from tensorboard.backend.event_processing import plugin_event_accumulator

    events = plugin_event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Tensors("loss")]


def served(fast: str) -> Callable[[Path], list[int]]:
    """What TensorBoard's page shows, over HTTP."""

    def steps(folder: Path) -> list[int]:
        with serving(folder, f"--load_fast={fast}") as url:
            return [step for _, step, _ in asked(url, "scalars", run=".", tag="loss")]

    return steps


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """TensorBoard's server on a folder, once it has read it; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--port", str(port), "--host", "127.0.0.1", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/data/plugin/scalars"
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and not has_read(url):
            time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def has_read(url: str) -> bool:
    try:
        points = asked(url, "scalars", run=".", tag="loss")
    except OSError:
        return False
    return bool(points) and points[-1][1] == ALL[-1]


def asked(url: str, what: str, **query: str) -> Any:
    address = f"{url}/{what}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


def parsed(folder: Path) -> list[int]:
    from tbparse import SummaryReader

    found = SummaryReader(str(folder), extra_columns={"wall_time"}).scalars
    return sorted(found[found.tag == "loss"].step.tolist())


def reduced(folder: Path) -> list[int]:
    import tensorboard_reducer

    frames = tensorboard_reducer.load_tb_events([str(folder)], verbose=False)
    return [int(step) for step in frames["loss"].index]


def output_of(call: Callable[[torch.Tensor], Any]) -> str:
    """What a model gives for the first batch, in full."""
    inputs, _ = batches()[0]
    with torch.no_grad():
        return repr(torch.as_tensor(call(inputs)).flatten().tolist())


def same(call: Callable[[torch.Tensor], Any], trainer: Any, tolerance: float = 0.0) -> str:
    """The outputs of what was written, which are the model's."""
    inputs, _ = batches()[0]
    with torch.no_grad():
        expected, found = trainer.ctx.model.eval()(inputs), torch.as_tensor(call(inputs))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    return output_of(call)


def traced(*formats: str) -> Callable[[Path], dict[str, Any]]:
    def parts(_: Path) -> dict[str, Any]:
        save = SaveTraced("traced", (batches()[0][0],), formats=list(formats))
        return {"model": Plain(), "plugins": {"traced": save}}

    return parts


def look_at_traced(trainer: Any, place: Path) -> str:
    (file,) = (place / "traced").glob("*.pt")
    return same(torch.jit.load(str(file)), trainer)


def look_at_exported(trainer: Any, place: Path) -> str:
    (file,) = (place / "traced").glob("*.pt2")
    return same(torch.export.load(str(file)).module(), trainer, 1e-6)


def look_at_weights(trainer: Any, place: Path) -> str:
    """The weights of the last checkpoint, read by safetensors alone."""
    from safetensors.torch import load_file

    newest = CheckpointFolder(place / "checkpoints").latest()
    assert newest is not None
    model = Plain()
    model.load_state_dict(load_file(newest.path / "model.safetensors"))
    return same(model.eval(), trainer)


def look_at_onnx(trainer: Any, place: Path) -> str:
    import onnx
    import onnxruntime

    file = str(place / "model.onnx")
    torch.onnx.export(
        trainer.ctx.model.eval(), (batches()[0][0],), file, dynamo=True, verbose=False
    )
    onnx.checker.check_model(onnx.load(file))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return same(lambda inputs: session.run(None, {name: inputs.numpy()})[0], trainer, 1e-5)


def plain(_: Path) -> dict[str, Any]:
    return {"model": Plain()}


PAIRS = [
    reader("tensorboard", "event_accumulator.EventAccumulator", importable),
    reader("tensorboard", "plugin_event_accumulator.EventAccumulator", of_page),
    reader("tensorboard", "its page, read by the data server", served("true")),
    reader("tensorboard", "its page, read by Python", served("false")),
    reader("tbparse", "SummaryReader", parsed),
    reader("tensorboard-reducer", "load_tb_events", reduced),
    Pair(KIND, "torch", "save_traced as .pt", traced("pt"), looks=look_at_traced),
    Pair(KIND, "torch", "save_traced as .pt2", traced("pt2"), looks=look_at_exported),
    Pair(KIND, "safetensors", "the checkpoint's model", plain, looks=look_at_weights),
    Pair(KIND, "onnxruntime", "torch.onnx.export of the model", plain, looks=look_at_onnx),
]
