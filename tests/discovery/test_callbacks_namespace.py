"""``hatbus.callbacks``: every installed callback by its class name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from stranger import CHECKOUT, install, install_recorder

from hatbus.discovery.first_party import FIRST_PARTY


def python(code: str, site: Path) -> subprocess.CompletedProcess[str]:
    """Runs code with the folder's distributions installed."""
    lines = f"import sys; sys.path[:0] = [{str(CHECKOUT)!r}, {str(site)!r}]\n{code}"
    return subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, check=False
    )


def test_a_callback_is_imported_by_class_name_and_only_its_distribution(tmp_path: Path) -> None:
    install_recorder(tmp_path)
    install(tmp_path, "broken", {"broken": "broken:Broken"}, {"broken.py": "1 / 0"})
    code = (
        "import hatbus.callbacks as c; assert 'Recorder' in dir(c) and 'Broken' in dir(c)\n"
        "assert 'acme_hats' not in sys.modules\n"
        "from hatbus.callbacks import Recorder, CallbackMixin\n"
        "import hatbus; assert CallbackMixin is hatbus.CallbackMixin\n"
        "assert c.Recorder is Recorder\n"
        "assert 'broken' not in sys.modules and 'torch' not in sys.modules"
    )
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Recordr", "ImportError: no callback 'Recordr'; did you mean 'Recorder'?"),
        ("CosLrUpdatr", "did you mean 'CosLrUpdater'?"),
        ("Broken", "plugin 'broken' of broken 1.0 cannot be loaded"),
        ("lowercase", "cannot import name 'lowercase'"),
    ],
)
def test_a_callback_that_is_not_there_is_an_import_error_that_helps(
    tmp_path: Path, name: str, message: str
) -> None:
    install_recorder(tmp_path)
    install(tmp_path, "broken", {"broken": "broken:Broken"}, {"broken.py": "1 / 0"})
    done = python(f"from hatbus.callbacks import {name}", tmp_path)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_first_party_callback_that_is_not_installed_names_its_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hatbus import callbacks
    from hatbus.discovery import entry_points

    monkeypatch.setattr(entry_points, "_scan", lambda path: ())
    monkeypatch.delitem(vars(callbacks), "CosLrUpdater", raising=False)
    with pytest.raises(ImportError, match="no callback 'CosLrUpdater'; it comes with hatbus-lr"):
        callbacks.CosLrUpdater  # noqa: B018 - the access is the test


def test_every_first_party_class_is_a_name_of_its_own_distribution_imported_when_asked_for() -> (
    None
):
    packages = {own.distribution.replace("-", "_") for own in FIRST_PARTY.values()}
    names = [(own.distribution.replace("-", "_"), own.class_name) for own in FIRST_PARTY.values()]
    code = (
        "from importlib import import_module\n"
        f"packages = [import_module(name) for name in {sorted(packages)!r}]\n"
        "assert 'torch' not in sys.modules\n"
        f"found = [(p, name, getattr(import_module(p), name)) for p, name in {names!r}]\n"
        "assert all(cls.__name__ == name for _, name, cls in found)\n"
        "for p in packages:\n"
        "    assert set(p.__all__) >= {name for q, name, _ in found if q == p.__name__}"
    )
    words = [sys.executable, "-c", f"import sys\n{code}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
