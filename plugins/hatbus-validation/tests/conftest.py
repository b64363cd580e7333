"""What the tests of this distribution share is in ``validated``."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
