"""From a job to a trainer and through its run. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import chdir
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from hatbus import __version__, discovery, option_values
from hatbus.discovery.before_after import strangers
from hatbus.discovery.configs import adapted
from hatbus.discovery.entry_points import SOURCE
from hatbus.errors import HatbusError, JobError, PluginError
from hatbus.initial_weights import begin_with
from hatbus.insight.profile import Profile
from hatbus.jobs.job import PLUGIN_KEYS, parse_job
from hatbus.jobs.options import check, schema_of, taken_keys
from hatbus.jobs.references import References, finish, is_reference
from hatbus.jobs.results import places_of, show, show_profile, show_results
from hatbus.jobs.run_log import JobFiles, RunLog, logged
from hatbus.log import log
from hatbus.loop.limits import exit_code
from hatbus.parallel.failures import peers_told
from hatbus.parallel.launch import rank_and_world
from hatbus.rng import seed_all
from hatbus.runs.claim import claim_for_all
from hatbus.runs.folders import NEW, SAME, run_folder
from hatbus.runs.record import RunRecord
from hatbus.trainer import Trainer
from hatbus.trainer_arguments import NOBODY_LOADS

if TYPE_CHECKING:
    from collections.abc import Callable

    from hatbus.discovery.entry_points import Found
    from hatbus.jobs.job import Job, Plugin
    from hatbus.runs.folders import RunFolder

_REQUIRED: Final = ("model", "optimizer", "data")
_TAKEN: Final = (
    *_REQUIRED,
    "loss",
    "task_sampler",
    "batch_processor",
    "train_metrics",
    "val_metrics",
    "modules",
)
"""What the trainer takes of the things that the entry function returns."""


CHECKPOINT_WORDS: Final = (*SAME, NEW)
"""What ``resume`` may be beside a path."""


class Own(NamedTuple):
    """Where a plugin comes from whose class a job names by its file or module."""

    name: str
    source: str


class Prepared:
    """A job whose every name, option and object was checked; ready to be built.

    Attributes:
        job: what was prepared.
        found: where each enabled plugin comes from, by instance name.
        started_in: the folder in which relative paths start.
    """

    def __init__(self, job: Job, problems: list[str] | None = None) -> None:
        self.job = job
        self.found: dict[str, Found | Own] = {}
        self._plugins: dict[str, tuple[type[Any], dict[str, Any]]] = {}
        self._inside: list[str] = []
        self.started_in, self._resume = Path.cwd(), job.run.resume
        if self._resume and self._resume not in CHECKPOINT_WORDS:
            self._resume = str(run_folder(option_values.path("run.resume", self._resume)))
        problems = list(problems or ())
        self._find = References((job.folder, Path.cwd())).find
        self._entry, self._arguments = self._prepare_entry(problems)
        for name, plugin in job.enabled.items():
            self._prepare_plugin(name, plugin, problems)
        is_loaded = any(hasattr(cls, "load_checkpoint") for cls, _ in self._plugins.values())
        if self._resume not in (None, NEW) and not is_loaded and not problems:
            problems.append(
                f"key 'resume' is {job.run.resume!r} in {job.name} [run]: {NOBODY_LOADS}"
            )
        if problems:
            raise JobError("\n".join(problems))

    def settle(self, folder: Path) -> None:
        """The run's folder is this one; so are the places in it that plugins need."""
        self.job.run_dir = folder
        for name in self._inside:
            self._plugins[name][1]["save_dir"] = str(folder / name)

    def build(self) -> Trainer:
        """Calls the entry function, then builds the trainer and its plugins.

        Raises:
            JobError: the entry function returned something else, or an option cannot be used.
            PluginError: a plugin failed while it was built, or cannot be registered.
        """
        run = self.job.run
        seed_everything(run.seed)
        built = things_of(self._entry(**finish(self._arguments, {})), run.entry)
        with chdir(self.started_in):  # the entry function may have left it, and paths start here
            instances = self._instances(built)
        trainer = Trainer(
            **{name: built[name] for name in _TAKEN if name in built},
            device=run.device,
            seed=run.seed,
            accumulate=run.accumulate,
            precision=run.precision,
            compile=run.compile,
            nan=run.nan,
            log_every=run.log_every,
            timeout=run.timeout,
            start_timeout=run.start_timeout,
            parallel=run.parallel,
        )
        begin_with(trainer, self.job, self.started_in)
        trainer.ctx.run_dir = self.job.run_dir
        _register(trainer, self.job, instances)
        trainer.ctx.storage["resume"] = self._resume
        trainer.ctx.storage["job"] = self.job.to_tables()
        return trainer

    def doubts(self, trainer: Trainer) -> list[str]:
        """What in the job orders nothing: names in before and after that no plugin has.

        What an installed class declares is its author's: there it may name what is not here.
        """
        members = trainer.bus.members
        beside = {*self.job.plugins, *(members[name].kind for name in self.found)}
        lines = []
        for name, found in self.found.items():
            plugin, declared = self.job.plugins[name], members[name].declared
            place = asdict(declared) if isinstance(found, Own) else plugin.filters
            start = f"plugin {name!r} {plugin.where}"
            lines += [f"{start} {fault}" for fault in strangers(place, beside)]
        return lines

    def _prepare_entry(self, problems: list[str]) -> tuple[Callable[..., Any], dict[str, Any]]:
        run, where = self.job.run, f"in {self.job.name} [run]"
        try:
            entry = self._find(run.entry)
        except JobError as error:
            problems.append(f"key 'entry' is {run.entry!r} {where}: {error}")
            return dict, {}
        if not callable(entry):
            problems.append(f"key 'entry' is {run.entry!r} {where}: it is no function")
            return dict, {}
        place = f"in {self.job.name} [run.args]"
        arguments, found = check(entry, run.args, place, self._find, what="argument")
        problems += found
        return entry, arguments

    def _prepare_plugin(self, name: str, plugin: Plugin, problems: list[str]) -> None:
        try:
            found, cls = self._find_plugin(name, plugin)
        except (JobError, PluginError) as error:
            problems.append(str(error))
            return
        taken = taken_keys(PLUGIN_KEYS, plugin.filters, schema_of(cls))
        if taken:
            problems.append(
                f"plugin {name!r} {plugin.where}: its class has an option {taken[0]!r}, and in a "
                "job that key is the bus's own; give the option another name in the class, or "
                "build the plugin in Python"
            )
            return
        given = with_place(name, cls, plugin.options, self.job.run_dir)
        options, wrong = check(cls, given, plugin.where, self._find, also=PLUGIN_KEYS)
        problems += wrong
        if "save_dir" in given and "save_dir" not in plugin.options:
            self._inside.append(name)
        self.found[name] = found
        self._plugins[name] = (cls, options)

    def _find_plugin(self, name: str, plugin: Plugin) -> tuple[Found | Own, type[Any]]:
        """Where a plugin comes from, and its class: an installed one, or one of the user's files.

        Raises:
            JobError: a file or module has no such class.
            PluginError: no such plugin is installed, or it cannot be loaded.
        """
        use, where = plugin.use, plugin.where
        if not is_reference(use):
            found = discovery.lookup(use, where)
            return found, found.load()
        if use == name:
            raise JobError(
                f"plugin {use!r} {where} has no name of its own; in the job, write "
                f"[plugins.NAME] and below it use = {use!r}"
            )
        try:
            cls = self._find(use)
        except JobError as error:
            raise JobError(f"key 'use' is {use!r} {where}: {error}") from error
        if not isinstance(cls, type):
            raise JobError(f"key 'use' is {use!r} {where}: it is no class")
        cls = adapted(cls)
        own = Own(use, use.rpartition(":")[0])
        if SOURCE not in vars(cls):
            setattr(cls, SOURCE, own.source)
        return own, cls

    def _instances(self, built: Mapping[str, Any]) -> dict[str, object]:
        """Builds every enabled plugin."""
        instances, problems = {}, []
        for name, (cls, options) in self._plugins.items():
            where = self.job.plugins[name].where
            try:
                instances[name] = cls(**finish(options, built))
            except (HatbusError, ValueError) as error:
                problems.append(f"plugin {name!r} {where}: {error}")
            except Exception as error:
                source = self.found[name].source
                raise PluginError(
                    f"plugin {name!r} ({source}) failed while it was built {where}: "
                    f"{type(error).__name__}: {error}; --traceback shows where"
                ) from error
        if problems:
            raise JobError("\n".join(problems))
        return instances


def prepare(
    path: Path | str,
    plugins: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> Prepared:
    """Reads and checks a job; ``plugins`` and ``options`` as for ``hatbus.jobs.read_job``.

    Raises:
        JobError: every problem of the job, one line each.
    """
    job, problems = parse_job(path, plugins, options)
    if job is None:
        raise JobError("\n".join(problems))
    return Prepared(job, problems)


def run(
    prepared: Prepared,
    *,
    quiet: bool = False,
    profile: bool = False,
    folder: Path | None = None,
) -> int:
    """Trains.

    Args:
        prepared: the job.
        folder: of the earlier run that it goes on with; None: as the job says.
        quiet: print no table at the end.
        profile: measure the plugins; a table at the end, and ``profile.json`` in the run's folder.

    Returns:
        The process's exit code.
    """
    job = prepared.job
    title = f"{job.name} with hatbus {__version__}"
    with peers_told():
        own = claim_for_all(replace(job.wanted, folder=folder))
        try:
            prepared.settle(own.path)
            with logged(job.run_dir, title, rank_and_world()[0]) as book:
                return _train(prepared, own, book, quiet=quiet, profile=profile)
        finally:
            own.release()


def _train(
    prepared: Prepared, folder: RunFolder, book: RunLog, *, quiet: bool, profile: bool
) -> int:
    """Trains, and says with what code to end; ``book`` is this process's log."""
    trainer, job = prepared.build(), prepared.job
    is_first = trainer.ctx.rank == 0
    trainer.ctx.storage["quiet"] = quiet
    trainer.bus.register(JobFiles(prepared, trainer), "core.job_files", core=True)
    record = RunRecord(folder)
    trainer.bus.register(record, "core.run_record", core=True)
    measured = Profile() if profile else None
    if measured is not None:
        measured.watch(trainer.bus)
    book.open()
    if is_first:
        for line in prepared.doubts(trainer):
            log.warning("%s", line)
    with record.watching():
        ctx = trainer.fit(
            job.run.num_epochs,
            job.run.num_steps,
            limit_steps=job.run.limit_steps,
            max_time=job.run.max_time,
            sanity_steps=job.run.sanity_steps,
        )
    if is_first and measured is not None:
        show(book, lambda console: show_profile(console, measured, job.run_dir))
    if is_first:
        show(
            book,
            lambda console: show_results(console, ctx, places_of(job, prepared.started_in)),
            quiet=quiet,
        )
    return exit_code(trainer.bus, ctx)


def with_place(name: str, cls: type[Any], options: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """A plugin's options; a ``save_dir`` that it needs but was not given is in the run's folder.

    So ``-p tensorboard`` is enough, and everything that a run writes is found in one place.
    """
    place = schema_of(cls).options.get("save_dir")
    if place is None or not place.is_required or "save_dir" in options:
        return options
    return {**options, "save_dir": str(run_dir / name)}


def seed_everything(seed: int) -> None:
    """Seeds python, numpy, and torch on every device."""
    seed_all(seed)
    torch.manual_seed(seed)


def things_of(returned: Any, entry: str) -> dict[str, Any]:
    """What the entry function returned, by name.

    Raises:
        JobError: neither a dict with what the trainer needs nor a tuple of it.
    """
    if isinstance(returned, tuple) and 3 <= len(returned) <= 4:
        returned = dict(zip((*_REQUIRED, "loss"), returned, strict=False))
    if not isinstance(returned, Mapping):
        what = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else repr(returned)
        raise JobError(
            f"entry {entry!r} returned {what:.200}; accepted: a dict with 'model', 'optimizer', "
            "'data' and more, or a tuple (model, optimizer, data, loss)"
        )
    for name in _REQUIRED:
        if name not in returned:
            raise JobError(f"entry {entry!r} returned {_without(name, returned)}")
    _check_kind(entry, "model", returned["model"], torch.nn.Module, "a torch.nn.Module")
    _check_kind(
        entry, "optimizer", returned["optimizer"], torch.optim.Optimizer, "a torch.optim.Optimizer"
    )
    return dict(returned)


def _without(name: str, returned: Mapping[str, Any]) -> str:
    """What to say of things that one is missing from."""
    others = [other for other in map(str, returned) if other not in _TAKEN]
    near = get_close_matches(name, others, n=1)
    if near:
        return f"{near[0]!r}, which the trainer does not know; did you mean {name!r}?"
    there = f", only {', '.join(map(repr, returned))}" if returned else ""
    return f"no {name!r}{there}; accepted: a dict with 'model', 'optimizer', 'data' and more"


def _register(trainer: Trainer, job: Job, instances: dict[str, object]) -> None:
    """Puts the plugins on the trainer's bus, in the job's order."""
    problems = []
    for name, instance in instances.items():
        plugin = job.plugins[name]
        try:
            trainer.bus.register(instance, name, overrides=plugin.filters)
        except PluginError as error:
            problems.append(f"{error} ({plugin.where})")
    if problems:
        raise PluginError("\n".join(problems))
    trainer.bus.order()


def _check_kind(entry: str, name: str, thing: object, kind: type[Any], wanted: str) -> None:
    if not isinstance(thing, kind):
        raise JobError(
            f"entry {entry!r} returned a {type(thing).__name__} as {name!r}; accepted: {wanted}"
        )
