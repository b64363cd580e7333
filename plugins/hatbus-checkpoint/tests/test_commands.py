"""The commands about checkpoints, and the files they write for others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from runs import Net, run, trainer_of

sys.path.pop(0)

from hatbus.cli import main
from hatbus.errors import CheckpointError
from hatbus.runs import run_folder
from hatbus_checkpoint.exchange import read_hat
from hatbus_checkpoint.folder import CheckpointFolder

ENTRY = """
import torch
from hatbus.data import loader

def build(lr: float = 0.1):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    inputs = torch.randn(12, 3)
    data = loader(torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True)), 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, optimizer, data, torch.nn.functional.mse_loss
"""
COUNTING = """
from hatbus import hookimpl

class Counting:
    count = 0

    @hookimpl
    def on_step_end(self):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]
"""
OPTIONAL = """
from hatbus import hookimpl, plugin

@plugin(stage="train")
class Optional:
    def __init__(self, most: float | None = 2.0):
        self.most = most

    @hookimpl
    def on_step_end(self):
        pass
"""
JOB = """
[run]
entry = "train.py:build"
num_epochs = 1
[plugins.checkpoint]
save_dir = "checkpoints"
save_hash = false
"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run(tmp_path / "saved", 6, save_interval=3, save_hash=False)
    return tmp_path / "saved"


def test_the_list_shows_every_checkpoint_and_the_pointers(saved: Path, capsys: Any) -> None:
    assert main(["checkpoints", str(saved)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["checkpoint-step-6", "checkpoint-step-3"]
    assert lines[1].endswith("last")


def test_verify_names_what_is_damaged_and_ends_with_4(saved: Path, capsys: Any) -> None:
    assert main(["checkpoints", str(saved), "verify"]) == 0
    assert capsys.readouterr().out.count("verified") == 2
    (saved / "checkpoint-step-3" / "optim.json").write_bytes(b"{}")
    assert main(["checkpoints", str(saved), "verify"]) == 4
    assert "'optim.json' has 2 bytes, not" in capsys.readouterr().out


def test_show_has_settings_metrics_plugins_and_files(saved: Path, capsys: Any) -> None:
    assert main(["checkpoints", str(saved), "show"]) == 0
    out = capsys.readouterr().out
    for text in ("checkpoint-step-6: verified", "seed: 3", "sum:", "schedule", "model.safetensors"):
        assert text in out
    assert main(["checkpoints", str(saved), "show", "checkpoint-step-3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["progress"]["global_step"] == 3


def test_diff_names_what_changed(saved: Path, capsys: Any) -> None:
    names = ["checkpoint-step-3", "checkpoint-step-6"]
    assert main(["checkpoints", str(saved), "diff", *names]) == 0
    out = capsys.readouterr().out
    assert "progress.global_step: 3 -> 6" in out
    assert "file model.safetensors: changed" in out
    assert "settings" not in out


def test_an_unknown_checkpoint_gets_the_closest_name(saved: Path, capsys: Any) -> None:
    assert main(["checkpoints", str(saved), "show", "checkpoint-step-33"]) == 4
    assert "did you mean 'checkpoint-step-3'?" in capsys.readouterr().err


def test_last_and_best_stand_for_what_is_marked_so(
    saved: Path, tmp_path: Path, capsys: Any
) -> None:
    for what in ("show", "verify"):
        assert main(["checkpoints", str(saved), what, "last"]) == 0
        assert "checkpoint-step-6" in capsys.readouterr().out
    target = str(tmp_path / "out.safetensors")
    assert main(["export", str(saved), "--name", "best", "--single", target]) == 4
    expected = "no checkpoints are marked 'best'; give one by its name: 'checkpoint-step-6', "
    assert expected in capsys.readouterr().err
    CheckpointFolder(saved).point("best", "checkpoint-step-3")
    assert main(["export", str(saved), "--name", "best", "--single", target]) == 0
    assert "from checkpoint-step-3" in capsys.readouterr().out


def test_one_file_of_weights_loads_strictly(saved: Path, tmp_path: Path) -> None:
    assert main(["export", str(saved), "--single", str(tmp_path / "out.safetensors")]) == 0
    Net().load_state_dict(load_file(tmp_path / "out.safetensors"), strict=True)


def test_a_file_of_weights_that_nobody_would_read_as_one_is_refused(
    saved: Path, tmp_path: Path, capsys: Any
) -> None:
    target = tmp_path / "out.pt"
    assert main(["export", str(saved), "--single", str(target)]) == 2
    assert "accepted: a name that ends in .safetensors" in capsys.readouterr().err
    assert not target.exists()


def test_hats_file_round_trips_and_starts_a_run(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.pth.tar"
    assert main(["export", str(saved), "--name", "checkpoint-step-3", "--hat", str(target)]) == 0
    found = read_hat(target)
    assert (found["epoch"], found["step"]) == (0, 3)
    options = {"resume": str(target), "hat_optimizer": True}
    trainer = trainer_of(tmp_path / "new", save_interval=None, average=False, **options)
    trainer.bus.unregister("schedule")
    model, optimizer = trainer.ctx.model, trainer.ctx.optimizer
    begun: dict[str, Any] = {}

    from hatbus import hookimpl

    class Looks:
        @hookimpl
        def on_step_begin(self, global_step_id: int) -> None:
            if global_step_id == 0:
                begun["weight"] = model.head.weight.detach().clone()
                begun["moment"] = optimizer.state[model.head.weight]["exp_avg"].clone()

    trainer.bus.register(Looks(), "looks")
    trainer.fit(num_steps=1)
    assert begun["weight"].equal(found["state_dict"]["head.weight"])
    index = [n for n, _ in model.named_parameters()].index("head.weight")
    assert begun["moment"].equal(found["optimizer"]["state"][index]["exp_avg"])


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/hatbus-evil"),))


def test_nothing_in_a_file_is_ever_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "x": Evil()}, tmp_path / "evil.pth.tar")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_hat(tmp_path / "evil.pth.tar")
    assert not Path("/tmp/hatbus-evil").exists()
    for garbage in (b"", b"PK\x03\x04", b"\x80\x04.", b"garbage" * 50):
        (tmp_path / "bad.pth.tar").write_bytes(garbage)
        with pytest.raises(CheckpointError, match=r"cannot be read|no 'state_dict'"):
            read_hat(tmp_path / "bad.pth.tar")


def test_a_run_is_resumed_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(ENTRY)
    (tmp_path / "job.toml").write_text(JOB)
    assert main(["run", "job.toml", "-o", "run.run_dir=here"]) == 0
    assert main(["resume", "here", "-o", "run.num_epochs=3"]) == 0
    assert "resumed from" in capsys.readouterr().err
    steps = sorted(p.name for p in Path("checkpoints").glob("checkpoint-epoch-*"))
    assert steps == ["checkpoint-epoch-0001", "checkpoint-epoch-0002", "checkpoint-epoch-0003"]
    job = run_folder(Path("here")) / "job.json"
    before = job.read_text()
    change = ["-o", "run.num_epochs=4", "-o", "run.args.lr=0.2"]
    assert main(["resume", "here", *change]) == 4
    assert "optimizer.lr: 0.1 -> 0.2" in capsys.readouterr().err
    assert job.read_text() == before
    assert main(["resume", "here", *change, "--override", "optimizer.lr"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "since the check" in line]
    assert told == ["since the checkpoint: run.args.lr: its default -> 0.2"]
    assert main(["resume", "here", "-o", "run.num_epochs=5", "-o", "run.args.lr=0.2"]) == 0
    assert "since the checkpoint" not in capsys.readouterr().err
    assert json.loads(job.read_text())["run"]["num_epochs"] == 5
    assert len(list(Path("here").glob("2*"))) == 1


def test_an_option_that_was_not_given_is_shown_as_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(ENTRY + OPTIONAL)
    optional = '[plugins.optional]\nuse = "train.py:Optional"\n'
    (tmp_path / "job.toml").write_text(f"{JOB}save_interval = 1\n{optional}")
    assert main(["run", "job.toml"]) == 0
    (tmp_path / "job.toml").write_text(f"{JOB}{optional}most = 1.0\n")
    again = ["run", "job.toml", "-o", "run.num_epochs=2", "-o", 'run.resume="auto"']
    assert main(again) == 4
    assert "optional.most: its default -> 1.0; put it back" in capsys.readouterr().err
    assert main([*again, "--override", "optional.most"]) == 0
    told = capsys.readouterr().err
    assert "since the checkpoint: plugin 'checkpoint': option 'save_interval': 1 -> its" in told
    assert "going on with another optional.most: its default -> 1.0; not bit-exact" in told


def test_a_run_that_resumes_takes_what_a_refusal_recommends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(ENTRY + COUNTING)
    job = JOB.replace("[plugins.checkpoint]", '[plugins.safe]\nuse = "checkpoint"')
    (tmp_path / "job.toml").write_text(job + '[plugins.counting]\nuse = "train.py:Counting"\n')
    assert main(["run", "job.toml", "-o", "run.run_dir=.", "-o", "run.name=here"]) == 0
    again = ["run", "job.toml", "-o", "run.num_epochs=2", "-p", "no:counting"]
    again += ["-o", "run.run_dir=.", "-o", "run.name=here"]
    faster = ["-o", "run.args.lr=0.2", "--override", "optimizer.lr"]
    assert main([*again, *faster]) == 2
    assert "for a resume, and the job starts anew; add -o run.resume" in capsys.readouterr().err
    again += ["-o", "run.resume=auto"]
    assert main([*again, *faster[:2]]) == 4
    way = "--override optimizer.lr, or checkpoint's option override = ['optimizer.lr']"
    assert way in capsys.readouterr().err
    assert main([*again, *faster]) == 4
    way = "--drop-plugin-state counting, or checkpoint's option drop_plugin_state = ['counting']"
    assert way in capsys.readouterr().err
    assert main([*again, *faster, "--drop-plugin-state", "counting"]) == 0
    assert "resumed from" in capsys.readouterr().err
    assert main([*again, *faster, "-p", "no:safe"]) == 2
    assert "job.toml has no plugin 'checkpoint'" in capsys.readouterr().err


@pytest.mark.parametrize("moved", ["run.run_dir=there", "checkpoint.save_dir=there/checkpoint"])
def test_a_run_goes_on_in_another_folder_and_leaves_its_own_as_it_is(
    moved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(ENTRY)
    (tmp_path / "job.toml").write_text(JOB.replace('save_dir = "checkpoints"\n', ""))
    assert main(["run", "job.toml", "-o", "run.run_dir=.", "-o", "run.name=here"]) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("here/checkpoint").rglob("*")}
    assert main(["resume", "here", "-o", "run.num_epochs=2", "-o", moved]) == 0
    assert "resumed from 'here/checkpoint/checkpoint-epoch-0001'" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path("here/checkpoint").rglob("*")} == before
    (there,) = (
        Path("there").glob("here/checkpoint") if "run_dir" in moved else [Path("there/checkpoint")]
    )
    assert [p.name for p in there.glob("*-0*")] == ["checkpoint-epoch-0002"]
    if moved.startswith("run."):
        assert main(["resume", "there", "-o", "run.num_epochs=3"]) == 0
        assert f"resumed from '{there}/checkpoint-epoch-0002'" in capsys.readouterr().err


def test_a_run_goes_on_in_its_own_folder_however_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(ENTRY)
    (tmp_path / "job.toml").write_text(JOB.replace('save_dir = "checkpoints"\n', ""))
    assert main(["run", "job.toml", "-o", "run.run_dir=here"]) == 0
    (own,) = Path("here").glob("2*")
    for number, way in enumerate(["here", "here/latest", str(own), str(own.absolute())]):
        assert main(["resume", way, "-o", f"run.num_epochs={number + 2}"]) == 0
        assert len(list(own.glob("checkpoint/*-0*"))) == number + 2
        assert json.loads((own / "job.json").read_text())["run"]["resume"] == "auto"
    assert list(Path("here").glob("2*")) == [own]
    assert main(["resume", "here", "-p", "no:checkpoint"]) == 2
    assert "has no plugin 'checkpoint', so nothing was saved" in capsys.readouterr().err


def test_a_signal_to_save_before_the_loop_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sends = """
import os, signal
assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
os.kill(os.getpid(), signal.SIGUSR1)
"""
    (tmp_path / "early.py").write_text(ENTRY + sends)
    (tmp_path / "job.toml").write_text(JOB.replace("train.py", "early.py"))
    assert main(["run", "job.toml", "--quiet"]) == 0


def test_a_run_that_is_told_to_stop_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    stops = """
import os, signal

def ended(model_outs, target):
    os.kill(os.getpid(), signal.SIGTERM)
    return torch.nn.functional.mse_loss(model_outs, target)
"""
    entry = ENTRY.replace("torch.nn.functional.mse_loss\n", "ended\n")
    (tmp_path / "stops.py").write_text(entry + stops)
    (tmp_path / "job.toml").write_text(JOB.replace("train.py", "stops.py"))
    with pytest.raises(SystemExit) as caught:
        main(["run", "job.toml", "-o", "run.run_dir=.", "-o", "run.name=here"])
    assert caught.value.code == 75
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "stopped by SIGTERM, state saved; go on with `hatbus resume here`"


def test_a_runs_folder_stands_for_the_checkpoints_in_it(
    saved: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "run").mkdir()
    saved.rename(tmp_path / "run" / "checkpoint")
    assert main(["checkpoints", str(tmp_path / "run")]) == 0
    assert "checkpoint-step-6" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "run"), "--single", str(tmp_path / "out")]) == 0
    trainer = trainer_of(tmp_path / "new", resume=str(tmp_path / "run"), save_interval=None)
    trainer.fit(num_steps=7)
    assert trainer.ctx.updates == 7
    (tmp_path / "run" / "other" / "checkpoint-step-1").mkdir(parents=True)
    assert main(["checkpoints", str(tmp_path / "run")]) == 4
    assert "holds several folders of checkpoints" in capsys.readouterr().err


def test_the_list_has_a_column_for_the_metric_that_decides_on_best(
    tmp_path: Path, capsys: Any
) -> None:
    run(tmp_path, 6, save_interval=3, save_hash=False, mode="max", monitor_metric_key="sum")
    capsys.readouterr()
    assert main(["checkpoints", str(tmp_path)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "epoch", "step", "size", "sum", "state"]
    found = [e.manifest["metrics"]["sum"] for e in CheckpointFolder(tmp_path).entries()]
    assert [float(row.split()[5]) for row in rows] == pytest.approx(found, rel=1e-5)


def test_a_folder_that_is_no_run_is_told(tmp_path: Path, capsys: Any) -> None:
    assert main(["resume", str(tmp_path)]) == 2
    assert "no job.json in" in capsys.readouterr().err


def test_of_many_checkpoints_five_are_named(tmp_path: Path, capsys: Any) -> None:
    run(tmp_path / "many", 7, save_interval=1, save_hash=False)
    target = str(tmp_path / "x.safetensors")
    assert main(["export", str(tmp_path / "many"), "--name", "best", "--single", target]) == 4
    assert capsys.readouterr().err.endswith("'checkpoint-step-3' and 2 more\n")
