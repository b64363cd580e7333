"""The same plugins in five loops, with the libraries themselves: `tox -e hosts`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import host_loops as loops
import host_nine
import pytest
import torch
from host_loops import HOSTS, STEPS, new_model
from host_nine import assert_same, nine, what_is_left
from host_run import FOREIGN, Counts, run

from hatbus import HatbusError, Trainer, hookimpl, plugin

TESTS = Path(loops.__file__).parent


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def in_hatbus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, model = tmp_path_factory.mktemp("hatbus"), new_model()
    plugins = nine(folder)
    loops.in_hatbus(model, plugins, 2)
    return what_is_left(model, plugins, folder)


@pytest.mark.parametrize("host", HOSTS)
def test_nine_plugins_leave_the_same_in_every_loop(
    host: str, in_hatbus: dict[str, Any], tmp_path: Path
) -> None:
    plugins = nine(tmp_path)
    model, _ = run(host, plugins, tmp_path)
    assert_same(in_hatbus, what_is_left(model, plugins, tmp_path), host)
    assert len(in_hatbus["rows"]) == 2 * STEPS
    assert in_hatbus["frozen"] == ["body.0.weight", "body.0.bias"]


@pytest.mark.parametrize("host", FOREIGN)
def test_plugins_change_nothing_that_they_do_not_mean_to(host: str, tmp_path: Path) -> None:
    plugins = nine(tmp_path)
    for name in ("grad_clip", "freeze_module"):
        del plugins[name]
    with_plugins, _ = run(host, plugins, tmp_path / "a")
    without, _ = run(host, {}, tmp_path / "b")
    assert_same(dict(without.state_dict()), dict(with_plugins.state_dict()))


def accumulated(host: str) -> dict[str, Any]:
    return {
        "transformers": {"arguments": {"gradient_accumulation_steps": 2}},
        "lightning": {"trainer": {"accumulate_grad_batches": 2}},
        "ignite": {"accumulate": 2},
        "accelerate": {"accumulate": 2},
    }[host]


@pytest.mark.parametrize("host", FOREIGN)
def test_a_step_of_several_batches_is_one_step(host: str, tmp_path: Path) -> None:
    counts, theirs = Counts(), Counts()
    model, _ = run(host, {"counts": counts}, tmp_path, **accumulated(host))
    own = new_model()
    data = loops.new_loader()
    trainer = Trainer(own, loops.new_optimizer(own), data, plugins=[theirs], accumulate=2)
    trainer.fit(num_epochs=2)
    assert (counts.batches, counts.steps) == (2 * STEPS, STEPS) == (theirs.batches, theirs.steps)
    assert counts.losses == pytest.approx(theirs.losses, rel=1e-6)  # halves are added elsewhere
    for name, one in own.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], one, rtol=1e-5, atol=1e-6)


# ---- kill -9 -------------------------------------------------------------------------------------


def script(host: str, folder: Path, how: str) -> int:
    folder.mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "ignore", str(TESTS / "host_killed.py"), host, str(folder), how]
    return subprocess.run(words, env=env, capture_output=True, timeout=280, check=False).returncode


@pytest.mark.parametrize("host", HOSTS)
def test_a_run_that_is_killed_goes_on_in_the_hosts_own_way(host: str, tmp_path: Path) -> None:
    assert script(host, tmp_path / "a", "whole") == 0
    assert script(host, tmp_path / "b", "kill") == -signal.SIGKILL
    assert script(host, tmp_path / "b", "resume") == 0
    whole = torch.load(tmp_path / "a/whole.pt")
    again = torch.load(tmp_path / "b/resume.pt")
    assert_same(whole, again, host)


def test_a_checkpoint_that_was_moved_is_found_by_its_path(tmp_path: Path) -> None:
    from host_resume import SAVED, start

    start("transformers", {"stranger": host_nine.Stranger()}, tmp_path / "old")
    saved = tmp_path / "old" / f"checkpoint-{SAVED}"
    stranger = host_nine.Stranger()
    moved = tmp_path / "elsewhere" / f"checkpoint-{SAVED}"
    moved.parent.mkdir()
    saved.rename(moved)
    options = {"arguments": {"output_dir": str(tmp_path / "new")}, "resume": moved}
    with pytest.raises(HatbusError, match=r"states of step 8 are not here.*states='"):
        run("transformers", {"stranger": host_nine.Stranger()}, tmp_path, **options)
    run("transformers", {"stranger": stranger}, tmp_path, states=moved / "hatbus.pt", **options)
    assert stranger.steps == 2 * STEPS


def test_callbacks_that_transformers_makes_anew_are_the_same_host(tmp_path: Path) -> None:
    from host_resume import SAVED, start

    start("transformers", {"stranger": host_nine.Stranger()}, tmp_path)
    stranger = host_nine.Stranger()
    loops.in_transformers(
        new_model(),
        {"stranger": stranger},
        2,
        folder=tmp_path,
        arguments={"restore_callback_states_from_checkpoint": True},
        resume=tmp_path / f"checkpoint-{SAVED}",
    )
    assert stranger.steps == 2 * STEPS


@pytest.mark.parametrize("host", FOREIGN)
def test_a_plugin_of_hatbus_that_validates_does_so_there(host: str, tmp_path: Path) -> None:
    from hatbus.callbacks import Validation

    @plugin(stage="report")
    class Finds:
        found: list[float]

        @hookimpl
        def on_validation_end(self, ctx: Any) -> None:
            self.found.append(float(ctx.latest["val/loss"]))

    finds = Finds()
    finds.found = []
    options = {"with_loss": False} if host == "ignite" else {}  # which takes pairs
    run(host, [Validation(loops.new_loader(8)), finds], tmp_path, **options)
    assert len(finds.found) == 2
    assert finds.found[0] != finds.found[1]
