"""Names that plugins watch, checked against those that the run publishes, before anything is lost.

A plugin says by ``published_names(ctx)`` what it publishes; a ``*`` in such a name stands for what
cannot be known yet. One that is no part of hatbus, says nothing and is given the context may
publish anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.batches.batch_processor import BatchProcessor
from hatbus.bus.frozen_source import wanted as arguments_of
from hatbus.discovery.first_party import is_first_party
from hatbus.errors import JobError, did_you_mean
from hatbus.events.training import EVENTS
from hatbus.log import log

if TYPE_CHECKING:
    from hatbus.bus.bus import Bus
    from hatbus.loop.context import Context

ANY: Final = "*"
_LOSSES: Final = "evaluation.losses"
_CONTEXT: Final = frozenset({"ctx", "loop"})
"""Arguments through which a plugin can publish."""
_TRAINING: Final = "train/"


def published_names(ctx: Any, bus: Bus, but: object = None) -> Iterator[str]:
    """What the plugins on a bus publish, as far as it is known; ``*`` is anything.

    Args:
        ctx: of the run, or anything that the plugins' ``published_names`` may ask.
        bus: the plugins.
        but: a plugin that is left out.
    """
    free = outspoken(bus)
    for name, member in bus.members.items():
        tell = getattr(member.plugin, "published_names", None)
        if member.plugin is but:
            continue
        if callable(tell):
            yield from tell(ctx)
        elif name in free and not is_own(member.plugin):
            yield ANY


def outspoken(bus: Bus) -> set[str]:
    """The plugins that could publish: those that are given the context, or whatever there is."""
    found = set()
    for event in EVENTS:
        for impl in bus.implementations(event):
            if not _CONTEXT.isdisjoint(arguments_of(EVENTS[event], impl)):
                found.add(impl.plugin_name)
    return found


def is_own(plugin: object) -> bool:
    """Whether a plugin is hatbus's own, and so publishes nothing that it does not tell."""
    return is_first_party(type(plugin).__module__.partition(".")[0])


def check_watched(ctx: Context) -> None:
    """Lets every plugin with ``check_watched(ctx)`` look whether its names will be published.

    Raises:
        JobError: one will not.
    """
    for member in ctx.bus.members.values():
        check = getattr(member.plugin, "check_watched", None)
        if callable(check):
            check(ctx)


def check_published(ctx: Context, what: str, wanted: str, *, bare: bool = False) -> None:
    """Refuses a name that nothing in the run publishes; for ``check_watched`` of a plugin.

    It is called when all plugins are prepared, before the first step, and again when the losses of
    a first step are known. What an earlier part of a resumed run published is known too. Where a
    plugin may publish anything, a name that looks like a slip is warned of.

    Args:
        ctx: of the training.
        what: plugin and option, to begin the message with.
        wanted: the name.
        bare: whether the last part of a name is enough, if the training does not publish it.

    Raises:
        JobError: nothing publishes it; the message says what is close, or known.
    """
    names = {*published_names(ctx, ctx.bus), *ctx.latest}
    known = sorted(name for name in names if ANY not in name)
    if wanted in known or (bare and any(is_last(wanted, name) for name in known)):
        return
    hint = did_you_mean(wanted, known)
    if "did you mean" not in hint and bare and "/" not in wanted:
        near = did_you_mean(wanted, {name.rpartition("/")[2] for name in known})
        hint = near if "did you mean" in near else hint
    fault = f"{what} is {wanted!r}, and nothing in this run publishes that"
    if not any(may_be(wanted, name, bare=bare) for name in names):
        raise JobError(f"{fault}{hint or '; it publishes nothing at all'}")
    is_new = ctx.storage.setdefault("evaluation.told", {}).setdefault(what, wanted) is wanted
    if "did you mean" in hint and ctx.rank == 0 and is_new:
        ctx.storage["evaluation.told"][what] = f"{wanted} "
        log.warning("%s is %r, and no plugin says that it publishes that%s", what, wanted, hint)


def may_be(wanted: str, pattern: str, *, bare: bool) -> bool:
    """Whether a name that is not known yet may turn out to be the wanted one."""
    if ANY not in pattern:
        return False
    if fnmatchcase(wanted, pattern):
        return True
    return bare and "/" not in wanted and fnmatchcase(wanted, pattern.rpartition("/")[2])


def is_last(wanted: str, name: str) -> bool:
    """Whether a bare name is the last part of a published one, which is not the training's."""
    is_end = "/" not in wanted and name.rpartition("/")[2] == wanted
    return is_end and not name.startswith(_TRAINING) and "/" in name


def note_losses(ctx: Context) -> tuple[bool, bool]:
    """Takes note of the losses of a step.

    Returns:
        Whether there are some of a task not seen before, and whether every task was seen by now.
    """
    known: dict[str | None, list[str]] = ctx.storage.setdefault(_LOSSES, {})
    found: dict[str | None, list[str]] = {}
    for name in ctx.losses:
        task, _, loss = name.rpartition("/") if ctx.data.tasks else ("", "", name)
        found.setdefault(task or None, []).append(loss)
    new = {task: losses for task, losses in found.items() if task not in known}
    known |= new
    return bool(new), not set(ctx.data.tasks or [None]) - known.keys()


def expected_losses(ctx: Context, tasks: Iterable[str], *, training: bool = False) -> list[str]:
    """The names of the losses that the trainer's processor gives, ``<task>/<loss>`` with tasks.

    Known are those of torch's own functions, and after a first step those that it gave; ``*``
    stands for the others.

    Args:
        ctx: of the training.
        tasks: that are asked for; none: those of a batch without a task.
        training: whether it is of the training's own; in eval mode a model that returns its losses
            may return others, or none.
    """
    member = ctx.bus.members.get("core.batch_processor")
    processor: Any = member.plugin if member is not None else None
    loss = getattr(processor, "loss", None) if type(processor) is BatchProcessor else None
    is_told = training or loss is not None
    noted: Mapping[str | None, list[str]] = ctx.storage.get(_LOSSES, {}) if is_told else {}
    found = []
    asked: list[str | None] = [*tasks]
    for task in asked or [None]:
        start = f"{task}/" if task else ""
        one = loss.get(task) if isinstance(loss, Mapping) else loss
        names = noted.get(task) or (["loss"] if gives_one(one) else [ANY])
        found += [f"{start}{name}" for name in names]
    return found


def gives_one(loss: Any) -> bool:
    """Whether a loss is torch's own, and so gives one tensor."""
    while isinstance(loss, partial):
        loss = loss.func
    of = type(loss) if isinstance(loss, torch.nn.Module) else loss
    return f"{getattr(of, '__module__', '')}.".startswith(("torch.nn.", "torch._C."))
