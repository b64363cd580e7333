"""Packages whose names are imported when they are asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hatbus.authoring.public_names import public_modules, public_names


def test_names_are_listed_before_anything_is_imported_for_them() -> None:
    rooms = [name for name in public_modules() if name != "hatbus.rng"]  # which is about torch
    listed = {room: [one.name for one in public_names() if one.module == room] for room in rooms}
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"for module, names in {listed!r}.items():\n"
        "    assert set(names) <= set(dir(import_module(module))), module\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there_is_told_like_pythons_own() -> None:
    from hatbus import loop

    with pytest.raises(AttributeError, match=r"module 'hatbus\.loop' has no attribute 'Lop'"):
        loop.Lop  # noqa: B018 - the access is the test
