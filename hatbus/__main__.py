"""``python -m hatbus``, and ``torchrun -m hatbus``: the command line."""

import sys

from hatbus.cli import main

if __name__ == "__main__":
    sys.exit(main())
