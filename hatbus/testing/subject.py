"""``Subject``: what an author says about a plugin, and the runs that the clauses make of it."""

from __future__ import annotations

import inspect
import re
import shutil
import tempfile
import unittest
import weakref
from abc import abstractmethod
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hatbus import Trainer, rng
from hatbus.testing.tiny import tiny_parts
from hatbus.testing.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hatbus.testing.trial import After


class Subject:
    """The plugin under test, and how it is run.

    Attributes:
        observer: it only watches: weights, optimizer and random state are the same without it.
        num_steps: length of the runs; the tiny data has 4 steps an epoch.
        reads_every: steps between those that may read values from tensors: n allows the steps with
            ``(global_step_id + 1) % n == 0``; 0: none may, 1: every one.
        tasks: what the job would bind it to, in runs of the tasks "a" and "b".
        volatile: patterns of published names, and of keys of the state, that differ from run to
            run (times, say).
        same_when_accumulated: a step of two half batches trains as one of a whole batch does.
        two_processes: run the clause of two processes, which takes seconds.
        most_us_per_step: microseconds that it may cost a step; None: they are only reported.
    """

    observer: ClassVar[bool] = False
    num_steps: ClassVar[int] = 12
    reads_every: ClassVar[int] = 0
    tasks: ClassVar[Sequence[str]] = ()
    volatile: ClassVar[Sequence[str]] = ()
    same_when_accumulated: ClassVar[bool] = True
    two_processes: ClassVar[bool] = False
    _common_folder: Path | None = None
    most_us_per_step: ClassVar[float | None] = None

    @abstractmethod
    def make(self) -> object:
        """A new instance of the plugin. Files belong into ``self.folder``."""
        raise NotImplementedError(f"{type(self).__name__} says not what to test: define make(self)")

    def make_another(self) -> object:
        """An instance to stand beside the first, with other options, and files of its own."""
        return self.make()

    def build(self) -> dict[str, Any]:
        """Model, optimizer, data, loss (and more), as a job's entry function returns them."""
        return tiny_parts()

    def companions(self) -> Mapping[str, object]:
        """Other plugins that this one needs, by name; new ones for every run."""
        return {}

    def outcome(self, plugin: object) -> Any:
        """What else must be the same after a resumed run: the contents of a file, say."""
        return None

    @property
    def folder(self) -> Path:
        """A folder for the files of the present run."""
        if not hasattr(self, "_folder"):
            self.new_folder()
        return self._folder

    def new_folder(self) -> None:
        """Gives the next runs a folder of their own; several processes have one for all."""
        if self._common_folder is not None:
            self._folder = self._common_folder
            return
        self._folder = Path(tempfile.mkdtemp(prefix="hatbus-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def name(self) -> str:
        """The instance name in the runs, and the plugin's in messages."""
        found = re.sub(r"^Test_?|_?(Contract|Tests?)$", "", type(self).__name__)
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", found).lower() or "plugin"

    # ---- runs ---------------------------------------------------------------------------------

    def trial(self, plugins: Mapping[str, object] | None = None, **options: Any) -> Trial:
        """A run that is ready to start, with the same weights and random state every time.

        Args:
            plugins: by instance name; the companions come before them.
            options: of ``Trainer``, in place of what ``build`` gives.
        """
        rng.seed_all(0)
        own = {**self.companions(), **(plugins or {})}
        parts = {**self.build(), "plugins": own, **options}
        known = inspect.signature(Trainer).parameters
        trial = Trial(**{name: value for name, value in parts.items() if name in known})
        trial.trainer.ctx.run_dir = self.folder  # what is stopped and goes on there is one run
        rng.seed_all(1)
        return trial

    def with_plugin(self, others: Mapping[str, object] | None = None, **options: Any) -> Trial:
        """A run with the plugin, in a folder of its own; ``others`` come after it."""
        self.new_folder()
        return self.trial({self.name: self.make(), **(others or {})}, **options)

    def without_plugin(self, **options: Any) -> Trial:
        """The same run without it."""
        self.new_folder()
        return self.trial(**options)

    def stable_logs(self, trial: Trial, first: int = 0) -> dict[tuple[int, str], Any]:
        """What was published from a step on, less what is volatile."""
        return {
            (step, name): values[-1]
            for (step, name), values in trial.recorder.logs.items()
            if step >= first and not any(fnmatch(name, one) for one in self.volatile)
        }


def skip(reason: str) -> None:
    """Leaves a clause out; pytest takes unittest's word for it.

    Raises:
        SkipTest: always.
    """
    raise unittest.SkipTest(reason)


def first_unequal(
    one: Sequence[After], other: Sequence[After]
) -> Iterator[tuple[int, str, Any, Any]]:
    """(step, field, value, value) of two runs, step by step and field by field."""
    for a, b in zip(one, other, strict=False):
        for name, x, y in zip(a._fields, a, b, strict=True):
            yield a.step, name, x, y
