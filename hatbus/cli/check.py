"""``hatbus plugins check WHAT``: a plugin, a distribution, a wheel, or a folder with a project.

What a distribution brings is checked: its plugins, and its commands as ``hatbus NAME``.
"""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import Distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zipfile import BadZipFile, ZipFile

from hatbus import discovery
from hatbus.authoring.advice import advice_on, on_metadata, on_project
from hatbus.authoring.checking import (
    Offer,
    class_problems,
    load_problems,
    problems_of,
    requirement_problems,
)
from hatbus.authoring.command_checks import (
    command_advice,
    command_load_problems,
    command_problems,
)
from hatbus.authoring.own_file import OwnFile, own_file
from hatbus.discovery.class_source import Sources
from hatbus.discovery.commands import command_of, offers_of
from hatbus.discovery.entry_points import conflict_of, how_to_install
from hatbus.discovery.first_party import normalized
from hatbus.discovery.listed_commands import COMMAND_GROUP, listed
from hatbus.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from hatbus.discovery.entry_points import Found


_PROJECT: Final = "pyproject.toml"


class Finding(NamedTuple):
    """What was found out about one plugin, or about its distribution.

    Attributes:
        problems: what must be repaired.
        advice: what would make it better.
    """

    problems: list[str]
    advice: list[str]


Report = dict[str, Finding]
"""By plugin or distribution."""


def check_and_show(name: str, *, as_json: bool) -> int:
    """Prints a line per plugin, problem and advice.

    Returns:
        0, or 2 if there is a problem; advice is none.

    Raises:
        PluginError: nothing of this name is there.
    """
    report = _report(name)
    if as_json:
        print(json.dumps({subject: found._asdict() for subject, found in report.items()}, indent=2))
    else:
        for subject, found in report.items():
            for line in found.problems or ["ok"]:
                print(f"{subject}: {line}")
            for line in found.advice:
                print(f"{subject}: advice: {line}")
    return PluginError.exit_code if any(found.problems for found in report.values()) else 0


def _report(name: str) -> Report:
    """A project in a folder goes before what is installed under its name."""
    path, own = Path(name), own_file(name)
    if own is not None:
        return check_own(own)
    if path.name == _PROJECT and path.is_file():
        return check_folder(path.parent)
    is_installed = any(_is(found, name) for found in discovery.installed())
    if path.is_dir() and ((path / _PROJECT).is_file() or not is_installed):
        return check_folder(path)
    return check_wheel(path) if path.suffix == ".whl" else check_installed(name)


def check_own(own: OwnFile) -> Report:
    """Checks the plugins of a file that is in no package, without importing it.

    Raises:
        PluginError: there is none.
    """
    return {
        cls: Finding(class_problems(f"{own.file.stem}:{cls}", own.sources), [])
        for cls in own.classes()
    }


def check_folder(folder: Path) -> Report:
    """Checks a plugin's sources, without importing anything.

    Raises:
        PluginError: the folder is no project with plugins.
    """
    project = _project(folder / _PROJECT)
    distribution = str(project.get("name", folder.name))
    groups = project.get("entry-points", {})
    plugins, commands = (
        [Offer(name, str(value), distribution) for name, value in groups.get(group, {}).items()]
        for group in (discovery.GROUP, COMMAND_GROUP)
    )
    if not plugins and not commands:
        raise PluginError(
            f'{str(folder)!r} offers no plugin; add [project.entry-points."{discovery.GROUP}"]'
        )
    required = requirement_problems(project.get("dependencies", []))
    sources = Sources([folder / "src", folder])
    own = Finding(required, on_project(project))
    return {distribution: own, **_read(plugins, commands, sources)}


def check_wheel(file: Path) -> Report:
    """Checks what a wheel holds, without importing anything.

    Raises:
        PluginError: it cannot be read, or offers no plugin.
    """
    with TemporaryDirectory() as place:
        try:
            with ZipFile(file) as packed:
                packed.extractall(place)
            (info,) = Path(place).glob("*.dist-info")
        except (OSError, BadZipFile, ValueError) as error:
            raise PluginError(f"{str(file)!r} cannot be read as a wheel: {error}") from error
        found = Distribution.at(info)
        plugins, commands = (
            [Offer(e.name, e.value, found.name) for e in found.entry_points.select(group=group)]
            for group in (discovery.GROUP, COMMAND_GROUP)
        )
        if not plugins and not commands:
            raise PluginError(f"{str(file)!r} offers no plugin in the group {discovery.GROUP!r}")
        required = requirement_problems(found.requires or [])
        own = Finding(required, on_metadata(found.metadata))
        return {found.name: own, **_read(plugins, commands, Sources([Path(place)]))}


def _read(plugins: list[Offer], commands: list[Offer], sources: Sources) -> Report:
    """What the sources of entry points say."""
    beside = [offer.name for offer in plugins]
    found = {
        offer.name: Finding(problems_of(offer, sources), advice_on(offer, sources, beside))
        for offer in plugins
    }
    for offer in commands:
        problems = command_problems(offer, sources)
        found[f"hatbus {offer.name}"] = Finding(problems, command_advice(offer, sources))
    return found


def check_installed(name: str) -> Report:
    """Checks an installed plugin or all of an installed distribution, importing them too.

    Raises:
        PluginError: there is none of this name.
    """
    chosen = [found for found in discovery.installed() if _is(found, name)]
    commands = [command_of(c) for c in listed() if normalized(c.distribution) == normalized(name)]
    if not chosen and not commands:
        raise PluginError(f"no plugin, distribution, wheel or folder {name!r}{_closest(name)}")
    report: Report = {}
    for found in (*chosen, *commands):
        metadata = found.metadata
        report[found.distribution] = Finding(
            requirement_problems(found.requirements), on_metadata(metadata) if metadata else []
        )
    sources = Sources()
    for found in chosen:
        offer = Offer(found.name, found.value, found.distribution)
        same = [other for other in discovery.installed() if other.name == found.name]
        conflict = conflict_of(same)
        problems = problems_of(offer, sources) + ([conflict] if conflict else [])
        report[found.name] = Finding(problems or load_problems(found), advice_on(offer, sources))
    for command in commands:
        offer = Offer(command.name, command.value, command.distribution)
        problems = command_problems(offer, sources)
        problems = problems or command_load_problems(command, offers_of(command.name))
        report[f"hatbus {command.name}"] = Finding(problems, command_advice(offer, sources))
    return report


def _closest(name: str) -> str:
    """What might have been meant."""
    known = {word for f in discovery.installed() for word in (f.name, f.distribution)}
    if not known:
        return f"; {how_to_install()}"
    hint = did_you_mean(name, known)
    return hint if "did you mean" in hint else "; `hatbus plugins` lists what is installed"


def _is(found: Found, name: str) -> bool:
    return found.name == name or normalized(found.distribution) == normalized(name)


def _project(file: Path) -> dict[str, Any]:
    try:
        project = tomllib.loads(file.read_text("utf-8")).get("project", {})
    except FileNotFoundError as error:
        raise PluginError(f"no file {str(file)!r}; give a folder with a pyproject.toml") from error
    except ValueError as error:
        raise PluginError(f"{str(file)!r} cannot be read: {error}") from error
    return project if isinstance(project, dict) else {}
