"""What a run is made of, and how it differs from the run that saved a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from hatbus.bus import state_version
from hatbus.errors import CheckpointError
from hatbus.log import log
from hatbus_checkpoint.as_built import as_built, is_same, plain
from hatbus_checkpoint.listing import ITS_DEFAULT

if TYPE_CHECKING:
    from hatbus.loop import Context

_TRAINS: Final = ("setup", "schedule", "train", "average")
"""Stages whose plugins decide what the weights become."""
_OF_ONE_START: Final = ("resume", "drop_plugin_state", "override", "hat_optimizer")
"""Options that say how to start a run, and not what it is."""
_ARGUMENT: Final = "run.args."
"""Arguments of the entry function may differ: whether they matter, nobody else can know."""


def settings_of(ctx: Context) -> dict[str, Any]:
    """What must be the same for a run to go on exactly, as flat JSON data."""
    found = {
        "seed": ctx.seed,
        "accumulate": ctx.data.accumulate,
        "precision": "fp16"
        if ctx.scaler
        else "bf16"
        if "core.autocast" in ctx.bus.members
        else "fp32",
        **as_built(ctx).settings(),
    }
    for task, identity in ctx.data.identity().items():
        found |= {f"data.{task}.{k}" if task else f"data.{k}": v for k, v in identity.items()}
    arguments = ctx.storage.get("job", {}).get("run", {}).get("args", {})
    found |= {f"{_ARGUMENT}{k}": plain(v) for k, v in arguments.items()}
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
    settings = dict(_changes(saved["settings"], settings_of(ctx)))
    found = {k: change for k, change in settings.items() if not k.startswith(_ARGUMENT)}
    found |= dict(_plugin_changes(saved["plugins"], plugins_of(ctx)))
    allowed = set(override)
    refused = {k: v for k, v in found.items() if k not in allowed and "all" not in allowed}
    if refused:
        what = "; ".join(
            f"{key:.99}: {_shown(was, now)} -> {_shown(now, was)}"
            for key, (was, now) in refused.items()
        )
        keys = [f"{key:.99}" for key in refused]
        ways = " ".join(f"--override {key}" for key in keys)
        raise CheckpointError(
            f"the run is not the one that was saved: {what}; put it back, or go on with {ways}, "
            f"or checkpoint's option override = {keys}"
        )
    warn = warner(ctx)
    for key, (was, now) in found.items():
        what = "going on with another %s: %s -> %s; not bit-exact"
        warn(what, key, _shown(was, now), _shown(now, was))
    for key, (was, now) in settings.items():
        if key.startswith(_ARGUMENT):
            shown = ["its default" if value is None else f"{value!r:.99}" for value in (was, now)]
            warn("since the checkpoint: %.99s: %s -> %s", key, *shown)
    plan, planned = plan_of(ctx), saved.get("plan")
    if planned not in (None, plan):
        what = (
            "the run was planned for %.99s and now is for %s; schedules that span it change with it"
        )
        log.info(what, planned, plan)
    if saved["world_size"] != ctx.world_size:
        before, now = saved["world_size"], ctx.world_size
        warn("processes: %d -> %d; the global batches are the same, but not bit-exact", before, now)
    return list(found)


def warner(ctx: Context) -> Callable[..., None]:
    """How to warn of what is so on every rank: once."""
    return log.warning if ctx.rank == 0 else log.debug


def _changes(
    was: Mapping[str, Any], now: Mapping[str, Any], absent: Any = None
) -> Iterable[tuple[str, tuple[Any, Any]]]:
    for key in [*was, *(k for k in now if k not in was)]:
        if not is_same(was.get(key), now.get(key)):
            yield key, (was.get(key, absent), now.get(key, absent))


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
        for key, change in _changes(known["options"], entry["options"], ITS_DEFAULT):
            yield f"{entry['name']}.{key}", change


def _shown(value: Any, other: Any) -> str:
    """A value in a message; of one that is per param group only what the other has otherwise."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {k: v for k, v in value.items() if k not in other or other[k] != v} or value
    return f"{value!r:.99}"
