"""A config in HAT's form runs stage by stage, and goes on after a kill, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hatbus.cli import main
from hatbus.errors import JobError
from hatbus.jobs.hat_config import read_stage

DIGITS = Path(__file__).parents[2] / "docs/examples/digits"
STAGES = ("float_trainer", "qat_trainer", "int_infer_trainer")
ACC = "val/Validation digits/Acc"


def started(folder: Path, stage: str, *words: str) -> subprocess.Popen[bytes]:
    """``hatbus run config.py --stage ...`` as a process of its own."""
    command = [sys.executable, "-m", "hatbus", "run", "config.py", "--stage", stage, *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finished(process: subprocess.Popen[bytes]) -> str:
    out = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, out
    return out


def killed_after(process: subprocess.Popen[bytes], there: Path, pattern: str) -> None:
    """Kills the process as soon as a file is there; it is still at work then."""
    end = time.monotonic() + 100
    while not any(there.glob(pattern)):
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def weights(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The weights of the stage's last checkpoint."""
    name = json.loads((folder / f"models/{prefix}checkpoint-last.json").read_text())["path"]
    return dict(load_file(folder / "models" / name / "model.safetensors"))


def accuracy(folder: Path, prefix: str) -> float:
    name = json.loads((folder / f"models/{prefix}checkpoint-best.json").read_text())["path"]
    manifest = json.loads((folder / "models" / name / "MANIFEST.json").read_text())
    return float(manifest["metrics"][ACC])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """All three stages without a kill, and what the last one said."""
    folder = copied(tmp_path_factory.mktemp("whole"))
    out = ""
    for stage in STAGES:
        out = finished(started(folder, stage))
    return folder, out


def copied(folder: Path) -> Path:
    shutil.copytree(DIGITS, folder / "digits", ignore=shutil.ignore_patterns("runs", "models"))
    return folder / "digits"


def said(out: str) -> float:
    line = next(line for line in out.splitlines() if f"steps: {ACC}" in line)
    return float(line.rpartition(" ")[2])


def test_three_stages_run_by_three_commands_and_int_is_within_one_percent(
    whole: tuple[Path, str],
) -> None:
    folder, out = whole
    assert accuracy(folder, "float-") > 0.95
    assert said(out) > accuracy(folder, "float-") - 0.01
    traced = folder / "models/int_infer-deploy-checkpoint-last.pt"
    assert traced.is_file()
    assert (folder / "models/float-weights-best.safetensors").is_file()


def test_every_stage_goes_on_bit_for_bit_after_a_kill(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    reference, out = whole
    folder = copied(tmp_path)
    for stage, prefix in (("float_trainer", "float-"), ("qat_trainer", "qat-")):
        first = started(folder, stage)
        killed_after(first, folder / "models", f"{prefix}checkpoint-epoch-0001-*")
        again = finished(started(folder, stage, "-o", "run.resume=auto"))
        assert "resumed from" in again
        mine, theirs = weights(folder, prefix), weights(reference, prefix)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())
        assert accuracy(folder, prefix) == accuracy(reference, prefix)
    killed_after(started(folder, "int_infer_trainer"), folder / "runs", "*/int_infer_trainer")
    again = finished(started(folder, "int_infer_trainer", "-o", "run.resume=auto"))
    assert said(again) == said(out)
    name = "models/int_infer-deploy-checkpoint-last.pt"
    x = {"img": torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(traced(folder / name, x), traced(reference / name, x))


def traced(path: Path, inputs: Any) -> torch.Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: torch.Tensor = torch.jit.load(path)(inputs)["pred"]
    return found


def test_the_exported_int_model_is_that_of_torchs_own_convert(whole: tuple[Path, str]) -> None:
    import warnings

    folder, _ = whole
    sys.path.insert(0, str(folder))
    other = sys.modules.pop("train", None)  # another example's, if one was loaded here
    try:
        stage, _ = read_stage(folder / "config.py", "int_infer_trainer")
        make, tool = stage.parts["model"]["type"], torch.ao.quantization
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("train", None)
        if other is not None:
            sys.modules["train"] = other
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make(width=16).eval()
        groups = [[f"backbone.{n}" for n in range(k, k + 3)] for k in (0, 3)]
        model = tool.fuse_modules(model, groups).train()
        model.qconfig = tool.get_default_qat_qconfig("x86")
        model = tool.prepare_qat(model)
        model.load_state_dict(load_file(folder / "models/qat-weights-best.safetensors"))
        int8 = tool.convert(model.eval())
        x = {"img": torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))}
        expected = int8(x)["pred"]
    name = folder / "models/int_infer-deploy-checkpoint-last.pt"
    assert torch.equal(traced(name, x), expected)


CONFIG = """
import os, torch
from torch import nn
step = os.environ.get("HAT_TRAINING_STEP")
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
    def forward(self, x, y):
        return {"loss": ((self.layer(x) - y) ** 2).mean()} if self.training else self.layer(x)
data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)]
common = dict(
    type="distributed_data_parallel_trainer", model=dict(type=Net), data_loader=data,
    optimizer=dict(type=torch.optim.SGD, lr=0.1),
    batch_processor=dict(type="BasicBatchProcessor", need_grad_update=True),
    num_epochs=2, device=None,
)
float_trainer = dict(common, callbacks=[dict(type="CosLrUpdater"), dict(type="StatsMonitor")])
"""


def config(folder: Path, more: str = "") -> str:
    path = folder / "config.py"
    path.write_text(CONFIG + more)
    return str(path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HAT_TRAINING_STEP", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_a_stage_runs_by_its_short_name_and_takes_changes(here: Path) -> None:
    path = config(here)
    words = ["-p", "ema", "-p", "no:stats_monitor", "-o", "run.num_epochs=1", "-o", "ema.decay=0.5"]
    assert main(["run", path, "--stage", "float", *words]) == 0
    (run,) = (here / f"runs/{here.name}/float_trainer").glob("2*")
    told = json.loads((run / "job.json").read_text())
    assert told["run"]["num_epochs"] == 1
    assert told["hatbus"]["stage"] == "float_trainer"
    assert os.environ["HAT_TRAINING_STEP"] == "float"
    stage, _ = read_stage(path, "float_trainer", ("ema", "no:stats_monitor"), ("ema.decay=0.5",))
    assert list(stage.enabled) == ["cos_lr", "ema"]
    assert stage.plugins["ema"].options["decay"] == 0.5


def test_the_only_stage_needs_no_name_and_explain_shows_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", config(here)]) == 0
    out = capsys.readouterr().out
    assert "cos_lr" in out
    assert "stats_monitor" in out


def test_resume_of_a_folder_says_the_command(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(here)
    assert main(["run", path, "--quiet"]) == 0
    assert main(["resume", f"runs/{here.name}/float_trainer"]) == 2
    err = capsys.readouterr().err
    assert f"hatbus run {Path(path).resolve()} --stage float_trainer -o run.resume=auto" in err


def test_what_has_another_place_in_hatbus_is_named_line_by_line(here: Path) -> None:
    more = """
float_trainer.update(
    resume_optimizer=True, log_interval=10, profiler=dict(type="SimpleProfiler"),
    find_unused_parameters=False, sync_bn=True, stop_by="step", num_steps=5,
)
float_trainer["batch_processor"]["enable_amp"] = True
float_trainer["batch_processor"]["enable_amp_dtype"] = torch.bfloat16
float_trainer["batch_processor"]["grad_accumulation_step"] = 2
"""
    stage, told = read_stage(config(here, more), None)
    assert (stage.run.num_steps, stage.run.num_epochs) == (5, None)
    assert (stage.run.precision, stage.run.accumulate) == ("bf16", 2)
    assert [line.split(" ")[0] for line in told] == ["resume_optimizer", "log_interval", "profiler"]
    assert "in hatbus: -o run.resume=auto goes on with all of a run" in told[0]
    assert main(["run", config(here, more), "--quiet"]) == 0


@pytest.mark.parametrize(
    ("more", "stage", "message"),
    [
        ("", "qat_trainer", "config.py has no stage 'qat_trainer'; did you mean 'float_trainer'"),
        ("", "flaot", "no stage 'flaot'; known: 'float_trainer'"),
        ("qat_trainer = dict(common, callbacks=[])", None, "holds several stages, give one: --st"),
        ("float_trainer['modl'] = 1", None, "unknown key 'modl' in config.py float_trainer; did"),
        (
            "float_trainer['callbacks'].append(dict(type='AIDIExpModel'))",
            None,
            r"callbacks\[2\]: unknown type 'AIDIExpModel'; accepted: .*take it out, or give type",
        ),
        ("float_trainer['type'] = 'Trainr'", None, "unknown trainer 'Trainr'.*did you mean 'Trai"),
        ("float_trainer.pop('model')", None, "missing key 'model'"),
    ],
)
def test_a_mistake_in_a_config_is_told_in_one_line(
    here: Path, more: str, stage: str | None, message: str
) -> None:
    with pytest.raises(JobError, match=message) as caught:
        read_stage(config(here, f"\n{more}\n"), stage)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nowhere.py", "--stage", "float"], "no config 'nowhere.py'"),
        (["run", "config.py", "-o", "checkpoint.mode=max"], "no plugin 'checkpoint' in the job"),
        (["run", "config.py", "-o", "cos_lr.stop=1"], "CosLrUpdater: unknown option 'stop'"),
        (["run", "config.py", "-p", "emma"], "unknown type 'emma'"),
        (["run", "job.toml", "--stage", "float"], "--stage float is for a config of HAT's"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_in_one_line(
    here: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config(here)
    (here / "job.toml").write_text('[run]\nentry = "config.py:build"\nnum_epochs = 1\n')
    assert main(words) == 2
    assert message in capsys.readouterr().err


CALIBRATION = """
class Stubbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant = torch.ao.quantization.QuantStub()
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        self.dequant = torch.ao.quantization.DeQuantStub()
    def forward(self, x, y):
        return self.dequant(self.layer(self.quant(x)))
seen = []
def update(metrics, batch, model_outs):
    metrics[0].update(model_outs.mean())
calibration_trainer = dict(
    type="Calibrator", model=dict(type=Stubbed), data_loader=data, num_steps=3, device=None,
    model_convert_pipeline=dict(
        type="ModelConvertPipeline", converters=[dict(type="Float2Calibration")]),
    batch_processor=dict(type="BasicBatchProcessor", need_grad_update=False),
    callbacks=[dict(type="Checkpoint", save_dir="models", name_prefix="calibration-",
                    interval_by="step", save_hash=False)],
)
float_predictor = dict(
    type="Predictor", model=dict(type=Stubbed), data_loader=[data], device=None,
    batch_processor=dict(type="BasicBatchProcessor", need_grad_update=False),
    callbacks=[dict(type="MetricUpdater", metrics=[dict(type="mean")], metric_update_func=update)],
)
"""


def test_a_calibration_sees_ranges_and_moves_no_weight(here: Path) -> None:
    assert main(["run", config(here, CALIBRATION), "--stage", "calibration", "--quiet"]) == 0
    first, last = (
        load_file(here / f"models/calibration-checkpoint-step-{n}/model.safetensors")
        for n in (1, 3)
    )
    assert torch.equal(first["layer.0.weight"], last["layer.0.weight"])
    name = "quant.activation_post_process.activation_post_process.max_val"
    assert torch.isfinite(first[name]).all()
    assert not torch.equal(first[name], last[name])


def test_a_predictor_is_a_validation_of_its_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", config(here, CALIBRATION), "--stage", "float_predictor"]) == 0
    assert "val/mean" in capsys.readouterr().out


def test_the_page_for_hats_users_shows_the_whole_config() -> None:
    page = (DIGITS.parents[1] / "coming-from-hat.md").read_text("utf-8")
    text = (DIGITS / "config.py").read_text("utf-8")
    shown = ""
    for _, _, rest in (
        part.partition("config.py\n") for part in page.split("{literalinclude}")[1:]
    ):
        words = dict(line[1:].split(": ", 1) for line in rest.partition("```")[0].splitlines())
        start = text.index(words["start-at"])
        end = text.index(words["end-before"], start) if "end-before" in words else len(text)
        shown += text[start:end]
    body = text[text.index("training_step =") :]
    classes = body[body.index("class Digits") : body.index("model = dict(")]
    assert shown == body.replace(classes, "")
    assert all(f"hatbus run config.py --stage {stage}\n" in page for stage in STAGES)
