"""How a job names Python objects: ``"file.py:attr"``, ``"package.module:attr"``, ``"@key"``."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ACCEPTED: Final = "'file.py:name', 'package.module:name', '@name' or { call = 'file.py:name' }"
_ATTR: Final = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_FILE: Final = r"([A-Za-z]:)?[^:\n]*\.py"
_PATTERN: Final = re.compile(rf"(?P<home>{_FILE}|{_ATTR}):(?P<attr>{_ATTR})")


_entered: Final[set[str]] = set()
"""The folders of the jobs that were loaded in this process."""
_set_aside: Final[dict[str, dict[str, ModuleType]]] = {}
"""By such a folder, its modules whose names another job's now have."""


class References:
    """Finds the objects that a job names.

    Args:
        folders: where files are looked for, in this order; the first becomes importable, as the
            folder of a script is.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(dict.fromkeys(folder.resolve() for folder in folders))

    def find(self, text: str) -> Any:
        """The object named by ``"file.py:attr"`` or ``"package.module:attr"``.

        Raises:
            JobError: no such file, module or attribute. An exception of the file itself goes on.
        """
        found = _PATTERN.fullmatch(text)
        if found is None:
            raise JobError(f"{text!r} names no object; accepted: 'file.py:name', 'module:name'")
        home = found["home"]
        module = self._load_file(home) if home.endswith(".py") else _load_module(home)
        return _attribute(module, found["attr"], home)

    def _load_file(self, name: str) -> ModuleType:
        places = [folder / name for folder in self._folders]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            looked = ", ".join(str(place) for place in places)
            raise JobError(f"no file {name!r} (looked for {looked}){_closest_file(places)}")
        return load_file(file.resolve())


def _closest_file(places: Sequence[Path]) -> str:
    """End of a message about a file that is in none of its places: one there of almost its name."""
    there = [file.name for place in places for file in place.parent.glob("*.py")]
    hint = did_you_mean(places[0].name, set(there))
    return hint if "did you mean" in hint else ""


def is_reference(text: str) -> bool:
    """Whether a text looks like ``"file.py:attr"`` or ``"package.module:attr"``."""
    return _PATTERN.fullmatch(text) is not None


def load_file(file: Path) -> ModuleType:
    """Imports a file once, under its own name, with its folder on the path, as a script's is."""
    enter(file.parent)
    name = _module_name(file)
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise JobError(f"{str(file)!r} is no Python file")
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def enter(folder: Path) -> None:
    """Makes the modules of a job's folder importable, before those of other jobs' folders.

    Two jobs in one process may each have a ``helpers.py``: the first one's is set aside while the
    second is loaded, and comes back with its job. Modules that no job has brought stay.
    """
    home = str(folder)
    if home in sys.path and home in _entered:
        sys.path.remove(home)
    if home not in sys.path:
        sys.path.insert(0, home)
    _entered.add(home)
    mine = [path.stem for path in folder.glob("*.py")]
    mine += [path.parent.name for path in folder.glob("*/__init__.py")]
    homes = {name: _home_of(sys.modules[name]) for name in mine if name in sys.modules}
    for name in list(sys.modules):
        other = homes.get(name.partition(".")[0], home)
        if other in _entered and other != home:
            _set_aside.setdefault(other, {})[name] = sys.modules.pop(name)
    for name, module in _set_aside.pop(home, {}).items():
        sys.modules.setdefault(name, module)


def _home_of(module: ModuleType) -> str:
    """The folder that a top-level module was found in; empty where it has no file."""
    file = getattr(module, "__file__", None)
    if not file:
        return ""
    place = Path(file).parent
    return str(place.parent if Path(file).name == "__init__.py" else place)


def _module_name(file: Path) -> str:
    """The file's stem, or with its folder's name in front where another module has the stem."""
    name = file.stem
    while name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(file):
        name = f"{file.parent.name}_{name}"
    return name


def _load_module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise JobError(f"no module {error.name!r} (for a file write 'file.py:name')") from error


def _attribute(module: ModuleType, path: str, home: str) -> Any:
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            public = [word for word in vars(found) if not word.startswith("_")]
            raise JobError(f"{home} has no {path!r}{_nearest(name, public)}")
        found = getattr(found, name)
    return found


def _nearest(name: str, known: Sequence[str]) -> str:
    """The closest name; a list of everything a module holds would say nothing."""
    nearest = did_you_mean(name, known)
    return nearest if "did you mean" in nearest else ""


class Built:
    """``"@key"``: what the job's entry function returned under a key."""

    def __init__(self, key: str) -> None:
        self.key = key


class Call:
    """``{ call = "file.py:make", ... }``: what a function returns."""

    def __init__(self, function: Any, arguments: dict[str, Any]) -> None:
        self.function, self.arguments = function, arguments


def finish(value: Any, built: Mapping[str, Any]) -> Any:
    """Puts objects where ``Built`` and ``Call`` stand, inside lists and tables too.

    Raises:
        JobError: the entry function returned nothing under a key.
    """
    if isinstance(value, Built):
        if value.key not in built:
            raise JobError(
                f"'@{value.key}': the entry function returned no {value.key!r}"
                f"{did_you_mean(value.key, built)}"
            )
        return built[value.key]
    if isinstance(value, Call):
        return value.function(**finish(value.arguments, built))
    if type(value) is dict:
        return {key: finish(item, built) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(finish(item, built) for item in value)
    return value
