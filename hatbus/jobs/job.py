"""A job: what one run does, read from a TOML file without importing torch or any plugin.

::

    [run]
    entry = "train.py:build"       # returns model, optimizer, data, loss
    num_epochs = 5
    [run.args]                     # keyword arguments of build
    [plugins.cos_lr]               # an instance name; use = "..." names another entry point
    warmup_len = 100
"""

from __future__ import annotations

import datetime
import json
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from hatbus import option_values
from hatbus.bus.intervals import Interval
from hatbus.errors import JobError, PluginError, did_you_mean
from hatbus.events.declare import OVERRIDABLE, declaration_of
from hatbus.events.instance_names import fault_of_name
from hatbus.foreign_arguments import in_job
from hatbus.jobs.options import check
from hatbus.jobs.overrides import PLANS, override, switch
from hatbus.jobs.references import is_reference
from hatbus.jobs.type_hints import NONE
from hatbus.parallel import Parallel
from hatbus.runs.folders import SAME, Wanted, is_folder_name

_TABLES: Final = ("run", "plugins")
_TOML: Final = "$toml"
_NOT_YET: Final = "new"
"""Stands for the folder of a run that is not to begin: a job is only looked at."""
_WHERE: Final = ("-o run.resume", "-o run.run_dir", "-o run.name")
_NOT_EMPTY: Final = ("run_dir", "resume", "init_from", "device")
_META: Final = "hatbus"
"""The table that hatbus adds to ``job.json``; ignored when it is read again."""


@dataclass
class Run:
    """The ``[run]`` table. Its field names and types are the keys and values that are accepted.

    Args:
        entry: ``"file.py:function"`` or ``"package.module:function"``; returns model, optimizer,
            data and more.
        num_epochs: how many epochs; or ``num_steps``.
        num_steps: how many steps; or ``num_epochs``.
        limit_steps: for a quick look: ends after so many steps, as if the data was over, and takes
            as many batches in validations.
        max_time: ends after a step when so much time is over, with its state saved and exit code
            75: ``"2h30m"``, ``"90 min"``, ``"2:30:00"``, or seconds.
        sanity_steps: before the first step validates so many batches, to see that it works.
        seed: torch, numpy and random are seeded with it before the entry function is called.
        device: ``"auto"`` (where the entry function put the model, else a GPU if CUDA has one),
            ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        precision: of forward and loss.
        accumulate: batches per task and step.
        compile: ``true``, or a table of options for ``torch.compile`` and ``loss``.
        nan: what a loss that is not finite does; weights that are not are never saved.
        log_every: steps between two points of ``train/<loss>_step``, the mean loss since the last
            one; 0: none, only ``train/<loss>`` of every epoch.
        run_dir: where runs get folders of their own; by default ``runs/<folder of the job>``.
        name: of the run's folder; by default the time of its start.
        resume: ``"auto"``, ``"last"``, ``"best"``: go on in the folder of the newest run of the
            same job with the same ``-p`` and ``-o``, or of the given name; a path: a new run from
            that checkpoint; ``"new"``: a new run, though one of that name is there.
        init_from: a run, checkpoint or file whose weights a new run starts from; or a table with
            ``path`` and ``weights``, ``rename``, ``only``, ``skip``, ``strict``.
        timeout: how long the processes of a run wait for one that is late, in seconds or as
            ``"10 min"``; then all end, and say which it was and where.
        start_timeout: the same, until the first step is over.
        parallel: how several processes share the model: ``"ddp"``, ``"fsdp2"``, ``"hsdp"``; or a
            table with ``mode`` and its options (``hatbus.parallel.Parallel``).
        args: keyword arguments of the entry function.
    """

    entry: str
    num_epochs: int | None = None
    num_steps: int | None = None
    limit_steps: int | None = None
    max_time: str | float | None = None
    sanity_steps: int = 0
    seed: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1
    compile: bool | dict[str, Any] = False
    nan: Literal["raise", "skip_step", "ignore"] = "raise"
    log_every: int = 50
    run_dir: str | None = None
    name: str | None = None
    resume: str | None = None
    init_from: str | dict[str, Any] | None = None
    timeout: float | str = "10 min"
    start_timeout: float | str = "30 min"
    parallel: Literal["ddp", "fsdp2", "hsdp"] | dict[str, Any] | None = None
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plugin:
    """One ``[plugins.<instance>]`` table; what is not named here is a constructor option.

    Args:
        use: the plugin, when the instance has another name; or its class, as
            ``"file.py:Class"`` or ``"package.module:Class"``.
        enabled: ``false`` leaves it out.
        stage: its place among the others, in place of what its class says.
        before: names of plugins of its stage that it comes before.
        after: names of plugins of its stage that it comes after.
        tasks: the only tasks whose batches it sees.
        every: ``"100 steps"``, ``"1 epoch"``, ``"30 min"``; then ``, first`` and ``, last``.
        ranks: ``"zero"`` for the first process only.
        options: the arguments of its constructor.
        where: it stands, for messages.
    """

    use: str = ""
    enabled: bool = True
    stage: str | None = None
    before: str | list[str] | None = None
    after: str | list[str] | None = None
    tasks: str | list[str] | None = None
    every: str | None = None
    ranks: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def filters(self) -> dict[str, Any]:
        """The overrides for the bus."""
        given = ((name, getattr(self, name)) for name in OVERRIDABLE)
        return {name: value for name, value in given if value is not None}


RUN_KEYS: Final = tuple(f.name for f in fields(Run))
PLUGIN_KEYS: Final = ("use", "enabled", *OVERRIDABLE)
"""The keys of a plugin's table that are never constructor options, even if one has the name."""


@dataclass
class Job:
    """A job as it will run.

    Attributes:
        name: of the file, for messages.
        folder: of the file; paths in ``entry`` and options start here.
        run: the ``[run]`` table.
        plugins: by instance name, in the job's order; those switched off included.
        source: the file, absolute.
        changes: what was said otherwise: ``"-p name"``, ``"-o name.key=value"``.
        place: where runs get their folders, absolute.
        run_dir: folder of the run's files, absolute; settled when the run begins.
    """

    name: str
    folder: Path
    run: Run
    plugins: dict[str, Plugin] = field(default_factory=dict)
    source: Path = Path()
    changes: tuple[str, ...] = ()

    @property
    def enabled(self) -> dict[str, Plugin]:
        """The plugins that take part."""
        return {name: plugin for name, plugin in self.plugins.items() if plugin.enabled}

    def __post_init__(self) -> None:
        """Settles where the run's files are: its code may change the folder."""
        given = self.run.run_dir or Path("runs") / self.folder.resolve().name
        self.place = option_values.path("run_dir", given)
        self.run_dir = self.place / (self.run.name or _NOT_YET)
        self._run_dir_as_given = str(given)

    def origin_of_stage(self) -> dict[str, str]:
        """Where a stage of a HAT config stands; nothing of any other job."""
        return {}

    @property
    def wanted(self) -> Wanted:
        """Where the run is to write."""
        resume = self.run.resume
        if not resume:
            also = (p.options.get("resume") for p in self.enabled.values())
            resume = next((word for word in also if word in SAME), None)
        changes = [c for c in self.changes if c.partition("=")[0].strip() not in _WHERE]
        return Wanted(self.place, self.run.name or "", resume, str(self.source), tuple(changes))

    def to_tables(self) -> dict[str, Any]:
        """The job as the tables of a job file, overrides included and defaults written out."""
        run = {**asdict(self.run), "run_dir": self._run_dir_as_given}
        plugins = {
            name: {"use": p.use, "enabled": p.enabled, **p.filters, **p.options}
            for name, p in self.plugins.items()
        }
        return {"run": {k: v for k, v in run.items() if v is not None}, "plugins": plugins}

    def to_json(self, **meta: Any) -> str:
        """The job as text that ``read_job`` takes back."""
        origin = {"job": self.name, "folder": str(self.folder.resolve()), **meta}
        origin |= {"changes": list(self.changes)} if self.changes else {}
        return json.dumps({**self.to_tables(), _META: origin}, indent=2, default=_as_json) + "\n"


def _as_json(value: Any) -> Any:
    """A date or time of TOML's, which JSON has no form for; anything else as a text."""
    is_of_toml = isinstance(value, (datetime.date, datetime.time))
    return {_TOML: value.isoformat()} if is_of_toml else str(value)


def _from_json(table: dict[str, Any]) -> Any:
    """What ``_as_json`` was given."""
    text = table.get(_TOML)
    if len(table) != 1 or not isinstance(text, str):
        return table
    return tomllib.loads(f"value = {text}")["value"]


def read_job(path: Path | str, plugins: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> Job:
    """Reads a job file (``.toml``, or a run folder's ``job.json``).

    Args:
        path: of the file.
        plugins: ``"NAME"`` adds or enables a plugin, ``"no:NAME"`` switches one off.
        options: ``"instance.option=value"`` or ``"run.key=value"``.

    Raises:
        JobError: it cannot be read, or has problems: one line each, all of them.
    """
    job, problems = parse_job(path, plugins, options)
    if problems or job is None:
        raise JobError("\n".join(problems))
    return job


def parse_job(
    path: Path | str, plugins: tuple[str, ...] = (), options: tuple[str, ...] = ()
) -> tuple[Job | None, list[str]]:
    """As ``read_job``, but hands problems back; the job is None when ``[run]`` names no entry.

    Raises:
        JobError: there is no such file, or it is no TOML.
    """
    path = Path(path)
    tables = _tables(path)
    meta = tables.pop(_META, {}) if path.suffix == ".json" else {}
    where = f"in {path.name}"
    problems = [_stray(name, where) for name in tables if name not in _TABLES]
    for name in _TABLES:
        if not isinstance(tables.setdefault(name, {}), dict):
            problems.append(f"{name!r} is {tables[name]!r} {where}; accepted: a table [{name}]")
            tables[name] = {}
    tables["run"] |= {name: tables[name] for name in RUN_KEYS if name in tables}  # see _stray
    added = switch(tables["plugins"], plugins, problems)
    override(tables, options, problems)
    run = _run(tables["run"], f"{where} [run]", problems)
    found = {}
    for name, table in tables["plugins"].items():
        place = f"in -p {name}" if name in added else f"{where} [plugins.{name}]"
        found[name] = _plugin(name, table, place, problems)
    folder = Path(meta.get("folder", path.parent))
    if run is None:
        return None, problems
    return Job(path.name, folder, run, found, path.resolve(), said(plugins, options)), problems


def said(plugins: tuple[str, ...], options: tuple[str, ...]) -> tuple[str, ...]:
    """What the command line says otherwise, as it was written."""
    return (*(f"-p {word}" for word in plugins), *(f"-o {word}" for word in options))


def _tables(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise JobError(f"{str(path)!r} is a folder; give its job file, such as {path / 'job.toml'}")
    try:
        text = path.read_text("utf-8-sig")  # some editors put a mark at the beginning
    except FileNotFoundError as error:
        raise JobError(f"no job file {str(path)!r}{_beside(path)}") from error
    except UnicodeDecodeError as error:
        raise JobError(
            f"job file {str(path)!r} cannot be read: {error}; save it as UTF-8"
        ) from error
    except OSError as error:
        raise JobError(f"job file {str(path)!r} cannot be read: {error}") from error
    try:
        is_json = path.suffix == ".json"
        tables = json.loads(text, object_hook=_from_json) if is_json else tomllib.loads(text)
    except ValueError as error:
        raise JobError(f"job file {str(path)!r} cannot be read: {error}") from error
    if not isinstance(tables, dict):
        raise JobError(f"job file {str(path)!r} holds no tables; accepted: [run], [plugins.NAME]")
    return tables


def _beside(path: Path) -> str:
    """A job file of a similar name in the same folder."""
    there = {file.name for file in path.parent.glob("*.toml")} - {"pyproject.toml"}
    return did_you_mean(path.name, there)


def _stray(name: str, where: str) -> str:
    """What is wrong with something that stands beside the tables of a job."""
    if name in RUN_KEYS:
        return f"key {name!r} {where} stands in no table; put it below [run]"
    return f"unknown table {name!r} {where}{did_you_mean(name, _TABLES)}"


def _run(table: dict[str, Any], where: str, problems: list[str]) -> Run | None:
    """The ``[run]`` table, as far as its keys can be used; None when it names no entry."""
    foreign = {name: in_job(name, RUN_KEYS) for name in table if name not in RUN_KEYS}
    own = {name: value for name, value in table.items() if not foreign.get(name)}
    values, found = check(Run, own, where, what="key")
    found += [f"unknown key {name!r} {where}{hint}" for name, hint in foreign.items() if hint]
    plans = [name for name in PLANS if table.get(name) not in (None, NONE)]
    if len(plans) != 1:
        given = "both" if plans else "neither"
        found.append(f"{given} of num_epochs and num_steps {where}; give exactly one of the two")
    for name in (*plans, "accumulate", "limit_steps"):
        if name in values and isinstance(values[name], int) and values[name] < 1:
            found.append(f"key {name!r} is {values[name]!r} {where}; accepted: 1 or more")
    empty = [name for name in _NOT_EMPTY if values.get(name) == ""]
    found += [f"key {n!r} is empty {where}; give it a value, or leave it out" for n in empty]
    found += _limits(values, where)
    found += _parallel(values.get("parallel"), where.replace("[run]", "[run.parallel]"))
    problems += found
    folder = values.get("name")
    if isinstance(folder, str) and not is_folder_name(folder):
        problems.append(f"key 'name' is {folder!r} {where}; accepted: the name of a folder")
    return Run(**values) if "entry" in values else None


def _limits(values: dict[str, Any], where: str) -> list[str]:
    """What is wrong with the limits of a run."""
    found = []
    if values.get("sanity_steps", 0) < 0:
        given = values["sanity_steps"]
        found.append(f"key 'sanity_steps' is {given!r} {where}; accepted: 0 or more")
    if values.get("max_time") is not None:
        try:
            option_values.seconds(f"key 'max_time' {where}", values["max_time"])
        except JobError as error:
            found.append(str(error))
    return found


def _parallel(given: Any, where: str) -> list[str]:
    """What is wrong with the table of ``parallel``."""
    if not isinstance(given, dict):
        return []
    values, found = check(Parallel, given, where)
    try:
        Parallel(**values)
    except JobError as error:
        found.append(f"{error} ({where})")
    return found


def _plugin(name: str, table: Any, where: str, problems: list[str]) -> Plugin:
    """One plugin's table, its filters told apart from its constructor's options."""
    if not isinstance(table, dict):
        problems.append(f"plugin {name!r} is {table!r} {where}; accepted: a table [plugins.{name}]")
        table = {}
    own = {key: value for key, value in table.items() if key in PLUGIN_KEYS}
    values, found = check(Plugin, own, where, what="key")
    problems += found
    options = {key: value for key, value in table.items() if key not in PLUGIN_KEYS}
    values.setdefault("use", name)
    # one without a name of its own is told of where its class is looked up
    has_own = values["use"] != name or not is_reference(name)
    odd = fault_of_name(name) if has_own else ""
    if odd:
        problems.append(f"plugin name {name!r:.80} {where}: {odd}")
    plugin = Plugin(**values, options=options, where=where)
    try:
        declared = declaration_of(None, plugin.filters)
        if declared.every:
            Interval.parse(declared.every, name)
    except PluginError as error:
        fault = str(error).removeprefix(f"plugin {name!r}: ")
        problems.append(f"plugin {name!r} {where}: {fault}")
    return plugin
