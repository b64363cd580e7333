"""A config of HAT's as a job: ``hatbus run config.py --stage float_trainer``.

The file is Python and is executed, as a job's entry is: run only what you trust. Each stage is
``<stage>_trainer = dict(type=..., model=..., data_loader=..., optimizer=..., callbacks=[...])``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Final

from hatbus.bus.registration import default_name
from hatbus.discovery.configs import Builder, is_config
from hatbus.errors import JobError, PluginError, did_you_mean
from hatbus.events.declare import OVERRIDABLE
from hatbus.jobs.job import Job, Plugin, Run, said
from hatbus.jobs.options import check
from hatbus.jobs.overrides import override, switch
from hatbus.jobs.references import enter

ENV: Final = "HAT_TRAINING_STEP"
"""What HAT's configs read to know which stage they are for."""
TRAINERS: Final = (
    "distributed_data_parallel_trainer",
    "DistributedDataParallelTrainer",
    "data_parallel_trainer",
    "DataParallelTrainer",
    "Trainer",
    "Calibrator",
    "Predictor",
)
_TAKEN: Final = (
    "type",
    "model",
    "model_convert_pipeline",
    "data_loader",
    "optimizer",
    "batch_processor",
    "num_epochs",
    "num_steps",
    "stop_by",
    "device",
    "callbacks",
    "train_metrics",
    "val_metrics",
    "metrics",
    "sync_bn",
    "share_callbacks",
)
_NEEDLESS: Final = (
    "find_unused_parameters",
    "resume_optimizer",
    "resume_epoch_or_step",
    "deepcopy",
)
"""What hatbus does by itself; False and None are left out of the resume of HAT's as well."""
_HATBUS_WAY: Final = {
    "resume_optimizer": "-o run.resume=auto goes on with all of a run, bit for bit",
    "resume_epoch_or_step": "-o run.resume=auto goes on with all of a run, bit for bit",
    "resume_dataloader": "-o run.resume=auto goes on with all of a run, bit for bit",
    "log_interval": "StatsMonitor(log_freq=...) among the callbacks",
    "profiler": "hatbus run ... --profile, or profiler=... of a Validation",
    "skip_step": "a callback whose skip_batch says so (docs/events.md)",
    "task_sampler": "Trainer(task_sampler=...) in a job's entry function",
    "convert_submodule_list": "FuseBN(modules=...) or a callable among the converters",
    "val_data_loader": "Validation(data_loader=...) among the callbacks",
    "val_model": "Validation(val_model=...) among the callbacks",
}
"""What a stage may have in HAT, and where it is in hatbus."""
_PROCESSORS_OWN: Final = {
    "enable_amp": "-o run.precision=fp16",
    "enable_apex": "-o run.precision=fp16",
    "grad_accumulation_step": "-o run.accumulate=N",
}


class Stage(Job):
    """A stage as a job. ``parts`` holds what the config says of model, data and the like."""

    parts: dict[str, Any]
    file: Path

    def origin_of_stage(self) -> dict[str, str]:
        """The config and the stage."""
        return {"config": str(self.file), "stage": self.run.entry.partition(":")[2]}

    def to_tables(self) -> dict[str, Any]:
        """The tables of ``job.json``: what hatbus was told, and where the rest stands."""
        return {"run": super().to_tables()["run"], "plugins": {}}


def read_stage(
    path: Path | str,
    stage: str | None,
    plugins: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> tuple[Stage, list[str]]:
    """Executes a config, and takes one stage out of it.

    Args:
        path: of the config.
        stage: name of a dict in it, as ``float_trainer``, or ``float``; None for the only one.
        plugins: as for ``hatbus.jobs.job.read_job``.
        options: the same.

    Returns:
        The stage, and what was not taken over, a line each, with the way to have it in hatbus.

    Raises:
        JobError: there is no such file or stage, or it cannot be used; a line for each fault.
    """
    file = Path(path)
    name, config = _stage_of(file, stage)
    where = f"in {file.name} {name}"
    problems: list[str] = []
    told = _not_taken(config, where, problems)
    tables = {"run": _run_table(config, where, told), "plugins": _plugin_tables(config, problems)}
    tables["run"]["run_dir"] = str(Path("runs") / file.parent.resolve().name / name)
    added = switch(tables["plugins"], plugins, problems)
    override(tables, options, problems)
    tables["run"].pop("entry", None)
    values, found = check(Run, {"entry": f"{file.name}:{name}", **tables["run"]}, where, what="key")
    problems += found
    job = Stage(file.name, file.parent, Run(**values))
    job.parts, job.file = config, file.resolve()
    job.source, job.changes = file.resolve().with_name(job.run.entry), said(plugins, options)
    for instance, table in tables["plugins"].items():
        place = f"in -p {instance}" if instance in added else f"{where}: callbacks"
        job.plugins[instance] = _plugin_of(instance, table, place)
    if problems:
        raise JobError("\n".join(problems))
    return job, told


def _stage_of(file: Path, stage: str | None) -> tuple[str, dict[str, Any]]:
    if not file.is_file():
        raise JobError(f"no config {str(file)!r}")
    names = _executed(file, stage)
    known = [n for n, v in names.items() if isinstance(v, dict) and _is_stage(n, v)]
    if stage is None:
        if len(known) != 1:
            given = ", ".join(map(repr, known)) or "none"
            raise JobError(f"{file.name} holds several stages, give one: --stage ({given})")
        stage = known[0]
    for name in (stage, f"{stage}_trainer", f"{stage}_predictor"):
        if name in known:
            return name, dict(names[name])
    raise JobError(f"{file.name} has no stage {stage!r}{did_you_mean(stage, known)}")


def _is_stage(name: str, value: dict[str, Any]) -> bool:
    return name.endswith(("_trainer", "_predictor", "_solver")) or (
        "callbacks" in value and "model" in value
    )


def _executed(file: Path, stage: str | None) -> dict[str, Any]:
    """The names of a config that was executed for one stage, whatever was executed before."""
    if stage is not None:
        os.environ[ENV] = stage.removesuffix("_trainer").removesuffix("_predictor")
    enter(file.parent.resolve())
    name = f"{file.stem}_{stage or 'config'}"
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise JobError(f"{str(file)!r} is no Python file")
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        error.add_note(f"while the config {str(file)!r} was executed")
        raise
    return vars(module)


def _not_taken(config: Mapping[str, Any], where: str, problems: list[str]) -> list[str]:
    told = []
    for key, value in config.items():
        if key in _TAKEN or (key in _NEEDLESS and not value):
            continue
        if key in _HATBUS_WAY or key in _NEEDLESS:
            if value not in (None, False):
                way = _HATBUS_WAY.get(key, "nothing to do: hatbus sees to it")
                told.append(f"{key} {where} is not taken over; in hatbus: {way}")
            continue
        known = (*_TAKEN, *_HATBUS_WAY)
        problems.append(f"unknown key {key!r} {where}{did_you_mean(key, known)}")
    kind = config.get("type")
    if isinstance(kind, str) and kind not in TRAINERS:
        problems.append(f"unknown trainer {kind!r} {where}{did_you_mean(kind, TRAINERS)}")
    if "model" not in config:
        problems.append(f"missing key 'model' {where}")
    return told


def _run_table(config: Mapping[str, Any], where: str, told: list[str]) -> dict[str, Any]:
    """What the stage says of the run's length, device and precision."""
    table: dict[str, Any] = {}
    by_step = config.get("stop_by") == "step" or config.get("num_epochs") is None
    plan = "num_steps" if by_step and config.get("num_steps") else "num_epochs"
    table[plan] = config.get(plan) or 1
    if config.get("device") not in (None, "cuda"):
        device = config["device"]
        table["device"] = f"cuda:{device}" if isinstance(device, int) else str(device)
    processor: Any = config.get("batch_processor")
    if is_config(processor):
        if processor.get("enable_amp") or processor.get("enable_apex"):
            half = str(processor.get("enable_amp_dtype", "float16"))
            table["precision"] = "bf16" if "bfloat16" in half else "fp16"
        table["accumulate"] = processor.get("grad_accumulation_step") or 1
        if processor.get("grad_scaler") is not None:
            told.append(
                f"batch_processor: grad_scaler {where} is not taken over; in hatbus: precision "
                "fp16 has torch's own, which is saved and resumed"
            )
    return table


def _plugin_tables(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """A table per callback; ``use`` is its class, and the options are those of the config."""
    tables: dict[str, Any] = {}
    builder = Builder("callbacks")
    given = config.get("callbacks") or ()
    for place, one in enumerate(given if isinstance(given, (list, tuple)) else [given]):
        if one is None:
            continue
        if not is_config(one):
            tables[_free(default_name(one), tables)] = {"use": one}
            continue
        options = dict(one)
        try:
            cls = builder.find(options.pop("type"))
        except PluginError as error:
            way = "; take it out, or give type a class of your own (CallbackMixin)"
            problems.append(f"callbacks[{place}]: {str(error).removeprefix('callbacks: ')}{way}")
            continue
        tables[_free(default_name(cls), tables)] = {"use": cls, **options}
    return tables


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """A name of its own: the second of a kind is ``name_2``."""
    names = (name if n == 1 else f"{name}_{n}" for n in range(1, len(taken) + 2))
    return next(one for one in names if one not in taken)


def _plugin_of(name: str, table: Mapping[str, Any], where: str) -> Plugin:
    options = dict(table)
    enabled = bool(options.pop("enabled", True))
    use = options.pop("use", name)
    filters = {key: options.pop(key) for key in OVERRIDABLE if key in options}
    plugin = Plugin(enabled=enabled, options=options, where=where, **filters)
    if isinstance(use, str):
        use = Builder("callbacks").find(use)
    plugin.use = default_name(use)
    plugin.options["type"] = use
    return plugin


def processor_of(config: Mapping[str, Any]) -> Any:
    """The stage's batch processor as a config, without what the run has taken of it."""
    given: Any = config.get("batch_processor")
    if not is_config(given):
        return given
    own = (*_PROCESSORS_OWN, "grad_scaler")
    return {key: value for key, value in given.items() if key not in own}
