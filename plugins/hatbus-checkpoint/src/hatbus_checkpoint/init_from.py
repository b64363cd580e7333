"""``InitFrom``: weights for the start of another training, such as fine-tuning."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from hatbus.errors import CheckpointError, JobError
from hatbus.log import log
from hatbus.loop import RAW, plain_name
from hatbus.option_values import names, text
from hatbus.parallel import reshard
from hatbus_checkpoint import model_state
from hatbus_checkpoint.sharded.placing import Placing
from hatbus_checkpoint.weights import lazy_weights_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

_SHOWN: Final = 3
Rows = list[tuple[str, str, str]]


class Match(NamedTuple):
    """What was loaded into a model, and what was not; names are the model's.

    Attributes:
        loaded: tensors of the model that have the weights now.
        missing: those that the source does not have.
        unexpected: names in the source that the model does not have, renamed.
        reshaped: in both, but of another shape.
        left_out: in both, and left out by ``only`` or ``skip``.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    left_out: list[str]


class InitFrom:
    """Loads weights, and nothing else, into a model by name.

    Args:
        path: a run's folder, a checkpoint, ``<folder>/best``, a ``.safetensors`` file, HAT's
            ``.pth.tar`` or a state dict that ``torch.save`` wrote; see ``weights_of``.
        weights: ``"raw"``, or the plugin whose averages are taken, such as ``"ema"``.
        rename: beginnings of the source's names to what stands for them in the model; the first
            that fits is taken. A whole name is a beginning; ``{"": "backbone."}`` puts one before.
        only: beginnings of the model's names; what begins otherwise is left out.
        skip: beginnings of the model's names that are left out, such as ``["head."]``.
        strict: refuse what does not match, in name or shape, of all that is not left out; else it
            is a warning, and the model keeps its own there.

    Raises:
        JobError: a value that is not accepted.
    """

    def __init__(
        self,
        path: str | Path,
        weights: str = RAW,
        rename: Mapping[str, str] | None = None,
        only: Sequence[str] = (),
        skip: Sequence[str] = (),
        strict: bool = False,
    ) -> None:
        text("init_from: weights", weights)
        names("init_from: only", only)
        names("init_from: skip", skip)
        is_table = rename is None or isinstance(rename, Mapping)
        if not is_table or not all(isinstance(t, str) for p in (rename or {}).items() for t in p):
            raise JobError(f"init_from: rename is {rename!r}; accepted: a table of texts to texts")
        self.path, self.weights, self.strict = path, weights, bool(strict)
        self.rename, self.only, self.skip = dict(rename or {}), tuple(only), tuple(skip)

    def __call__(self, model: nn.Module) -> Match:
        """Loads them.

        Returns:
            What matched and what did not.

        Raises:
            CheckpointError: there are no such weights, none of them is in the model, or with
                ``strict`` something does not match. The model is as it was.
        """
        reshard(model)
        source = self._source()
        given = {self._renamed(name): value for name, value in source.items()}
        state = model.state_dict()
        wrapped = {plain_name(name): name for name in state}
        own = {plain: state[name] for plain, name in wrapped.items()}
        wanted = [name for name in own if self._is_wanted(name)]
        reshaped = [n for n in wanted if n in given and not _fits(own[n], given[n])]
        loaded = [n for n in wanted if n in given and n not in reshaped]
        if not loaded:
            raise CheckpointError(self._nothing(source, own, reshaped))
        ids = model_state.ids_of_parameters(model)

        def same(name: str) -> Any:
            return model_state.identity_of(wrapped[name], own[name], ids)

        held = {same(n) for n in loaded if _is_there(own[n])}
        found = Match(
            loaded,
            [n for n in wanted if n not in given and not (_is_there(own[n]) and same(n) in held)],
            [n for n in given if n not in own and self._is_wanted(n)],
            reshaped,
            [n for n in own if n in given and not self._is_wanted(n)],
        )
        self._tell(found, given, own)
        taken = {wrapped[n]: given[n] for n in loaded}
        model.load_state_dict(Placing(state, ()).model(taken), strict=False)
        return found

    def _source(self) -> dict[str, Any]:
        try:
            found = lazy_weights_of(self.path, self.weights)
        except CheckpointError as error:
            said = str(error).removeprefix("resume: ")
            raise CheckpointError(f"init_from: {said}") from error
        return {plain_name(name): value for name, value in found.items()}

    def _renamed(self, name: str) -> str:
        for old, new in self.rename.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    def _is_wanted(self, name: str) -> bool:
        return (not self.only or name.startswith(self.only)) and not name.startswith(self.skip)

    def _tell(self, found: Match, given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Says what matched and what did not.

        Raises:
            CheckpointError: something did not, and ``strict``.
        """
        shape = model_state.shape_of
        rows: Rows = [("missing", name, shape(own[name])) for name in found.missing]
        rows += [("unexpected", name, shape(given[name])) for name in found.unexpected]
        rows += [
            ("reshaped", n, f"{shape(given[n])} in the source, {shape(own[n])} in the model")
            for n in found.reshaped
        ]
        left = f", {len(found.left_out)} left out as told" if found.left_out else ""
        said = f"{self._start}: {len(found.loaded)} of the model's {len(own)} tensors{left}"
        if rows and self.strict:
            hint = "strict = false loads what fits, skip leaves out what is named"
            raise CheckpointError(f"{said}, and strict; {hint}\n{model_state.table(rows)}")
        if int(os.environ.get("RANK", "0")) == 0:
            if rows:
                log.warning("%s; not these:\n%s", said, model_state.table(rows))
            else:
                log.info("%s", said)

    def _nothing(self, source: Mapping[str, Any], own: Mapping[str, Any], reshaped: Any) -> str:
        if reshaped:
            name = reshaped[0]
            return f"{self._start}: every tensor of a name that the model has is of another shape, \
as {name!r}"
        theirs, mine = (", ".join(map(repr, [*n][:_SHOWN])) for n in (source, own))
        return (
            f"{self._start}: none of its {len(source)} tensors is in the model; it has {theirs}, "
            f"the model {mine}{_advice(source, own)}"
        )

    @property
    def _start(self) -> str:
        return f"init_from {str(self.path)!r}"


def _advice(source: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The renaming under which names would match, where one beginning is all that is different."""
    for name in source:
        start = name.partition(".")[0] + "."
        if any(n.removeprefix(start) in own for n in source if n.startswith(start)):
            return f"; rename = {{ {start!r} = '' }} would match"
    for name in own:
        start = name.partition(".")[0] + "."
        if any(start + n in own for n in source):
            return f"; rename = {{ '' = {start!r} }} would match"
    return "; say by rename how the names go together"


def _fits(mine: Any, value: Any) -> bool:
    return is_lazy(mine) or model_state.shape_of(mine) == model_state.shape_of(value)


def _is_there(mine: Any) -> bool:
    """Whether it is a tensor that has memory."""
    return isinstance(mine, torch.Tensor) and not is_lazy(mine)
