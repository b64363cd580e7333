"""``hatbus plugins check WHAT``: a plugin, a distribution, or a folder with a pyproject.toml."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatbus import discovery
from hatbus.checking import Offer, load_problems, problems_of, requirement_problems
from hatbus.errors import PluginError, did_you_mean
from hatbus.first_party import normalized
from hatbus.reading import Sources

if TYPE_CHECKING:
    from hatbus.discovery import Found

Report = dict[str, list[str]]
"""Entry point or distribution to its problems."""


def check_and_show(name: str, *, as_json: bool) -> int:
    """Prints a line per plugin and problem.

    Returns:
        0, or 2 if there is a problem.

    Raises:
        PluginError: nothing of this name is there.
    """
    report = check_folder(Path(name)) if Path(name).is_dir() else check_installed(name)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        for subject, problems in report.items():
            for line in problems or ["ok"]:
                print(f"{subject}: {line}")
    return PluginError.exit_code if any(report.values()) else 0


def check_folder(folder: Path) -> Report:
    """Checks a plugin's sources, without importing anything.

    Raises:
        PluginError: the folder is no project with plugins.
    """
    project = _project(folder / "pyproject.toml")
    distribution = str(project.get("name", folder.name))
    offered = project.get("entry-points", {}).get(discovery.GROUP, {})
    if not offered:
        raise PluginError(
            f'{str(folder)!r} offers no plugin; add [project.entry-points."{discovery.GROUP}"]'
        )
    sources = Sources([folder / "src", folder])
    report = {distribution: requirement_problems(project.get("dependencies", []))}
    for name, value in offered.items():
        report[name] = problems_of(Offer(name, str(value), distribution), sources)
    return report


def check_installed(name: str) -> Report:
    """Checks an installed plugin or all of an installed distribution, importing them too.

    Raises:
        PluginError: there is none of this name.
    """
    chosen = [found for found in discovery.installed() if _is(found, name)]
    if not chosen:
        known = {word for f in discovery.installed() for word in (f.name, f.distribution)}
        hint = did_you_mean(name, known) if known else f"; {discovery.how_to_install()}"
        raise PluginError(f"no plugin, distribution or folder {name!r}{hint}")
    sources = Sources()
    report: Report = {}
    for found in chosen:
        report[found.distribution] = requirement_problems(found.requirements)
    for found in chosen:
        offer = Offer(found.name, found.value, found.distribution)
        same = [other for other in discovery.installed() if other.name == found.name]
        conflict = discovery.conflict_of(same)
        problems = problems_of(offer, sources) + ([conflict] if conflict else [])
        report[found.name] = problems or load_problems(found)
    return report


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
