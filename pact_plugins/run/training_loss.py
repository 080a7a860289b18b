"""The loss of a micro-batch under PACT: the host's own, the safety term in its scale, and anchors once a step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pact_plugins.errors import MissingReferenceError, PactError
from pact_plugins.method.anchors import WEIGHT
from pact_plugins.method.objective import PactObjective, Targets
from pact_plugins.run.host_loss import HostLoss
from pact_plugins.run.metrics import Metrics
from pact_plugins.run.recorder import Recorder
from pact_plugins.run.trainer import marks_once


class TrainingLoss:
    """A trainer's `compute_loss` while it trains::

        own(labels that are not damped) + weight * (sum of divergences / d + WEIGHT * mean divergence at anchors)

    where d is what the host divides the losses of tokens by. Where anchors alone are held, nothing is damped and there
    is no sum.

    Args:
        trainer: that trains.
        own: its `compute_loss` without PACT.
        objective: prepared.
        host: how it reduces the losses of tokens; None where anchors alone are held.
        recorder: counts what was constrained.
        metrics: sums up what is logged.
    """

    def __init__(
        self,
        trainer: Any,
        own: Callable[..., Any],
        objective: PactObjective,
        host: HostLoss | None,
        recorder: Recorder,
        metrics: Metrics,
    ) -> None:
        self._trainer, self._own, self._objective, self.host = trainer, own, objective, host
        self._recorder, self._metrics = recorder, metrics
        self._share: Tensor | None = None
        """What the host's own loss is of the whole, in the last micro-batch."""

    def __call__(self, model: Any, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
        """What `compute_loss` returns; arguments are handed on as they came.

        Trainers of people's own take `**kwargs`, or name less than transformers does.
        """
        given = {**dict(zip(("return_outputs", "num_items_in_batch"), args, strict=False)), **kw}
        return_outputs = given.get("return_outputs", False)
        objective = self._objective
        # Without a number of items, a loss is the mean over the labels of its micro-batch.
        items = given.get("num_items_in_batch") if self.host and self.host.per_item else None
        device = inputs["input_ids"].device
        # Before the trainer's own loss: trainers take keys out of the inputs.
        targets = self._targets(inputs) if self.host else None
        joins = objective.anchors is not None and self._trainer.accelerator.sync_gradients
        apart = joins and marks_once(self._trainer)
        if apart:
            self._backward(self._of_anchors(device, items), items)
        with objective.watch(targets) if targets else nullcontext([]) as captured:
            result = self._own(model, _undamped(inputs, targets) if targets else inputs, *args, **kw)
        own, *outputs = result if return_outputs else (result,)
        self._recorder.add({"micro_batches": 1})
        safety = own.new_zeros(())
        if targets:
            kept = targets.supervised - targets.damped
            # Divided as if all labels were there.
            own = own * (kept / targets.supervised if items is None else float(kept > 0))
            terms = objective.terms(captured, targets)
            counts = {"answer_tokens": terms.count, "cache_hits": targets.documents}
            self._recorder.add({"supervised_tokens": targets.supervised, **counts})
            self._metrics.add(counts, terms.statistics)
            scale = 1 / targets.supervised if items is None else self._processes / items
            safety = objective.config.weight * terms.kl * scale
        if joins and not apart:
            safety = safety + self._of_anchors(device, items)
        loss = own + safety.to(own.device)
        self._share = (own / loss).detach()
        return (loss, *outputs) if return_outputs else loss

    def own_part(self, whole: Tensor) -> Tensor:
        """The host's part of what its `training_step` returned, the rest of which counts as `pact/loss`.

        How the host scales its loss for its logs, it does alike to all parts.
        """
        share, self._share = self._share, None
        if share is None:
            return whole
        own = torch.where(whole == 0, whole, whole * share.to(whole.device))
        self._metrics.add({"steps": int(self._trainer.accelerator.sync_gradients)}, {"loss": whole - own})
        return own

    def _targets(self, inputs: dict[str, Any]) -> Targets:
        try:
            return self._objective.targets(inputs)
        except PactError as error:
            self._recorder.add({"cache_misses": isinstance(error, MissingReferenceError)})
            self._recorder.fail(error)
            raise

    @property
    def _processes(self) -> int:
        """Processes whose labels are counted together; gradients are averaged over them."""
        trainer = self._trainer
        return trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1

    def _of_anchors(self, device: torch.device, items: Any) -> Tensor:
        """weight * `anchors.WEIGHT` * mean divergence of this step's anchors, once whatever the accumulation."""
        objective, trainer = self._objective, self._trainer
        accelerator, anchors = trainer.accelerator, objective.anchors
        assert anchors is not None, "it is asked before"
        processes = accelerator.num_processes
        turn = trainer.state.global_step * processes + accelerator.process_index
        with accelerator.autocast():
            terms = objective.anchor_terms(anchors, anchors.rows(turn), device)
        self._recorder.add({"anchor_tokens": terms.count})
        self._metrics.add({"anchor_tokens": terms.count}, {"anchor_kl": terms.statistics["kl"]})
        # Gradients are averaged over the processes: each divides by the mean of their tokens, so that the average is
        # the mean over all tokens. Every process knows the others' turns.
        first = turn - accelerator.process_index
        tokens = sum(anchors.tokens(anchors.rows(other)) for other in range(first, first + processes)) / processes
        # Of means over micro-batches, a step is the sum, which the trainer may divide by their number.
        means = trainer.current_gradient_accumulation_steps if items is None else 1
        return objective.config.weight * terms.kl * (WEIGHT * means / tokens)

    def _backward(self, loss: Tensor, items: Any) -> None:
        """A backward pass of its own, before that of the step: DDP adds it to what the processes share afterwards."""
        trainer = self._trainer
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = (trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None
        trainer.accelerator.backward(loss if scaled else loss / trainer.current_gradient_accumulation_steps)


def _undamped(inputs: dict[str, Any], targets: Targets) -> dict[str, Any]:
    """The batch without the labels that are damped; as it is where none would be left: some losses are 0 / 0 then."""
    return {**inputs, "labels": targets.labels} if 0 < targets.damped < targets.supervised else inputs
