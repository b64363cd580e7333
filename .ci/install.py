"""pip, for tox: beside what the tests need it installs the trackers without their clients.

A tracker's client brings dozens of packages, and only `tox -e trackers` needs those. The rest of
the tests, the types and the docs need the trackers' own code alone, and no requirements file can
say `--no-deps` for one line.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".ci"))

from trackers import TRACKERS  # noqa: E402 - beside this file


def main() -> int:
    """Return pip's exit code."""
    pip = [sys.executable, "-I", "-m", "pip", "install"]
    words = sys.argv[1:]
    code = subprocess.run([*pip, *words], check=False).returncode
    if code == 0 and any("requirements-dev" in word for word in words):
        alone = [word for name in TRACKERS for word in ("-e", f"{ROOT}/plugins/{name}")]
        code = subprocess.run([*pip, "--no-deps", *alone], check=False).returncode
    return code


if __name__ == "__main__":
    sys.exit(main())
