"""What ``parallel`` says, in a job's ``[run]`` or in Python. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from hatbus.errors import JobError, did_you_mean
from hatbus.option_values import one_of, whole

MODES: Final = ("ddp", "fsdp2", "hsdp")
SHARDED: Final = ("fsdp2", "hsdp")
DTYPES: Final = ("fp32", "bf16", "fp16")
_OF_DDP: Final = ("static_graph", "bucket_views")
_OF_SHARDS: Final = ("blocks", "param_dtype", "reduce_dtype", "reshard_after_forward", "offload")


@dataclass(frozen=True)
class Parallel:
    """How the processes of a run share its model: ``Trainer(parallel=...)``, ``[run.parallel]``.

    Args:
        mode: ``"ddp"``: the whole model on every process; ``"fsdp2"``: parameters, gradients and
            the optimizer's state in shards over all processes (torch's ``fully_shard``);
            ``"hsdp"``: in shards over the processes of a group, and alike in every group.
        find_unused: parameters may get no gradient in a step on some process, as where the data
            chooses a branch of the model; None: with several tasks of ``"ddp"`` only.
        sync_batchnorm: statistics of batch norms are of the batches of all processes; on
            accelerators only.
        static_graph: every step runs the same part of the model, the same number of times, which
            spares ``"ddp"`` looking for unused parameters.
        bucket_views: gradients lie in the memory that ``"ddp"`` exchanges, which saves a copy of
            them.
        blocks: what is gathered at a time: classes of modules (``"Block"``) or names of modules
            (``"layers.*"``, with ``*``); None: what a Transformers model says of itself, else the
            whole model at once.
        param_dtype: of forward and backward, ``"bf16"``; the optimizer goes on in the
            parameters' own; None: that one.
        reduce_dtype: in which gradients are exchanged; None: as ``param_dtype``.
        reshard_after_forward: whether a block is given up between forward and backward; a number:
            keep it in shards over so many processes; None: every block but the whole model.
        offload: parameters, gradients and the optimizer's state stay in the host's memory.
        mesh: of ``"hsdp"``: how many groups, and processes in each.

    Raises:
        JobError: a value that cannot be used, or one of another mode.
    """

    mode: Literal["ddp", "fsdp2", "hsdp"] = "ddp"
    find_unused: bool | None = None
    sync_batchnorm: bool = False
    static_graph: bool = False
    bucket_views: bool = False
    blocks: str | list[str] | tuple[str, ...] | None = None
    param_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    reduce_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    reshard_after_forward: bool | int | None = None
    offload: bool = False
    mesh: list[int] | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Checks the values, and that they belong to the mode."""
        one_of("parallel: mode", self.mode, MODES)
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if isinstance(default, bool) and not isinstance(value, bool):
                raise JobError(f"parallel: {name} is {value!r}; accepted: True, False")
        one_of("parallel: find_unused", self.find_unused, (None, True, False))  # type: ignore[arg-type]
        _check_shards(self)
        _check_mesh(self)
        _check_mode(self)

    @property
    def shards(self) -> bool:
        """Whether no process has the whole model."""
        return self.mode in SHARDED

    @property
    def wanted_blocks(self) -> tuple[str, ...] | None:
        """``blocks`` as names."""
        return (self.blocks,) if isinstance(self.blocks, str) else _tuple(self.blocks)

    def as_table(self) -> dict[str, Any]:
        """What is not as it is by default, as plain data."""
        given = {name: getattr(self, name) for name in _DEFAULTS}
        changed = {name: value for name, value in given.items() if value != _DEFAULTS[name]}
        return {"mode": self.mode, **changed}


_DEFAULTS: Final[dict[str, Any]] = {
    one.name: one.default for one in fields(Parallel) if one.name != "mode"
}


def parallel_of(given: Any) -> Parallel | None:
    """What was given as ``parallel``; None: nothing.

    Args:
        given: a mode, a table of the fields of ``Parallel``, one, or None.

    Raises:
        JobError: what was given, and what is accepted.
    """
    if given is None or isinstance(given, Parallel):
        return given
    if isinstance(given, Mapping):
        for name in given:
            if name not in ("mode", *_DEFAULTS):
                raise JobError(
                    f"parallel: unknown option {name!r}{did_you_mean(str(name), _DEFAULTS)}"
                )
        return Parallel(**given)
    if not isinstance(given, str):
        words = ", ".join(map(repr, MODES))
        raise JobError(f"parallel is {given!r:.80}; accepted: {words}, Parallel(...) or a table")
    one_of("parallel", given, MODES)
    return Parallel(given)  # type: ignore[arg-type]  # one of them


def _check_shards(given: Parallel) -> None:
    """Refuses values of what belongs to shards."""
    named: tuple[Any, ...] = given.wanted_blocks or ()
    if not all(isinstance(one, str) and one for one in named) or given.blocks in ("", [], ()):
        raise JobError(
            f"parallel: blocks is {given.blocks!r}; accepted: names of classes or modules of the "
            "model, such as 'Block' or 'layers.*'"
        )
    for name in ("param_dtype", "reduce_dtype"):
        if getattr(given, name) is not None:
            one_of(f"parallel: {name}", getattr(given, name), DTYPES)
    reshard: Any = given.reshard_after_forward
    if not isinstance(reshard, bool | None):
        whole("parallel: reshard_after_forward", reshard, 2)


def _check_mesh(given: Parallel) -> None:
    """Refuses what is no mesh of two numbers."""
    if given.mode == "hsdp" and given.mesh is None:
        raise JobError(
            "parallel: mode 'hsdp' needs a mesh: how many groups, and processes in each, such as "
            "mesh = [2, 4] for 8 processes"
        )
    mesh: Any = given.mesh
    if mesh is None:
        return
    sizes = mesh if isinstance(mesh, (list, tuple)) else ()
    if len(sizes) != 2 or not all(isinstance(n, int) and n >= 1 for n in sizes):
        raise JobError(
            f"parallel: mesh is {mesh!r}; accepted: two whole numbers of at least 1, how "
            "many groups and how many processes in each"
        )


def _check_mode(given: Parallel) -> None:
    """Refuses what another mode has."""
    others = {"ddp": (*_OF_SHARDS, "mesh"), "fsdp2": (*_OF_DDP, "mesh"), "hsdp": _OF_DDP}
    for name in others[given.mode]:
        if getattr(given, name) != _DEFAULTS[name]:
            fits = [mode for mode in MODES if name not in others[mode]]
            raise JobError(
                f"parallel: {name} belongs to mode {' or '.join(map(repr, fits))}, and the mode "
                f"is {given.mode!r}; leave it out, or choose that mode"
            )


def _tuple(given: Any) -> tuple[str, ...] | None:
    return None if given is None else tuple(given)
