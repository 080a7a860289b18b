"""The only file that changes a trainer: binds PACT to one trainer instance, and can be undone."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pact_plugins.config import PactConfig
from pact_plugins.errors import MissingReferenceError, PactError
from pact_plugins.method.anchors import WEIGHT
from pact_plugins.method.objective import PactObjective, Targets
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.run.agreement import check_agreement
from pact_plugins.run.before_and_after import Reporting
from pact_plugins.run.cost import ModelSize, Overhead
from pact_plugins.run.evidence import StartedFrom
from pact_plugins.run.first_batches import first_batches
from pact_plugins.run.host_loss import HostLoss, measure_host_loss
from pact_plugins.run.model_card import add_safety
from pact_plugins.run.preparation import Preparation, evidence_of, prepare, print_summary
from pact_plugins.run.recorder import Recorder
from pact_plugins.run.trainer import (
    Start,
    about_training,
    check_trainer,
    expected_step,
    mark_trained,
    marks_once,
    output_dir,
    probe_flop,
    versions,
)

logger = logging.getLogger(__name__)

_ATTRIBUTE = "pact_binding"

_WRAPPED = ("compute_loss", "training_step", "log", "create_model_card")

_COUNTS = ("answer_tokens", "cache_hits", "anchor_tokens", "steps")
"""What is summed up for the log; all else is a mean over one of these."""

UNPROTECTED = "pact_unprotected_weights"
"""In the output folder of a run that trained to its end without constraining what it should have."""


class Binding:
    """PACT on one trainer (transformers' `Trainer` or any trainer derived from it).

    Wraps methods of the instance, so it composes with any trainer class.
    Evaluation passes through untouched.

    Args:
        trainer: the trainer, not yet training.
        config: the run's settings.

    Raises:
        PactError: the trainer already has PACT, or its model or settings cannot be served.
    """

    def __init__(self, trainer: Any, config: PactConfig) -> None:
        if getattr(trainer, _ATTRIBUTE, None) is not None:
            raise PactError(
                expected="one PACT per trainer",
                got="a trainer that has PACT already",
                consequence="The safety term would count twice.",
                remedy="Add the callback once, or call `remove()` on the first.",
            )
        self.trainer, self.config = trainer, config
        self.preparation: Preparation | None = None
        self.recorder: Recorder | None = None
        self.ranks = ALONE
        """The processes of the run, once it is being prepared."""
        self.noted: dict[str, float] = {}
        """Metrics of others that join PACT's own at the next log entry."""
        self.host_loss = HostLoss()
        self._reporting: Reporting | None = None
        self._sums: dict[str, Tensor | float] = {}
        self._of_host: Tensor | None = None
        """What the host's own loss is of the whole, in the last micro-batch."""
        self._compute_loss, self._training_step = trainer.compute_loss, trainer.training_step
        self._log, self._create_model_card = trainer.log, trainer.create_model_card
        self._hidden = {name: vars(trainer).get(name) for name in _WRAPPED}
        check_trainer(trainer, config)
        for name in _WRAPPED:
            setattr(trainer, name, getattr(self, name))
        setattr(trainer, _ATTRIBUTE, self)

    def remove(self) -> None:
        """Gives the trainer its own methods back."""
        if self.preparation is not None:
            self.preparation.objective.head.remove()
        for name, own in self._hidden.items():
            # The class's own method shows again once nothing on the instance hides it.
            delattr(self.trainer, name) if own is None else setattr(self.trainer, name, own)
        setattr(self.trainer, _ATTRIBUTE, None)

    def prepare(self) -> Preparation:
        """Finds the tokens and the reference. Call it whenever training begins, before the first step.

        From the second call on they are what they were, since by then the weights may be trained; of a trainer that has
        a new model made each time (`model_init`), they are that model's.
        """
        self._check_attached()
        head = self.preparation.objective.head if self.preparation else None
        # Not where a trainer begins again after running out of memory: it keeps its model, trained.
        if head is not None and self.trainer.model_init is not None and head.model is not self._model:
            head.remove()
            self.preparation, self._sums = None, {}
            check_trainer(self.trainer, self.config)
        if self.preparation is None:
            self.ranks = Ranks.of_run(self.trainer.args.ddp_timeout)
        with self.ranks.together("the preparation of the run"):
            return self._prepare(self.trainer)

    def _prepare(self, trainer: Any) -> Preparation:
        resumed = trainer.state.global_step > 0
        started_from: StartedFrom = "checkpoint" if resumed else "trained" if self.preparation else "reference"
        if self.preparation is None:
            started = time.perf_counter()
            start = Start.of(trainer, self.config, self.ranks)
            self.preparation = prepare(start)
            objective, agreement = self.preparation.objective, None
            own = self._compute_loss
            with first_batches(trainer, self.ranks) as batches:
                self.host_loss = measure_host_loss(trainer, own, batches, damps=self.config.damps, ranks=self.ranks)
                if not resumed:
                    agreement = check_agreement(trainer, objective, own, batches, start.documents)
            startup = time.perf_counter() - started
            about = {
                "versions": versions(trainer),
                "training": about_training(trainer),
                "agreement": asdict(agreement) if agreement else None,
            }
            self.recorder = Recorder(trainer, evidence_of(self.preparation, **about))
            self._reporting = Reporting(trainer, self.preparation, start.evaluation, self.ranks)
            self._reporting.begin(resumed=resumed)
            if self.ranks.is_first:
                checked = agreement.rows(startup) if agreement else ()
                print_summary(self.preparation, overhead=self._overhead(self.preparation), checked=checked)
        self._recorder.begin(started_from)
        return self.preparation

    def step_ended(self, *, saves: bool) -> None:
        """Call it after each optimiser step; `saves` says whether a checkpoint is about to be written.

        Raises:
            PactError: the step ran without PACT.
        """
        self._check_attached()
        mark_trained(self._model)
        self._recorder.step()
        if saves:
            # Before the checkpoint: a run killed between the two can resume from it.
            self._recorder.save(self._model)

    def saved(self) -> None:
        """Call it after a checkpoint: not every one is announced by the step before it."""
        self._recorder.save(self._model)

    def end(self) -> None:
        """Call it when training ends, before its report is made.

        Raises:
            PactError: the run did not constrain what it should have. Its weights are kept, under a name that says so.
        """
        try:
            self._check_attached()
            self._recorder.end(self._model)
        except PactError:
            kept = self.output_dir / UNPROTECTED
            self.trainer.save_model(str(kept))
            logger.error("PACT: this run is not protected. Its weights are kept in %s.", kept)
            raise

    def report(self) -> Path | None:
        """Writes the report of a run that has ended, and gives its folder to the first process."""
        assert self._reporting is not None, "training has begun"
        with self.ranks.together("the report of the run"):
            folder = self._reporting.end(self._recorder.evidence)
            if self.ranks.is_first:
                add_safety(self.output_dir)  # to a card that came with a checkpoint
            return folder

    def create_model_card(self, *args: Any, **kw: Any) -> Any:
        """The trainer's own card, with the section "Safety" once training has ended."""
        result = self._create_model_card(*args, **kw)
        if self.ranks.is_first and self.recorder is not None and self.recorder.evidence.trained_model is not None:
            add_safety(self.output_dir)
        return result

    def _check_attached(self) -> None:
        if getattr(self.trainer, _ATTRIBUTE, None) is not self:
            raise PactError(
                expected="a trainer that still has PACT",
                got="one from which it was removed",
                consequence="The run would report PACT and train without it.",
                remedy="Remove the callback too (`trainer.remove_callback`), or add a new one.",
            )

    @property
    def _model(self) -> Any:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    @property
    def _recorder(self) -> Recorder:
        if self.recorder is None:
            raise PactError(
                expected="PACT to be told that training begins",
                got="a step, or the end of training, without",
                consequence="The run would report PACT and train without it.",
                remedy="Add the callback before `trainer.train()`.",
            )
        return self.recorder

    @property
    def output_dir(self) -> Path:
        """Where the run leaves what it leaves."""
        return output_dir(self.trainer)

    def _overhead(self, preparation: Preparation) -> Overhead | None:
        """What each step will cost, if PACT has to compute the log-normaliser; None without a data loader."""
        objective = preparation.objective
        documents = objective.anchors.documents if objective.anchors else []
        step = expected_step(self.trainer, preparation.data, documents, self.config)
        if step is None:
            return None
        size = ModelSize.of(objective.head.model)
        return Overhead.of(
            step,
            size,
            len(objective.tokens.ids),
            log_normaliser=self.config.normalises,
            probe_flop=probe_flop(self.trainer, size, preparation.probe),
        )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
        """The trainer's own loss without damped tokens, plus weight * KL divided as that loss is, plus anchors.

        The rest is handed on as it came: trainers of people's own take `**kwargs`, or name less than transformers does.
        """
        if not (model.training and torch.is_grad_enabled()):
            return self._compute_loss(model, inputs, *args, **kw)
        given = {**dict(zip(("return_outputs", "num_items_in_batch"), args, strict=False)), **kw}
        return_outputs = given.get("return_outputs", False)
        if self.preparation is None:
            raise PactError(
                expected="PACT to be prepared before the first training step",
                got="a training step",
                consequence="The run would train without PACT.",
                remedy="Add the callback: `trainer.add_callback(PactCallback(trainer))`, then `trainer.train()`.",
            )
        objective = self.preparation.objective
        # Without a number of items, a loss is the mean over the labels of its micro-batch.
        items = given.get("num_items_in_batch") if self.host_loss.per_item else None
        # Before the trainer's own loss: trainers take keys out of the inputs.
        targets = self._targets(objective, inputs)
        joins = objective.anchors is not None and self.trainer.accelerator.sync_gradients
        apart = joins and marks_once(self.trainer)
        if apart:
            self._backward(self._anchored(objective, targets, items), items)
        with objective.watch(targets) as captured:
            result = self._compute_loss(model, _undamped(inputs, targets), *args, **kw)
        own, *outputs = result if return_outputs else (result,)
        kept = targets.supervised - targets.damped
        # Divided as if all labels were there.
        own = own * (kept / targets.supervised if items is None else float(kept > 0))
        terms = objective.terms(captured, targets)
        counts = {"answer_tokens": terms.count, "cache_hits": targets.documents}
        self._recorder.add({"micro_batches": 1, "supervised_tokens": targets.supervised, **counts})
        self._add(counts, terms.statistics)
        scale = 1 / targets.supervised if items is None else self._processes / items
        safety = self.config.weight * terms.kl * scale
        if joins and not apart:
            safety = safety + self._anchored(objective, targets, items)
        loss = own + safety.to(own.device)
        self._of_host = (own / loss).detach()
        return (loss, *outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kw: Any) -> Any:
        """The trainer's own step, for whose logs it returns the host's loss alone.

        A perplexity, or a watchdog, is made of what is logged as `loss`, and curves are compared with those of other
        runs. How the host scales its loss for its logs, it does alike to all parts.
        """
        whole = self._training_step(*args, **kw)
        share, self._of_host = self._of_host, None
        if share is None:
            return whole
        own = torch.where(whole == 0, whole, whole * share.to(whole.device))
        self._add({"steps": int(self.trainer.accelerator.sync_gradients)}, {"loss": whole - own})
        return own

    def log(self, logs: dict[str, float], *args: Any, **kw: Any) -> None:
        """Adds PACT's metrics to the trainer's own where it logs the training loss."""
        if "loss" in logs and self._sums:
            logs = {**logs, **self._metrics(), **self.noted}
            self.noted = {}
        self._log(logs, *args, **kw)

    def _targets(self, objective: PactObjective, inputs: dict[str, Any]) -> Targets:
        try:
            return objective.targets(inputs)
        except PactError as error:
            self._recorder.add({"cache_misses": isinstance(error, MissingReferenceError)})
            self._recorder.fail(error)
            raise

    @property
    def _processes(self) -> int:
        """Processes whose labels are counted together; gradients are averaged over them."""
        return self.trainer.accelerator.num_processes if self.trainer.args.average_tokens_across_devices else 1

    def _anchored(self, objective: PactObjective, targets: Targets, items: Any) -> Tensor:
        """weight * `anchors.WEIGHT` * mean divergence of this step's anchors, once whatever the accumulation."""
        accelerator, anchors = self.trainer.accelerator, objective.anchors
        assert anchors is not None, "it is asked before"
        processes = accelerator.num_processes
        turn = self.trainer.state.global_step * processes + accelerator.process_index
        with accelerator.autocast():
            terms = objective.anchor_terms(anchors, anchors.rows(turn), targets.full.device)
        self._recorder.add({"anchor_tokens": terms.count})
        self._add({"anchor_tokens": terms.count}, {"anchor_kl": terms.statistics["kl"]})
        # Gradients are averaged over the processes: each divides by the mean of their tokens, so that the average is
        # the mean over all tokens. Every process knows the others' turns.
        first = turn - accelerator.process_index
        tokens = sum(anchors.tokens(anchors.rows(other)) for other in range(first, first + processes)) / processes
        # Of means over micro-batches, a step is the sum, which the trainer may divide by their number.
        means = self.trainer.current_gradient_accumulation_steps if items is None else 1
        return self.config.weight * terms.kl * (WEIGHT * means / tokens)

    def _backward(self, loss: Tensor, items: Any) -> None:
        """A backward pass of its own, before that of the step: DDP adds it to what the processes share afterwards."""
        trainer = self.trainer
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = (trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None
        trainer.accelerator.backward(loss if scaled else loss / trainer.current_gradient_accumulation_steps)

    def _add(self, counts: dict[str, int], statistics: dict[str, Tensor]) -> None:
        """Adds to the sums of the next log entry, without waiting for the device."""
        for name, value in {**counts, **statistics}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def _metrics(self) -> dict[str, float]:
        names = sorted(self._sums)
        device = self.trainer.accelerator.device
        values = torch.stack([torch.as_tensor(self._sums[n], dtype=torch.float32, device=device) for n in names])
        sums = self.trainer.accelerator.reduce(values, reduction="sum").tolist()
        self._sums = {}
        total = dict(zip(names, sums, strict=True))
        counts = {name: total.pop(name) for name in _COUNTS if name in total}
        of = {"anchor_kl": "anchor_tokens", "loss": "steps"}
        means = {name: value / max(counts[of.get(name, "answer_tokens")], 1.0) for name, value in total.items()}
        counts.pop("steps", None)  # the trainer logs them itself
        return {f"pact/{name}": value for name, value in {**means, **counts}.items()}


def _undamped(inputs: dict[str, Any], targets: Targets) -> dict[str, Any]:
    """The batch without the labels that are damped; as it is where none would be left: some losses are 0 / 0 then."""
    return {**inputs, "labels": targets.labels} if 0 < targets.damped < targets.supervised else inputs
