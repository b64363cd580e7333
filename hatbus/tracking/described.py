"""What a run is, in plain values: its settings, and the plan of its events as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hatbus.insight.explanation import plan_of
from hatbus.tracking.secret import without_secrets

if TYPE_CHECKING:
    from hatbus.loop.context import Context

_SAYS_NOTHING = ("use", "enabled", "save_dir")


def config_of(ctx: Context, own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run as nested tables: numbers, texts, lists; secrets left out.

    Args:
        ctx: of the run.
        own: what the user adds.
    """
    job: dict[str, Any] = ctx.storage.get("job", {})
    found: dict[str, Any] = {"run": {"seed": ctx.seed, **job.get("run", {})}}
    for name in ("num_epochs", "num_steps"):
        if getattr(ctx, name) is not None:
            found["run"][name] = getattr(ctx, name)
    if ctx.optimizer is not None:
        found["optimizer"] = {"class": type(ctx.optimizer).__name__, **ctx.optimizer.defaults}
    found["plugins"] = {
        name: {key: value for key, value in table.items() if key not in _SAYS_NOTHING}
        for name, table in job.get("plugins", {}).items()
        if table.get("enabled", True)
    }
    if not job:
        found["plugins"] = {placed.name: {} for placed in ctx.bus.order()}
    return without_secrets({**_plain(found), **_plain(own)})


def plan_text(ctx: Context) -> str:
    """The plugins in order, then who takes part in which event, as ``hatbus explain`` has it."""
    plan = plan_of(ctx.bus)
    lines = ["plugins, in the order they have in every event", ""]
    for entry in plan.plugins:
        only = f" ({entry.filters})" if entry.filters else ""
        lines.append(f"{entry.plugin}: {'; '.join(entry.why)}{only}; from {entry.source}")
    lines += ["", "events, outermost first", "", *plan.lines()]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """The value where JSON has such, else its text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
