"""Check who imports whom: the contracts of pyproject.toml and of .ci/public_names.toml.

import-linter reads the sources and runs none of them, so neither torch nor hatbus has to be there.
"""

import sys
from pathlib import Path

from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATIONS = ("pyproject.toml", ".ci/public_names.toml")


def main() -> int:
    """Return 0 when every contract is kept."""
    sys.path[:0] = [str(ROOT), *map(str, sorted(ROOT.glob("plugins/*/src")))]
    files = tuple(str(ROOT / name) for name in CONFIGURATIONS)
    return lint_imports(config_filenames=files, no_cache=True, no_logo=True)


if __name__ == "__main__":
    sys.exit(main())
