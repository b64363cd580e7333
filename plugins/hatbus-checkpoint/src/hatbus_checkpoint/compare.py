"""What a run is made of, and how it differs from the run that saved a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from hatbus.control import log
from hatbus.errors import CheckpointError
from hatbus.plugin_state import state_version

if TYPE_CHECKING:
    from hatbus.context import Context

_TRAINS: Final = ("setup", "schedule", "train", "average")
"""Stages whose plugins decide what the weights become."""
_OF_ONE_START: Final = ("resume", "drop_plugin_state", "override")
"""Options that say how to start a run, and not what it is."""


def settings_of(ctx: Context) -> dict[str, Any]:
    """What must be the same for a run to go on exactly, as flat JSON data."""
    optimizer = ctx.optimizer
    found = {
        "seed": ctx.seed,
        "accumulate": ctx.data.accumulate,
        "precision": "fp16"
        if ctx.scaler
        else "bf16"
        if "core.autocast" in ctx.bus.members
        else "fp32",
        "optimizer": type(optimizer).__name__,
    }
    for name, value in getattr(optimizer, "defaults", {}).items():
        found[f"optimizer.{name}"] = _plain(value)
    for task, identity in ctx.data.identity().items():
        found |= {f"data.{task}.{k}" if task else f"data.{k}": v for k, v in identity.items()}
    return found


def plan_of(ctx: Context) -> str:
    """How long the run is to be, in words."""
    return f"{ctx.num_epochs} epochs" if ctx.num_steps is None else f"{ctx.num_steps} steps"


def plugins_of(ctx: Context) -> list[dict[str, Any]]:
    """The plugin lock: the plugins in order, with source, state version and options."""
    tables = ctx.storage.get("job", {}).get("plugins", {})
    lasting = {
        name: {k: v for k, v in table.items() if k not in _OF_ONE_START}
        for name, table in tables.items()
    }
    options = json.loads(json.dumps(lasting, default=str))
    found = []
    for place in ctx.bus.order():
        member = ctx.bus.members[place.name]
        cls = type(member.plugin)
        found.append(
            {
                "name": member.name,
                "class": f"{cls.__module__}:{cls.__qualname__}",
                "source": getattr(cls, "__hatbus_source__", cls.__module__),
                "stage": member.declared.stage,
                "state_version": state_version(member.plugin),
                "options": options.get(member.name),
            }
        )
    return found


def versions_of(lock: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Plugin name to the version of its saved state."""
    return {entry["name"]: entry["state_version"] for entry in lock}


def check_same(ctx: Context, saved: Mapping[str, Any], override: Iterable[str]) -> list[str]:
    """Compares the run with a manifest.

    Args:
        ctx: the run.
        saved: the manifest.
        override: keys that may differ; ``"all"`` for all.

    Returns:
        The keys that differ and may.

    Raises:
        CheckpointError: the differences, and how to go on in spite of them.
    """
    found = dict(_changes(saved["settings"], settings_of(ctx)))
    found |= dict(_plugin_changes(saved["plugins"], plugins_of(ctx)))
    allowed = set(override)
    refused = {k: v for k, v in found.items() if k not in allowed and "all" not in allowed}
    if refused:
        what = "; ".join(
            f"{key:.99}: {was!r:.99} -> {now!r:.99}" for key, (was, now) in refused.items()
        )
        ways = " ".join(f"--override {key:.99}" for key in refused)
        raise CheckpointError(
            f"the run is not the one that was saved: {what}; put it back, or go on with {ways}"
        )
    for key, (was, now) in found.items():
        log.warning("going on with another %s: %r -> %r; not bit-exact", key, was, now)
    plan, planned = plan_of(ctx), saved.get("plan")
    if planned not in (None, plan):
        what = (
            "the run was planned for %.99s and now is for %s; schedules that span it change with it"
        )
        log.info(what, planned, plan)
    if saved["world_size"] != ctx.world_size:
        log.warning(
            "saved with %d processes, going on with %d: the same batches, but not bit-exact",
            saved["world_size"],
            ctx.world_size,
        )
    return list(found)


def _changes(
    was: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterable[tuple[str, tuple[Any, Any]]]:
    for key in [*was, *(k for k in now if k not in was)]:
        if was.get(key) != now.get(key):
            yield key, (was.get(key), now.get(key))


def _plugin_changes(
    was: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]]
) -> Iterable[tuple[str, tuple[Any, Any]]]:
    """Changed options of plugins that take part in training."""
    before = {e["name"]: e for e in was}
    for entry in now:
        known = before.get(entry["name"])
        if known is None or entry["stage"] not in _TRAINS:
            continue
        if entry["options"] is None or known["options"] is None:
            continue
        for key, change in _changes(known["options"], entry["options"]):
            yield f"{entry['name']}.{key}", change


def _plain(value: Any) -> Any:
    """A default of an optimizer as JSON data."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    simple = value is None or isinstance(value, (bool, int, float, str))
    return value if simple else repr(value)
