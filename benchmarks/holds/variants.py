"""PACT with what was tried and not adopted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pact_plugins.config import PactConfig
from pact_plugins.method import discovery
from pact_plugins.method.objective import Targets
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.run.callback import PactCallback


class Emphasised(PactCallback):
    """PACT with the divergence at the answer's token t multiplied by 1 + emphasis * exp(-t / 4)."""

    def __init__(self, trainer: Any, config: PactConfig, emphasis: float) -> None:
        super().__init__(trainer, config)
        self.emphasis = emphasis

    def on_train_begin(self, *args: Any, **kw: Any) -> None:
        super().on_train_begin(*args, **kw)
        assert self.binding is not None
        assert self.binding.preparation is not None
        objective: Any = self.binding.preparation.objective
        own = objective.divergence

        def divergence(student: Tensor, targets: Targets) -> tuple[Tensor, Tensor | None]:
            kl, gate = own(student, targets)
            return kl * (1 + self.emphasis * torch.exp(-targets.position / 4)), gate

        objective.divergence = divergence


def all_held(trainer: Any, path: Path) -> Path:
    """The safety tokens found as usual, every candidate of them held; written to `path`."""
    found: SafetyTokens = discovery.discover(trainer.model, trainer.processing_class)
    replace(found, weights=(1.0,) * len(found.ids)).save(path)
    return path
