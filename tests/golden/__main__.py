"""`python -m tests.golden DIR`: runs a folder of golden cases through the package's own functions."""

import sys
from pathlib import Path

from tests.golden import main

sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))
