"""Run each plugin's tests where only the core and that plugin are installed.

The interpreter that runs this file has the core and the test tools. Each plugin gets a small
environment of its own on top, which sees those, and into which pip puts the plugin and what only
that plugin needs. Names of plugin folders may be given as arguments.
"""

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

from trackers import TRACKERS

ROOT = Path(__file__).resolve().parent.parent


def environment(folder: Path) -> Path:
    """Make an environment that sees this interpreter's packages; return its python."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    shared = sysconfig.get_path("purelib")
    # addsitedir, because a plain path would not run the .pth file of the editable core
    Path(own, "core.pth").write_text(f"import site; site.addsitedir({shared!r})\n")
    return python


def tests_pass(plugin: Path) -> bool:
    """Install one plugin, and run its tests."""
    print(f"== {plugin.name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder))
        # a tracker's client brings dozens of packages: its tests with them are `tox -e trackers`
        what = ["--no-deps"] if plugin.name in TRACKERS else ["-c", "constraints.txt"]
        pip = [python, "-m", "pip", "install", "-q", *what, "-e", plugin]
        subprocess.run(pip, cwd=ROOT, check=True)
        run = subprocess.run([python, "-m", "pytest", plugin / "tests"], cwd=ROOT, check=False)
    return run.returncode == 0


def main() -> int:
    """Return 0 when every plugin's tests pass."""
    folders = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
    names = sys.argv[1:] or [folder.name for folder in folders]
    failed = [name for name in names if not tests_pass(ROOT / "plugins" / name)]
    print("failed: " + ", ".join(failed) if failed else f"{len(names)} plugins passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
