"""Where the tests find the scripts beside them, that other processes run too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
