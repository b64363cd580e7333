"""What the command line changes in a job (``-p NAME``, ``-p no:NAME``, ``-o name.key=value``)."""

from __future__ import annotations

import re
import tomllib
from typing import Any, Final

from hatbus.bus.registration import in_snake_case
from hatbus.errors import did_you_mean
from hatbus.jobs.references import is_reference

PLANS: Final = ("num_epochs", "num_steps")
"""The keys of ``[run]`` that say how long it is, of which a job has one."""


def switch(tables: dict[str, Any], words: tuple[str, ...], problems: list[str]) -> set[str]:
    """Does what ``-p`` says; gives back the names of the instances it added."""
    added = set()
    for word in words:
        off, name = word.startswith("no:"), word.removeprefix("no:")
        use, name = name, own_instance(name)
        if use != name and not off:
            there = tables.setdefault(name, {"use": use})
            if isinstance(there, dict) and there.get("use", name) != use:
                problems.append(
                    f"-p {word}: the job has another plugin {name!r}; give yours a name of its own "
                    f"in the job: [plugins.NAME] with use = {use!r}"
                )
            elif isinstance(there, dict):
                there["enabled"] = True
                added.add(name)
        elif off and name not in tables:
            problems.append(f"-p {word}: no plugin {name!r} in the job{did_you_mean(name, tables)}")
        elif name not in tables:
            tables[name] = {}
            added.add(name)
        elif isinstance(tables[name], dict):
            tables[name]["enabled"] = not off
    return added


def own_instance(word: str) -> str:
    """The instance name of ``FILE.py:Class``; any other word is one already."""
    is_class = ":" in word and is_reference(word)
    return in_snake_case(re.split(r"[:.]", word)[-1]) if is_class else word


def override(tables: dict[str, Any], words: tuple[str, ...], problems: list[str]) -> None:
    """Does what ``-o`` says."""
    for word in words:
        key, equals, text = word.partition("=")
        target, *inner = key.strip().split(".")
        if not equals or not inner or not all(inner):
            problems.append(f"-o {word}: accepted: instance.option=value, run.key=value")
            continue
        table = tables["run"] if target == "run" else tables["plugins"].get(target)
        if table is None:
            known = {"run", *tables["plugins"]}
            hint = did_you_mean(target, known)
            problems.append(f"-o {word}: no plugin {target!r} in the job{hint}")
            continue
        for name in inner[:-1]:
            table = table.setdefault(name, {}) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table[inner[-1]] = parse_value(text.strip())
        else:
            problems.append(f"-o {word}: {key.rpartition('.')[0]!r} is no table")
    _keep_one_plan(tables["run"], words)


def _keep_one_plan(run: dict[str, Any], words: tuple[str, ...]) -> None:
    """A number of steps takes the place of the job's number of epochs, and the other way round."""
    keys = {word.partition("=")[0].strip() for word in words}
    given = [name for name in PLANS if f"run.{name}" in keys]
    for name in PLANS if len(given) == 1 else ():
        if name not in given:
            run.pop(name, None)


def parse_value(text: str) -> Any:
    """The value of an override: read as TOML, else as a plain string."""
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if len(read) == 1 else text
