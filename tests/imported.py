"""What the server of `tests.forked` has imported, as far as it is there."""

import gc
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module

NAMES = (
    "axolotl.cli.main",
    "axolotl.cli.train",
    "axolotl.common.datasets",
    "axolotl.core.builders",
    "axolotl.train",
    "pact_plugins.cli.training",
    "pytest",
    "trl.trainer.sft_trainer",
    "tests.faults.build",
    "tests.distributed.building",
    "tests.distributed.training",
)

# Axolotl logs to what is standard output when it is imported: as under a command of `pact`, to standard error.
with redirect_stdout(sys.stderr):
    for name in NAMES:
        with suppress(ImportError):
            import_module(name)

# As in conftest.py: hosts collect garbage many times in a run.
gc.collect()
gc.freeze()
