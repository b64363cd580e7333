"""From a stage of a HAT config to a trainer. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from hatbus.batches.batch_processor import BatchProcessor
from hatbus.batches.hat_processors import PROCESSORS
from hatbus.batches.parts import built_optimizer
from hatbus.discovery.configs import Builder, is_config
from hatbus.errors import JobError
from hatbus.events.declare import declaration_of, hookimpl
from hatbus.jobs.hat_config import Stage, processor_of, read_stage
from hatbus.jobs.jobrun import Own, Prepared, seed_everything
from hatbus.log import log
from hatbus.parallel.launch import rank_and_world
from hatbus.trainer import Trainer

if TYPE_CHECKING:
    from hatbus.loop.context import Context

_NOTHING: Final[list[Any]] = [()]
"""The data of a stage that only evaluates or exports: one step, in which nothing is done."""


class PreparedStage(Prepared):
    """A stage whose names were looked up; ready to be built.

    Attributes:
        told: what of the config is not taken over, a line each.
    """

    def __init__(self, stage: Stage, told: list[str]) -> None:
        self.job: Stage = stage
        self.told = told
        self.started_in = Path.cwd()
        self.found = {
            name: Own(plugin.use, type_source(plugin.options["type"]))
            for name, plugin in stage.enabled.items()
        }

    def settle(self, folder: Path) -> None:
        """The run's folder is this one."""
        self.job.run_dir = folder

    def build(self) -> Trainer:
        """Builds model, data and callbacks, each config once, and the trainer of them.

        Raises:
            HatbusError: a config that cannot be built.
        """
        run, config = self.job.run, self.job.parts
        where = f"{self.job.name} {run.entry.partition(':')[2]}"
        seed_everything(run.seed)
        builder = Builder(where, PROCESSORS)
        model = converted(builder.build(config["model"]), builder.build(_pipeline(config)), where)
        if config.get("sync_bn") and rank_and_world()[1] > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # torch's
        metrics = config.get("val_metrics") or config.get("metrics")
        trainer = Trainer(
            model,
            **self._learning(config, model, builder),
            train_metrics=_listed(builder.build(config.get("train_metrics"))),
            val_metrics=_listed(builder.build(metrics)),
            device=run.device,
            seed=run.seed,
            accumulate=run.accumulate,
            precision=run.precision,
            compile=run.compile,
            nan=run.nan,
            log_every=run.log_every,
            parallel=run.parallel,
        )
        trainer.ctx.run_dir = self.job.run_dir
        self._register(trainer, builder, model)
        trainer.ctx.storage["resume"] = run.resume if trains(config) else None
        trainer.ctx.storage["job"] = self.job.to_tables()
        for line in self.told if trainer.ctx.rank == 0 else ():
            log.warning("%s", line)
        return trainer

    def doubts(self, trainer: Trainer) -> list[str]:
        """Nothing: a config orders its callbacks by their places."""
        return []

    def _learning(self, config: Mapping[str, Any], model: nn.Module, builder: Builder) -> Any:
        """Data, optimizer and processor; those of a stage that trains nothing do nothing."""
        processor = builder.build(processor_of(config))
        optimizer = built_optimizer(config.get("optimizer"), model, builder)
        if not has_steps(config):
            return {
                "data": _NOTHING,
                "optimizer": optimizer or idle_optimizer(model),
                "batch_processor": Idle(),
            }
        if optimizer is None:
            optimizer = idle_optimizer(model)
            if getattr(processor, "need_grad_update", True):
                raise JobError(
                    "optimizer is None, and the batch_processor updates; give an optimizer, or "
                    "need_grad_update=False"
                )
        data = builder.build(config["data_loader"])
        return {"data": data, "optimizer": optimizer, "batch_processor": processor}

    def _register(self, trainer: Trainer, builder: Builder, model: nn.Module) -> None:
        """Builds the callbacks and puts them on the bus, in the config's order."""
        config = self.job.parts
        if config.get("type") == "Predictor":
            trainer.bus.register(self._prediction(config, builder), "validation")
            return
        for name, plugin in self.job.enabled.items():
            if plugin.use == "checkpoint" and not is_storable(model):
                log.warning(
                    "%s is left out: the weights of a quantised model are packed; save_traced "
                    "writes it",
                    name,
                )
                self.found.pop(name)
                continue
            options = with_place(name, plugin.use, plugin.options, self.job.run_dir)
            cls = options.pop("type")
            made = builder.build({"type": cls, **options}) if isinstance(cls, type) else cls
            declaration_of(made, plugin.filters)  # a mistake is told now
            trainer.bus.register(made, name, overrides=plugin.filters)
        trainer.bus.order()

    def _prediction(self, config: Mapping[str, Any], builder: Builder) -> Any:
        """A predictor is one validation; its callbacks are that validation's."""
        inner = [
            {
                "type": plugin.options["type"],
                **{k: v for k, v in plugin.options.items() if k != "type"},
            }
            for plugin in self.job.enabled.values()
        ]
        return builder.build(
            {
                "type": "Validation",
                "data_loader": config["data_loader"],
                "batch_processor": processor_of(config),
                "callbacks": inner or None,
                "share_callbacks": config.get("share_callbacks", True),
            }
        )


class Idle(BatchProcessor):
    """The processor of a stage that trains nothing."""

    def __init__(self) -> None:
        super().__init__(need_grad_update=False)

    @hookimpl(trylast=True)
    def run_batch(self, ctx: Context) -> dict[str, torch.Tensor]:
        """Nothing."""
        return {}


def prepare_stage(
    path: Path | str,
    stage: str | None,
    plugins: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> PreparedStage:
    """Executes a config and takes a stage out of it; see ``read_stage``.

    Raises:
        JobError: every fault, a line each.
    """
    return PreparedStage(*read_stage(path, stage, plugins, options))


def converted(model: Any, pipeline: Any, where: str) -> nn.Module:
    """The model after the stage's pipeline: a ``ModelConvertPipeline``, or a list of converters.

    Raises:
        JobError: what the config makes is no model.
    """
    if not isinstance(model, nn.Module):
        raise JobError(f"{where}: model is a {type(model).__name__}; accepted: a torch.nn.Module")
    if callable(pipeline):
        made: nn.Module = pipeline(model)
        return made
    result: nn.Module = model
    for convert in pipeline or ():
        result = convert(result) or result
    return result


def has_steps(config: Mapping[str, Any]) -> bool:
    """Whether a stage goes over a loader of its own; a Predictor only validates."""
    return config.get("data_loader") is not None and config.get("type") != "Predictor"


def trains(config: Mapping[str, Any]) -> bool:
    """Whether a stage changes weights; what does not has nothing to go on from, and begins anew."""
    return has_steps(config) and config.get("optimizer") is not None


def idle_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that is never asked to step, of a model that may have no parameters."""
    return torch.optim.SGD([{"params": list(model.parameters())}], lr=0.0)


def is_storable(model: nn.Module) -> bool:
    """Whether a checkpoint can hold the model's weights: packed ones of a quantised model not."""
    return all(
        isinstance(value, torch.Tensor) and not value.is_quantized
        for value in model.state_dict().values()
    )


def with_place(name: str, use: str, options: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """A plugin's options; a writer without ``save_dir`` writes into the run's folder."""
    needs = use in ("checkpoint", "tensorboard", "save_traced") and "save_dir" not in options
    return {**options, **({"save_dir": str(run_dir / name)} if needs else {})}


def type_source(kind: Any) -> str:
    """Where a callback's class comes from."""
    from hatbus.discovery.entry_points import SOURCE

    cls = kind if isinstance(kind, type) else type(kind)
    return str(getattr(cls, SOURCE, cls.__module__))


def _pipeline(config: Mapping[str, Any]) -> Any:
    given = config.get("model_convert_pipeline")
    if given is None or is_config(given):
        return given
    if isinstance(given, Mapping):
        raise JobError(
            "model_convert_pipeline is a dict without type; accepted: "
            "dict(type='ModelConvertPipeline', converters=[...]), or a list of converters"
        )
    return given


def _listed(given: Any) -> Any:
    """HAT takes one metric for a list of one."""
    if given is None:
        return ()
    return given if isinstance(given, (list, tuple)) else [given]
