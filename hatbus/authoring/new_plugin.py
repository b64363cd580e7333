"""Writes a new plugin's package: one that builds, installs and passes its own tests as it is."""

from __future__ import annotations

import keyword
import re
import sys
from datetime import UTC, datetime
from importlib import resources
from importlib.util import find_spec
from string import Template
from typing import TYPE_CHECKING, Final, NamedTuple

from hatbus import discovery
from hatbus.discovery.first_party import DISTRIBUTIONS, FIRST_PARTY, normalized
from hatbus.errors import PluginError, SaveError, did_you_mean
from hatbus.events.foreign_names import meant
from hatbus.events.training import DECISION, EVENTS, SPAN

if TYPE_CHECKING:
    from pathlib import Path

LICENSES: Final = ("Apache-2.0", "BSD-3-Clause", "MIT")
DEFAULT_EVENT: Final = "on_step_end"
FILES: Final = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "ci.yml": ".github/workflows/test.yml",
    "gitignore": ".gitignore",
    "init.py": "src/$package/__init__.py",
    "module.py": "src/$package/$module.py",
    "test.py": "tests/test_$module.py",
}
"""Template to the file that is made of it."""
_USED: Final = frozenset(
    {
        "Any",
        "Context",
        "EventLog",
        "Failure",
        "Generator",
        "Occasions",
        "PluginContract",
        "PluginError",
    }
)
"""Classes that the templates import."""
_PREFIX: Final = "hatbus-"
_PATTERN: Final = r"[a-z][a-z0-9]*(-[a-z0-9]+)*"


class Names(NamedTuple):
    """What things are called: of ``hatbus-step-timer`` the plugin is ``step_timer``."""

    distribution: str
    package: str
    plugin: str
    class_name: str


def names_of(name: str) -> Names:
    """The names of a new plugin.

    Args:
        name: of its distribution, such as ``"hatbus-step-timer"`` or ``"step-timer"``.

    Raises:
        PluginError: it is no good name, or taken.
    """
    if not re.fullmatch(_PATTERN, name):
        better = normalized(re.sub(r"[^A-Za-z0-9._-]+|(?<=[a-z0-9])(?=[A-Z])", "-", name)).strip(
            "-"
        )
        hint = f"; did you mean {better!r}?" if re.fullmatch(_PATTERN, better) else ""
        raise PluginError(f"{name!r} is no name; accepted: one like 'loss-watch'{hint}")
    plugin = name.removeprefix(_PREFIX).replace("-", "_")
    if not plugin.isidentifier() or keyword.iskeyword(plugin):
        raise PluginError(f"of {name!r} the plugin would be {plugin!r}, which is no name in Python")
    found = Names(name, name.replace("-", "_"), plugin, plugin.title().replace("_", ""))
    _refuse_taken(found)
    return found


def write_plugin(
    names: Names, folder: Path, *, event: str = DEFAULT_EVENT, license_name: str = LICENSES[0]
) -> list[Path]:
    """Writes the package.

    Args:
        names: what things are called.
        folder: where; it must be empty or not there.
        event: what the plugin hooks.
        license_name: one of ``LICENSES``.

    Returns:
        The files, relative to the folder.

    Raises:
        PluginError: an unknown event or license, or a folder that holds something.
        SaveError: the folder cannot be written.
    """
    if event not in EVENTS:
        raise PluginError(f"unknown event {event!r}{meant(event)}")
    known = {one.lower(): one for one in LICENSES}
    if license_name.lower() not in known:
        hint = did_you_mean(license_name, LICENSES)
        raise PluginError(f"no text of license {license_name!r}{hint}")
    license_name = known[license_name.lower()]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PluginError(f"{str(folder)!r} is there already; give another name or --into")
    words = words_of(names, event, license_name)
    written = {
        Template(target).substitute(words): _filled(f"plugin/{source}.txt", words)
        for source, target in FILES.items()
    }
    written["LICENSE"] = _filled(f"licenses/{license_name}.txt", words)
    written[f"src/{names.package}/py.typed"] = ""
    try:
        for target, text in written.items():
            path = folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    except OSError as error:
        raise SaveError(f"cannot write {str(folder)!r}: {error}; choose another --into") from error
    return [folder / target for target in sorted(written)]


def words_of(names: Names, event: str, license_name: str) -> dict[str, str]:
    """What stands in the templates' places."""
    from hatbus import __version__

    since, until = version_range(__version__)
    return {
        **names._asdict(),
        **_code(event, names.plugin),
        "module": names.plugin,
        "event": event,
        "summary": f"counts how often {event} comes",
        "license": license_name,
        "since": since,
        "until": until,
        "year": str(datetime.now(UTC).year),
        "holder": f"the authors of {names.distribution}",
    }


def version_range(version: str) -> tuple[str, str]:
    """The versions of hatbus that a plugin made with this one should work with."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f"{major}.{minor}", f"0.{minor + 1}" if major == 0 else f"{major + 1}"


def _code(event: str, plugin: str) -> dict[str, str]:
    """The implementation of an event, and how its test sees it at work."""
    kind = EVENTS[event].kind
    imports = "from typing import TYPE_CHECKING, Any"
    arguments, before, after, result = "ctx: Context", "", "", "None"
    if kind == SPAN:
        imports = f"from collections.abc import Generator\n{imports}"
        before, after, result = "result = yield", "return result", "Generator[None, Any, Any]"
    elif kind == DECISION:
        after, result = "return None  # a reason (a string) would say yes", "str | None"
    elif event == "on_epoch_begin":
        arguments += ", step_id: int"
        before = (
            "if step_id > 0:  # resumed inside this epoch, which is counted already\n    return"
        )
    elif event == "on_log":
        arguments += ", logs: dict[str, Any]"
        before = f'if "{plugin}/count" in logs:  # what this plugin publishes itself\n    return'
    body = "\n".join(filter(None, (before, "self._count(ctx)", after)))
    lines = [
        "@hookimpl(wrapper=True)" if kind == SPAN else "@hookimpl",
        f"def {event}(self, {arguments}) -> {result}:",
        '    """Counts."""',
        *(f"    {line}" for line in body.splitlines()),
    ]
    return {
        "imports": imports,
        "implementation": "\n".join(f"    {line}" for line in lines),
        **_test_code(event, plugin),
    }


def _test_code(event: str, plugin: str) -> dict[str, str]:
    names = ["EventLog", "Occasions", "PluginContract", "tiny_trainer"]
    fit = "    tiny_trainer([plugin, Occasions(), log]).fit(num_epochs=2)"
    heard = f'log.count("{event}")'
    if event == "on_exception":
        names = [*names[:3], "failing", names[3]]
        names.insert(1, "Failure")
        fit = (
            "    with pytest.raises(Failure):\n"
            '        tiny_trainer([plugin, failing("on_epoch_end"), log]).fit(num_epochs=2)'
        )
        names.remove("Occasions")
    elif event == "on_log":
        heard = (
            f'[\n        "{plugin}/count" in one.more["logs"] for one in log.of("on_log")\n'
            "    ].count(False)"
        )
    imports = (
        f"from hatbus.errors import PluginError\nfrom hatbus.testing import {', '.join(names)}"
    )
    return {"fit": fit, "heard": heard, "test_imports": imports}


def _filled(name: str, words: dict[str, str]) -> str:
    text = (
        resources.files("hatbus.authoring")
        .joinpath("templates", *name.split("/"))
        .read_text("utf-8")
    )
    return Template(text).substitute(words)


def _refuse_taken(names: Names) -> None:
    """Refuses names that other things have."""
    if normalized(names.distribution) in DISTRIBUTIONS:
        raise PluginError(
            f"{names.distribution!r} is a distribution of hatbus; choose another name"
        )
    if names.plugin in FIRST_PARTY:
        home = FIRST_PARTY[names.plugin].distribution
        raise PluginError(
            f"the plugin name {names.plugin!r} is reserved for {home}; choose another"
        )
    if names.class_name in _USED:
        raise PluginError(
            f"the class would be {names.class_name!r}, which its files use already; "
            "choose another name"
        )
    taken = [found for found in discovery.installed() if found.name == names.plugin]
    if taken:
        raise PluginError(
            f"plugin {names.plugin!r} is installed by {taken[0].source}; choose another name"
        )
    is_word = keyword.iskeyword(names.package) or names.package in sys.stdlib_module_names
    if is_word or find_spec(names.package) is not None:
        raise PluginError(
            f"{names.package!r} is a module of Python or installed already; "
            f"choose another name, such as {_PREFIX + names.distribution!r}"
        )
