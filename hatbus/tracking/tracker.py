"""``Tracker``: the base of a plugin that delivers what a run publishes to a service."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from torch import Tensor

from hatbus import option_values
from hatbus.errors import JobError
from hatbus.events.declare import hookimpl, plugin
from hatbus.loop.files import claim_file, instance_name
from hatbus.runs.record import how_it_ended
from hatbus.tracking.delivery import Delivery
from hatbus.tracking.described import config_of, plan_text
from hatbus.tracking.journal import Journal
from hatbus.tracking.reading import is_number
from hatbus.tracking.service import Described, Service

if TYPE_CHECKING:
    from hatbus.loop.context import Context
    from hatbus.tracking.journal import Piece

RUN_FILE: Final = "run.json"
CHECKPOINTS: Final = ("none", "last", "best", "all")
_PATIENCE: Final = {"finished": 60.0, "failed": 60.0, "stopped": 10.0}
"""Seconds for the rest at the end; whoever stops a run, such as a scheduler, may not wait long."""
_KINDS: Final = ("scalar", "text", "image", "histogram")


@plugin(stage="report", after=("stats_monitor", "progress"), ranks="zero")
class Tracker(ABC):
    """Keeps what is published in the run's folder, and delivers it from there.

    A subclass has a constructor with its own options, which calls this one, and ``connect``. What
    the service does wrong is warned of once and never ends a run; what it did not take is kept, and
    delivered when it answers again, when the run goes on, or by ``hatbus deliver``.

    A resumed run goes on in the same run of the service. What the service was given of steps that
    are run again is not given to it twice: the first point of a name and step counts. With ``live``
    off a point waits until a checkpoint is behind it, so none is ever run again.

    Args:
        name: of the run at the service; by default that of its folder.
        save_dir: folder of the tracker's own files; by default in the run's, named like the
            instance.
        config: settings to show beside those of the job.
        describe: deliver the plan of the run's events.
        live: deliver at once; else only what is behind a checkpoint, and the rest at the end.
        checkpoints: which ones to deliver: ``"none"``, ``"last"`` and ``"best"`` at the end of the
            run, or ``"all"`` when they are made.

    Raises:
        JobError: a value that cannot be used.
    """

    plugin_name: ClassVar[str]
    """Of its entry point."""
    options: dict[str, Any]
    """What the constructor needs to be given by ``hatbus deliver``; a subclass fills it."""

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | Path | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        describe: bool = True,
        live: bool = True,
        checkpoints: str = "none",
    ) -> None:
        who = self.plugin_name
        if name is not None:
            option_values.text(f"{who}: name", name)
        if config is not None and not isinstance(config, Mapping):
            raise JobError(f"{who}: config is {config!r:.80}; accepted: a table")
        option_values.one_of(f"{who}: checkpoints", checkpoints, CHECKPOINTS)
        for option, value in (("describe", describe), ("live", live)):
            if not isinstance(value, bool):
                raise JobError(f"{who}: {option} is {value!r}; accepted: true, false")
        given = None if save_dir is None else option_values.path(f"{who}: save_dir", save_dir)
        self._name, self._folder, self._config = name, given, dict(config or {})
        self._describes, self._live, self._checkpoints = describe, live, checkpoints
        self._delivery: Delivery | None = None
        self._ahead: set[tuple[int, str]] = set()
        self._farthest = -1
        self._early: list[tuple[Piece, str]] = []
        self._saving: deque[int] = deque()
        self._made: list[Path] = []
        self.options = {}

    def given_texts(self, **options: str | None) -> dict[str, str]:
        """Checks options that are texts, or None where they were left out.

        Returns:
            Those that were given.

        Raises:
            JobError: one is no text, or empty.
        """
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in given.items():
            option_values.text(f"{self.plugin_name}: {name}", value)
        return given

    @abstractmethod
    def connect(self) -> Service:
        """The service; imports the vendor's client, and makes sure that somebody is logged in.

        No network here: ``Service.open`` is for that.

        Raises:
            JobError: the package is missing, or nobody is logged in; what to do.
        """

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Opens the run at the service, after the resume.

        Raises:
            JobError: it cannot be used here.
            SaveError: its files cannot be written.
        """
        if ctx.training is not ctx:
            raise JobError(
                f"{self.plugin_name} is among the callbacks of a validation; put it among the "
                "plugins of the run, which see what a validation publishes"
            )
        who = instance_name(ctx, self)
        folder = self._place(ctx, who)
        claim_file(ctx, folder, self)
        service = self.connect()
        journal = Journal(folder)
        is_new = self._begin_journal(journal, ctx)
        described = self._described(ctx, folder, is_new=is_new)
        step = lambda: ctx.global_step_id  # noqa: E731 - what the thread asks
        self._delivery = Delivery(who, service, journal, described, step, live=self._live)
        self._delivery.commit(journal.pieces)
        early, self._early = self._early, []
        for piece, kind in early:
            self._delivery.put(piece, kind)
        self._delivery.start()

    @hookimpl
    def on_log(self, ctx: Context, logs: Mapping[str, Any], kind: str) -> None:
        """Takes what was published; nothing is read from a device here."""
        if ctx.training is not ctx or kind not in _KINDS:
            return
        step, values = ctx.global_step_id, logs
        if step <= self._farthest:  # the service was given this step before a kill
            values = {name: one for name, one in logs.items() if (step, name) not in self._ahead}
        kept = {
            name: found for name, one in values.items() if (found := _kept(one, kind)) is not None
        }
        if kept:
            self._put(ctx, kept, kind)

    def _put(self, ctx: Context, values: dict[str, Any], kind: str) -> None:
        piece = {
            "step": ctx.global_step_id,
            "epoch": ctx.epoch_id,
            "event": event_of(ctx),
            "time": round(time.time(), 3),
            "values": values,
        }
        if self._delivery is None:
            self._early.append((piece, kind))
        else:
            self._delivery.put(piece, kind)

    @hookimpl(wrapper=True)
    def save_checkpoint(self) -> Generator[None, Any, Any]:
        """Everything up to a checkpoint is on disk before the checkpoint is."""
        if self._delivery is None:
            return (yield)
        self._saving.append(self._delivery.flush())
        result = yield
        if result is False and self._saving:
            self._saving.pop()
        return result

    @hookimpl
    def on_checkpoint_saved(self, ctx: Context, path: Path) -> None:
        """Everything up to it may be delivered, and so may it."""
        if self._delivery is not None and self._saving:
            self._delivery.commit(self._saving.popleft())
        if self._checkpoints == "all":
            self._put(ctx, {Path(path).name: str(path)}, "checkpoint")
        self._made.append(Path(path))

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Delivers the rest and ends the run at the service, whatever ended the run."""
        if self._delivery is None:
            return
        if ctx.exception is None and self._checkpoints in ("last", "best"):
            found = self._pointed_at(self._checkpoints)
            if found is not None:
                self._put(ctx, {f"checkpoint-{self._checkpoints}": str(found)}, "checkpoint")
        delivery, self._delivery = self._delivery, None
        how = "failed" if ctx.exception is not None else how_it_ended(ctx)[0]
        delivery.close(how, _PATIENCE[how])

    def _place(self, ctx: Context, who: str) -> Path:
        if self._folder is not None:
            return self._folder
        if ctx.run_dir is None:
            raise JobError(
                f"{who}: the run has no folder; give {who} a save_dir, or the run a run_dir"
            )
        return ctx.run_dir / who

    def _begin_journal(self, journal: Journal, ctx: Context) -> bool:
        """Takes out of it what was neither delivered nor is behind the run.

        Returns:
            Whether the run is a new one.
        """
        self._ahead, self._farthest, self._made = set(), -1, []
        self._saving.clear()
        if ctx.position.global_step == 0 and ctx.storage.get("resume") in (None, "new"):
            journal.restart()
            return True
        pieces = journal.read()
        journal.keep(pieces)
        last = ctx.position.global_step - 1
        moments = {"step", "epoch_end"} if ctx.position.step == 0 else {"step"}
        kept = []
        for number, piece in enumerate(pieces):
            is_now = piece["step"] == last and piece["event"] in moments
            if piece["step"] < last or is_now:
                kept.append(piece)
            elif number < journal.begun:
                kept.append(piece)
                self._ahead |= {(piece["step"], name) for name in piece["values"]}
        self._farthest = max((step for step, _ in self._ahead), default=-1)
        journal.keep(kept)
        return False

    def _described(self, ctx: Context, folder: Path, *, is_new: bool) -> Described:
        path = folder / RUN_FILE
        known: dict[str, Any] = {}
        if path.exists() and not is_new:
            known = json.loads(path.read_text("utf-8"))
        own = ctx.run_dir.name if ctx.run_dir is not None else folder.name
        found = {
            "plugin": self.plugin_name,
            "options": self.options,
            "id": known.get("id") or secrets.token_hex(8),
            "name": self._name or known.get("name") or own,
            "config": config_of(ctx, self._config),
            "plan": plan_text(ctx) if self._describes else "",
        }
        partial = folder / f".{RUN_FILE}.partial"
        partial.write_text(json.dumps(found, indent=2), "utf-8")
        partial.replace(path)
        return described_from(found, folder)

    def _pointed_at(self, word: str) -> Path | None:
        """The checkpoint that the newest ``checkpoint-<word>.json`` beside those made names."""
        for folder in dict.fromkeys(path.parent for path in reversed(self._made)):
            for pointer in sorted(folder.glob(f"*checkpoint-{word}.json")):
                named = _texts(json.loads(pointer.read_text("utf-8")))
                for path in (folder / text for text in named):
                    if path.is_dir() and path != folder:
                        return path
        return self._made[-1] if self._made and word == "last" else None


def described_from(found: Mapping[str, Any], folder: Path) -> Described:
    """What ``run.json`` in a tracker's folder says."""
    return Described(found["id"], found["name"], found["config"], found["plan"], folder)


def event_of(ctx: Context) -> str:
    """What is going on: ``"step"``, ``"epoch_begin"`` or ``"epoch_end"``."""
    position = ctx.position
    if position.step == 0:
        return "epoch_end" if ctx.epoch_id < position.epoch else "epoch_begin"
    return "step" if position.step == ctx.step_id + 1 else "epoch_begin"


def _kept(value: Any, kind: str) -> Any:
    """A value as it is now, without its graph; None for one that is not of the kind."""
    if kind == "scalar":
        if type(value) is not float and not is_number(value):
            return None
        return value.detach() if isinstance(value, Tensor) else value
    if kind == "text":
        return str(value)
    return value.detach().clone() if isinstance(value, Tensor) else None


def _texts(value: Any) -> Collection[str]:
    """The texts of a flat table."""
    return (
        [one for one in value.values() if isinstance(one, str)] if isinstance(value, dict) else []
    )
