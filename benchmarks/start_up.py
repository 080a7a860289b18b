"""From start to first step: `python -m benchmarks.start_up --json FILE [--rounds N]`.

Plain fine-tuning and fine-tuning with PACT take turns; each time a new trainer is made, and the time from the call of
`train()` to its first step is taken. PACT's first run finds nothing on disk, the next ones find everything: that of
interest is theirs. The run is TRL with LoRA on the random-weight Llama of `benchmarks.step_cost`, with anchors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.step_cost import SAFETY_TOKENS, Case, trainer_of


class _FirstStep(Exception):  # noqa: N818 - no error: it ends the run
    """Raised where the first step would begin."""


def seconds_to_first_step(cache: Path | None, rows: int, folder: Path) -> float:
    """Seconds from `train()` to the first step; with PACT if there is a folder for its cache."""
    from transformers import TrainerCallback

    from pact_plugins import PactCallback, PactConfig

    class Stop(TrainerCallback):
        """Ends the run when the first step begins."""

        def on_step_begin(self, *_args: Any, **_kw: Any) -> None:
            raise _FirstStep

    trainer = trainer_of(Case("trl", "lora", 32_000), 1, folder, rows)
    if cache is not None:
        settings = PactConfig(safety_tokens=[8 + i for i in range(SAFETY_TOKENS)], cache_dir=cache, eval=False)
        trainer.add_callback(PactCallback(trainer, settings))
    trainer.add_callback(Stop())
    started = time.perf_counter()
    try:
        trainer.train()
    except _FirstStep:
        return time.perf_counter() - started
    raise AssertionError("the run had no step")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = seconds_to_first_step(folder / "cache", arguments.rows, folder)
        plain, found = [], []
        for _ in range(arguments.rounds):
            plain.append(seconds_to_first_step(None, arguments.rows, folder))
            found.append(seconds_to_first_step(folder / "cache", arguments.rows, folder))
    result = {
        "rows": arguments.rows,
        "first_run_seconds": round(first, 3),
        "plain_seconds": round(statistics.median(plain), 3),
        "second_run_seconds": round(statistics.median(found), 3),
        "added_seconds": round(statistics.median(b - a for a, b in zip(plain, found, strict=True)), 3),
    }
    print(json.dumps(result))
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
