"""Records, while a run trains, what its steps were held to, and stops one whose steps are not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pact_plugins.errors import PactError
from pact_plugins.model.fingerprints import model_fingerprint
from pact_plugins.model.weights import fingerprints
from pact_plugins.run.evidence import FINAL, Evidence, Part, StartedFrom
from pact_plugins.run.metrics import is_held
from pact_plugins.run.trainer import output_dir

COUNTS = ("micro_batches", "supervised_tokens", "answer_tokens", "cache_hits", "cache_misses", "anchor_tokens")


class Recorder:
    """Keeps the evidence of one trainer's run: in memory at each step, on disk whenever weights are saved.

    Every process counts, and takes part in each write, which sums over them; the first one writes.

    Args:
        evidence: of the run so far, without a part for what is about to begin.
    """

    def __init__(self, trainer: Any, evidence: Evidence) -> None:
        self.trainer, self.evidence = trainer, evidence
        self._counts: Counter[str] = Counter()
        self._before = 0
        self._saved_at = -1

    @property
    def folder(self) -> Path:
        """The run's output folder."""
        return output_dir(self.trainer)

    def begin(self, started_from: StartedFrom) -> None:
        """A call of `train()` begins.

        Raises:
            PactError: it continues from a checkpoint that holds steps without PACT.
        """
        state, before = self.trainer.state, self.evidence
        if started_from == "checkpoint" and state.global_step > before.covered:
            raise PactError(
                expected=f"a checkpoint that trained under PACT up to its step {state.global_step}",
                got=f"evidence up to step {before.covered} in {self.folder}",
                consequence="Steps without PACT would be part of a run that reports it.",
                remedy=f"Resume from one at or before step {before.covered}, or start from the original model.",
            )
        if before.parts and before.parts[-1].ended == "running":
            # A killed process, or a trainer that starts again with smaller batches after running out of memory.
            before = before.with_last(replace(before.parts[-1], ended="restarted"))
        part = Part(started_from, state.global_step, state.global_step, state.max_steps)
        weights = {name: known for name, known in before.weights.items() if name != FINAL}
        self.evidence = replace(before, parts=(*before.parts, part), trained_model=None, weights=weights)
        self._counts.clear()
        self._before, self._saved_at = 0, -1
        self._write()

    def add(self, counts: dict[str, int]) -> None:
        """What a forward pass was held to."""
        self._counts.update(counts)

    def step(self) -> None:
        """An optimiser step has ended.

        Raises:
            PactError: no forward pass of it went through PACT's loss, or no anchors joined it where they are all.
        """
        count = self._counts["micro_batches" if self.evidence.holds_rows else "anchor_tokens"]
        if count == self._before:
            step = self.trainer.state.global_step
            self.fail(
                error := PactError(
                    expected=f"PACT's loss to be asked for during step {step}",
                    got="a step without",
                    consequence="The run would report PACT and train without it.",
                    remedy="Does something replace `trainer.compute_loss`, or compute the loss without it? Add PACT's "
                    "callback after that, to the trainer that trains.",
                )
            )
            raise error
        self._before = count
        self.evidence = self.evidence.with_last(
            replace(self.evidence.parts[-1], last_step=self.trainer.state.global_step)
        )

    def save(self, model: nn.Module) -> None:
        """Writes the evidence as it is now; called when a checkpoint of `model`, as it is now, is written."""
        self._sum_up()
        step = self.trainer.state.global_step
        if step != self._saved_at:
            self._remember(f"checkpoint-{step}", model)
            self._saved_at = step
        self._write()

    def fail(self, error: PactError) -> None:
        """PACT stops the run. The other processes do not know yet: these counts are this process's own."""
        part = self.evidence.parts[-1]
        counts = {name: self._counts[name] for name in COUNTS}
        self.evidence = self.evidence.with_last(replace(part, **counts, ended="failed", error=str(error)))
        self._write()

    def end(self, model: nn.Module) -> None:
        """Training has ended, with `model` as it is now.

        Raises:
            PactError: not one answer token was constrained in any of its steps.
        """
        part = self._sum_up()
        if part.last_step > part.first_step and not self.evidence.held(part):
            self.fail(
                error := PactError(
                    expected="answer tokens in the batches of this run",
                    got=f"none in {part.micro_batches:,} micro-batches",
                    consequence="The run trained without PACT: do not use its result as a protected one.",
                    remedy="Check that the trainer's sampler and collator hand out the answers of the data set.",
                )
            )
            raise error
        ended = "finished" if part.last_step >= part.planned_steps else "stopped early"
        self.evidence = replace(
            self.evidence.with_last(replace(part, ended=ended)), trained_model=model_fingerprint(model)
        )
        self._remember(FINAL, model)
        self._write()

    def _remember(self, name: str, model: nn.Module) -> None:
        """Keeps which weights `model` has now.

        Raises:
            PactError: its reference is the model without its adapter, which is another by now.
        """
        if self.evidence.streams and model_fingerprint(model, adapter=False) != self.evidence.identity.model:
            self.fail(
                error := PactError(
                    expected="the model below the adapter to stay as it was before the first step",
                    got=f"other weights by step {self.trainer.state.global_step:,}",
                    consequence="That model computes the reference, which has moved: do not use the result as a "
                    "protected one.",
                    remedy="Train the adapter alone, or load the data set whole (`streaming: false`).",
                )
            )
            raise error
        known = {**self.evidence.weights, name: fingerprints(model)}
        self.evidence = replace(self.evidence, weights=known)

    def _sum_up(self) -> Part:
        """The part that is running, with its counts over all processes and its loss as logged."""
        accelerator, state = self.trainer.accelerator, self.trainer.state
        own = torch.tensor([self._counts[name] for name in COUNTS], device=accelerator.device)
        counts = dict(zip(COUNTS, accelerator.reduce(own, reduction="sum").tolist(), strict=True))
        part = replace(self.evidence.parts[-1], **counts)
        logged = [e for e in state.log_history if is_held(e) and e["step"] > part.first_step]
        losses = [{k: v for k, v in e.items() if k == "loss" or k.startswith("pact/")} for e in logged]
        if losses:
            part = replace(part, loss_at_start=losses[0], loss_at_end=losses[-1])
        self.evidence = self.evidence.with_last(part)
        return part

    def _write(self) -> None:
        if self.trainer.is_world_process_zero():
            self.evidence.save(self.folder)
