"""Weight views: other weights that the model shows for a while, such as an average.

The raw weights are what training and checkpoints see, always. A view is entered around a
validation or an export and left on every way out, so nothing else can ever see it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from hatbus.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

RAW = "raw"
"""Name of the view that is no view: the weights that are trained."""
EMA = "ema"
"""The view of the plugin ``ema``."""


class View(Protocol):
    """Makes the model show other weights while its context is open."""

    def __call__(self) -> AbstractContextManager[None]:
        """Opens the view."""


class Weights:
    """The views of a run by name; ``"raw"`` is always there.

    Attributes:
        current: the name of the view that the model shows now.
        asked: the view that somebody asked for in particular (``trainer.validate(weights=...)``):
            whoever chooses a view by an option takes this one; None: nobody did.
    """

    __slots__ = ("_views", "asked", "current")

    def __init__(self) -> None:
        self._views: dict[str, Callable[[], AbstractContextManager[None]]] = {}
        self.current = RAW
        self.asked: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every view that can be shown."""
        return (RAW, *self._views)

    def add(self, name: str, view: Callable[[], AbstractContextManager[None]]) -> None:
        """Offers a view under a name; a plugin does this at ``on_loop_begin``, in every fit anew.

        A fit begins with no views, so that none outlives its plugin.

        Args:
            name: what ``showing`` knows it by, such as ``"ema"``.
            view: makes a context manager inside which the model has the other weights.

        Raises:
            PluginError: another view has that name.
        """
        if name == RAW or self._views.get(name, view) != view:
            raise PluginError(f"a weight view named {name!r} exists already; choose another name")
        self._views[name] = view

    @contextmanager
    def showing(self, name: str) -> Iterator[None]:
        """The model shows the view ``name`` inside this context and its raw weights after it.

        Raises:
            PluginError: no such view, or another view is open (views do not nest).
        """
        if name not in self.names:
            raise PluginError(f"unknown weight view {name!r}{did_you_mean(name, self.names)}")
        if name == RAW and self.current == RAW:
            yield
            return
        if self.current != RAW:
            raise PluginError(
                f"weight view {name!r} was asked for while {self.current!r} is shown; "
                "views do not nest"
            )
        self.current = name
        try:
            with self._views[name]():
                yield
        finally:
            self.current = RAW
