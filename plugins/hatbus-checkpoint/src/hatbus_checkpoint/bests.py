"""Several judges of one run's checkpoints: the plugin's own metric, and further ones by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from hatbus import option_values
from hatbus.errors import JobError, did_you_mean
from hatbus_checkpoint.best import MODES, Best
from hatbus_checkpoint.folder import BEST
from hatbus_checkpoint.retention import Ranking

if TYPE_CHECKING:
    from collections.abc import Callable

    from hatbus.loop import Context
    from hatbus_checkpoint.folder import CheckpointFolder

_KEYS: Final = ("mode", "monitor_metric_key", "keep_best")
_ACCEPTED: Final = "a table of names, each with a table of mode, monitor_metric_key and keep_best"


class Bests:
    """What decides on the marks ``best`` and ``best-<name>``; one writer saves for all of them.

    Args:
        main: of the mark ``best``.
        more: name to a table with ``mode``, ``monitor_metric_key`` and perhaps ``keep_best``.

    Raises:
        JobError: a table that cannot be used.
    """

    def __init__(self, main: Best, more: Any) -> None:
        self._main, self._more = main, dict(read(more))
        self._kept = {name: more[name].get("keep_best") for name in self._more}

    @property
    def are_kept(self) -> bool:
        """Whether any of the further ones says how many to keep."""
        return any(count is not None for count in self._kept.values())

    def hear(self, names: Iterable[str]) -> None:
        """Takes note of what is published."""
        for one in self._all():
            one.hear(names)

    def weigh(self, ctx: Context) -> tuple[dict[str, Any], list[str]]:
        """What a save says of the values, for its manifest, and the marks that it wins."""
        own, is_best = self._main.weigh(ctx)
        fields: dict[str, Any] = {"best": own}
        won = [BEST] if is_best else []
        found = {name: one.weigh(ctx) for name, one in self._more.items()}
        if found:
            fields["bests"] = {name: value for name, (value, _) in found.items() if value}
        return fields, [*won, *(mark_of(name) for name, (_, wins) in found.items() if wins)]

    def rankings(self, folder: CheckpointFolder, keep_best: int | None) -> list[Ranking]:
        """What retention and the marks go by."""
        main = Ranking("", self._main.label, self._main.mode, keep_best, folder.pointed(BEST))
        return [main] + [
            Ranking(name, one.label, one.mode, self._kept[name], folder.pointed(mark_of(name)))
            for name, one in self._more.items()
        ]

    def check_watched(self, ctx: Context) -> None:
        """Refuses a key that nothing in the run publishes.

        Raises:
            JobError: it is so.
        """
        for one in self._all():
            one.check_watched(ctx)

    def tell_replaced(self, warn: Callable[..., None]) -> None:
        """Says after a resume which best is another from now on."""
        for one in self._all():
            one.tell_replaced(warn)

    def look_back(self, ctx: Context) -> None:
        """Says at a run's end which value was never published."""
        for one in self._all():
            one.look_back(ctx)

    def state(self) -> dict[str, Any]:
        """The best values, and what they are of."""
        more = {"bests": {name: one.state() for name, one in self._more.items()}}
        return {**self._main.state(), **(more if self._more else {})}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on comparing; one that was not there starts anew."""
        self._main.load(state)
        saved = state.get("bests", {})
        for name, one in self._more.items():
            one.load(saved.get(name, {"best": None}))

    def _all(self) -> Iterator[Best]:
        yield self._main
        yield from self._more.values()


def mark_of(name: str) -> str:
    """The mark of a further best; of the main one, whose name is empty, ``best``."""
    return f"{BEST}-{name}" if name else BEST


def read(given: Any) -> Iterator[tuple[str, Best]]:
    """The further judges of what a user wrote.

    Raises:
        JobError: what was given, and what is accepted.
    """
    if given is None:
        return
    if not isinstance(given, Mapping) or not all(isinstance(t, Mapping) for t in given.values()):
        raise JobError(f"checkpoint: bests is {given!r:.80}; accepted: {_ACCEPTED}")
    for name, table in given.items():
        what = f"checkpoint: bests.{name}"
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
            raise JobError(f"{what}: a name has letters, digits and '_' only")
        for key in table:
            if key not in _KEYS:
                raise JobError(f"{what}: unknown key {key!r}{did_you_mean(key, _KEYS)}")
        option_values.one_of(f"{what}.mode", table.get("mode"), MODES)
        option_values.text(f"{what}.monitor_metric_key", table.get("monitor_metric_key"))
        if table.get("keep_best") is not None:
            option_values.whole(f"{what}.keep_best", table["keep_best"], 1)
        yield name, Best(table["mode"], table["monitor_metric_key"], None, what)
