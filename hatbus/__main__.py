"""``python -m hatbus``, and ``torchrun -m hatbus``: the command line."""

import os
import sys

from hatbus.cli import main

if __name__ == "__main__":
    code = main()
    if code and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # The group of a failed run has threads that the interpreter's end may abort (SIGABRT):
        # the exit code has to be the run's own.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
