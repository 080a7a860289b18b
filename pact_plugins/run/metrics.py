"""What PACT logs: sums over the micro-batches since the last log entry, of all processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_COUNTS = ("answer_tokens", "cache_hits", "anchor_tokens", "steps")
"""What is summed up; all else is a mean over one of these."""

_MEAN_OVER = {"anchor_kl": "anchor_tokens", "loss": "steps"}
"""Over which, if not over answer tokens."""


def is_held(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a trainer's log tells of steps under PACT: of their rows, or of anchors alone."""
    return "pact/kl" in entry or "pact/anchor_kl" in entry


class Metrics:
    """Sums that go on until they are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}

    def add(self, counts: Mapping[str, int], statistics: Mapping[str, Tensor]) -> None:
        """Adds to the sums of the next log entry, without waiting for the device."""
        for name, value in {**counts, **statistics}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def take(self, accelerator: Any) -> dict[str, float]:
        """Counts and means over all processes, as they are logged; the sums begin anew."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        values = [torch.as_tensor(self._sums[n], dtype=torch.float32, device=accelerator.device) for n in names]
        sums = accelerator.reduce(torch.stack(values), reduction="sum").tolist()
        self._sums = {}
        total = dict(zip(names, sums, strict=True))
        counts = {name: total.pop(name) for name in _COUNTS if name in total}
        means = {name: value / max(counts[_MEAN_OVER.get(name, "answer_tokens")], 1.0) for name, value in total.items()}
        counts.pop("steps", None)  # the trainer logs them itself
        return {f"pact/{name}": value for name, value in {**means, **counts}.items()}
