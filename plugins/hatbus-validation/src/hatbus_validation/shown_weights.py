"""Which model is validated, with which weights, and that nothing of it stays behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from hatbus.discovery import build
from hatbus.errors import PluginError, did_you_mean
from hatbus.log import log
from hatbus.loop import RAW, eval_mode, parts_of
from hatbus.parallel import full_tensor

if TYPE_CHECKING:
    from hatbus import Context

EMA = "ema"
PIPELINE = "validation: model_convert_pipeline"
OBSERVERS = ("FakeQuantizeBase", "ObserverBase")
"""torch's classes that watch the ranges of values; what they have seen gives them their shape."""
Converter = Callable[[nn.Module], Any]


def view_name(ctx: Context, wanted: str | None) -> str:
    """The weight view to validate: the wanted one, else one already shown, else EMA, else raw.

    The one that was asked for in particular (``trainer.validate(weights=...)``) comes before all.

    Raises:
        PluginError: there is no such view.
    """
    wanted = ctx.weights.asked or wanted
    if wanted is None:
        if ctx.weights.current != RAW:
            return ctx.weights.current
        return EMA if EMA in ctx.weights.names else RAW
    if wanted not in ctx.weights.names:
        hint = did_you_mean(wanted, ctx.weights.names)
        raise PluginError(f"validation: no weights {wanted!r} in this run{hint}")
    return wanted


def showing(ctx: Context, name: str) -> AbstractContextManager[None]:
    """The model shows these weights inside the context; nothing to do if it does already."""
    return nullcontext() if ctx.weights.current == name else ctx.weights.showing(name)


class InEvalMode:
    """A model that is shown as it is, in eval mode."""

    __slots__ = ("_eval_mode", "_model")

    def __init__(self, model: nn.Module) -> None:
        self._model, self._eval_mode = model, eval_mode(model)

    def __enter__(self) -> nn.Module:
        self._eval_mode.__enter__()
        return self._model

    def __exit__(self, *error: Any) -> None:
        self._eval_mode.__exit__(*error)


@contextmanager
def first_ranks_buffers(ctx: Context, model: nn.Module) -> Iterator[None]:
    """Every rank shows the buffers of rank 0, which a checkpoint saves, and has its own afterwards.

    Running statistics of batch norms are each rank's own; DDP gives all ranks those of rank 0 with
    the next step.
    """
    buffers = [one for one in model.buffers() if one.numel()] if ctx.world_size > 1 else []
    if not buffers:
        yield
        return
    own = [one.clone() for one in buffers]
    for dtype in dict.fromkeys(one.dtype for one in buffers):
        alike = [one for one in buffers if one.dtype == dtype]
        whole = torch.cat([one.flatten() for one in alike])
        distributed.broadcast(whole, 0)
        parts = torch.split(whole, [one.numel() for one in alike])
        for one, part in zip(alike, parts, strict=True):
            one.copy_(part.view_as(one))
    try:
        yield
    finally:
        for one, kept in zip(buffers, own, strict=True):
            one.copy_(kept)


def range_switches(model: nn.Module) -> list[torch.Tensor]:
    """What tells torch's observers to watch, which they do in eval mode too."""
    return [
        one
        for part in parts_of(model)
        if (one := part._buffers.get("observer_enabled")) is not None  # noqa: SLF001 - the dict itself
    ]


@contextmanager
def switched_off(switches: list[torch.Tensor]) -> Iterator[None]:
    """A model that imitates quantisation does so with its ranges, which do not move meanwhile."""
    before = [one.clone() for one in switches]
    for one in switches:
        one.zero_()
    try:
        yield
    finally:
        for one, was in zip(switches, before, strict=True):
            one.copy_(was)


def converters(given: Any) -> tuple[Converter, ...]:
    """``model_convert_pipeline`` as callables in order.

    Raises:
        PluginError: something in it cannot be called.
    """
    if isinstance(given, Mapping):
        given = _pipeline_of(given)
    given = getattr(given, "converters", given)  # those of a pipeline are applied one by one
    listed = () if given is None else given if isinstance(given, (list, tuple)) else (given,)
    listed = [build(one, PIPELINE) if isinstance(one, Mapping) else one for one in listed]
    for one in listed:
        if not callable(one):
            raise PluginError(
                f"validation: model_convert_pipeline holds {one!r}; accepted: callables that take "
                "a model and return one"
            )
    return tuple(listed)


def _pipeline_of(given: Mapping[str, Any]) -> Any:
    """The pipeline that a mapping describes: ``type`` and options, or ``converters`` alone.

    Raises:
        HatbusError: it has another key, or a type that there is not.
    """
    if "type" in given:
        return build(given, PIPELINE)
    for key in given:
        if key != "converters":
            raise PluginError(
                f"{PIPELINE}: unknown key {key!r}{did_you_mean(str(key), ['converters'])}"
            )
    return given.get("converters", ())


def converted(model: nn.Module, pipeline: Sequence[Converter]) -> nn.Module:
    """A copy of the model after every converter; the model itself when there is none."""
    if not pipeline:
        return model
    result = copy.deepcopy(model)
    for convert in pipeline:
        made = convert(result)
        if made is not None and not isinstance(made, nn.Module):
            raise PluginError(
                f"validation: converter {convert!r} returned {type(made).__name__}; accepted: a "
                "model, or None when it changed the one it got"
            )
        result = result if made is None else made
    return result


def built_model(given: Any) -> nn.Module | None:
    """``val_model`` as a model: itself, what a callable makes, or a table ``{type, ...}``.

    Raises:
        PluginError: it is none of these.
    """
    if given is None or isinstance(given, nn.Module):
        return given
    if isinstance(given, Mapping):
        made = build(given, "validation: val_model") if "type" in given else None
    else:
        made = given() if callable(given) else None
    if not isinstance(made, nn.Module):
        raise PluginError(
            f"validation: val_model is {given!r}; accepted: a model, a function that makes one, or "
            "a table with type = such a function and its arguments"
        )
    return made


def copy_weights(state: Mapping[str, torch.Tensor], target: nn.Module, *, strict: bool) -> str:
    """Copies weights by name into a model.

    Args:
        state: of the model that is trained; shards are gathered, so every process has to ask.
        target: the model that is validated. A module of it that imitates quantisation takes its
            ranges in whatever shape they have.
        strict: refuse any difference.

    Returns:
        The differences in words; empty if there are none.

    Raises:
        PluginError: there are differences and ``strict``, or nothing fits at all.
    """
    own = target.state_dict()
    common = {n: v for n, v in state.items() if n in own}
    takers = of_observers(target)
    fitting = {n: v for n, v in common.items() if n in takers or shape(own[n]) == shape(v)}
    said = "; ".join(
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("not in the trained model", [n for n in own if n not in state]),
            ("not in val_model", [n for n in state if n not in own]),
            ("of another shape", [n for n in common if n not in fitting]),
        )
        if names
    )
    if said and (strict or not fitting):
        advice = "" if strict else "; no weight fits at all"
        raise PluginError(f"validation: val_model differs from the trained model: {said}{advice}")
    target.load_state_dict({n: full_tensor(v) for n, v in fitting.items()}, strict=False)
    return said


def shape(value: Any) -> Any:
    """The shape of a tensor; the kind of anything else."""
    return value.shape if isinstance(value, torch.Tensor) else type(value)


def of_observers(model: nn.Module) -> set[str]:
    """Names of the tensors of torch's observers, which load them in any shape."""
    found = set()
    for prefix, module in model.named_modules():
        if any(one.__name__ in OBSERVERS for one in type(module).__mro__):
            found |= {f"{prefix}.{name}" if prefix else name for name in module.state_dict()}
    return found


def loading_place(
    model: nn.Module, pipeline: Sequence[Converter], names: Sequence[str]
) -> tuple[nn.Module, tuple[Converter, ...]]:
    """Where in a pipeline trained weights are loaded: convert first, then load, as HAT does.

    Args:
        model: ``val_model``, which is left as it is.
        pipeline: the converters.
        names: of the trained weights.

    Returns:
        The model after as many converters as make its names most like the trained model's (itself
        after none), and the converters that are left.
    """
    wanted, best = set(names), 0
    least = len(wanted ^ set(model.state_dict()))
    for count in range(1, len(pipeline) + 1):
        if not least:
            break
        unlike = len(wanted ^ set(converted(model, pipeline[:count]).state_dict()))
        if unlike < least:
            best, least = count, unlike
    return converted(model, pipeline[:best]), tuple(pipeline[best:])


def warn_of_differences(said: str) -> None:
    """Says in the log which weights of ``val_model`` do not come from the trained model."""
    if said:
        log.warning("validation: val_model keeps what differs from the trained model: %s", said)
