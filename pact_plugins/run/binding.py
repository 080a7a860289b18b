"""The only file that changes a trainer: binds PACT to one trainer instance, and can be undone."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pact_plugins.chat.answers import Document
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.run.agreement import check_agreement
from pact_plugins.run.as_loaded import mark_trained
from pact_plugins.run.before_and_after import Reporting
from pact_plugins.run.cost import ModelSize, Overhead
from pact_plugins.run.evidence import StartedFrom
from pact_plugins.run.first_batches import first_batches
from pact_plugins.run.host_loss import measure_host_loss
from pact_plugins.run.metrics import Metrics
from pact_plugins.run.model_card import add_safety
from pact_plugins.run.preparation import Preparation, evidence_of, prepare, print_summary
from pact_plugins.run.recorder import Recorder
from pact_plugins.run.report.write import Written
from pact_plugins.run.trainer import (
    Start,
    about_training,
    check_trainer,
    expected_step,
    output_dir,
    probe_flop,
    versions,
)
from pact_plugins.run.training_loss import TrainingLoss

logger = logging.getLogger(__name__)

_ATTRIBUTE = "pact_binding"

_WRAPPED = ("compute_loss", "training_step", "log", "create_model_card")

UNPROTECTED = "pact_unprotected_weights"
"""In the output folder of a run that trained to its end without constraining what it should have."""


class Binding:
    """PACT on one trainer (transformers' `Trainer` or any trainer derived from it).

    Wraps methods of the instance, so it composes with any trainer class.
    Evaluation passes through untouched.

    Args:
        trainer: the trainer, not yet training.
        config: the run's settings.
        prepared: whether its model was made ready to be trained before (`as_loaded.was_prepared`).

    Raises:
        PactError: the trainer already has PACT, or its model or settings cannot be served.
    """

    def __init__(self, trainer: Any, config: PactConfig, *, prepared: bool = False) -> None:
        if getattr(trainer, _ATTRIBUTE, None) is not None:
            raise PactError(
                expected="one PACT per trainer",
                got="a trainer that has PACT already",
                consequence="The safety term would count twice.",
                remedy="Add the callback once, or call `remove()` on the first.",
            )
        self.trainer, self.config, self._prepared = trainer, config, prepared
        self.preparation: Preparation | None = None
        self.recorder: Recorder | None = None
        self.training_loss: TrainingLoss | None = None
        self.ranks = ALONE
        """The processes of the run, once it is being prepared."""
        self.noted: dict[str, float] = {}
        """Metrics of others that join PACT's own at the next log entry."""
        self._reporting: Reporting | None = None
        self._metrics = Metrics()
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
            self.preparation, self.training_loss, self._metrics = None, None, Metrics()
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
            start = Start.of(trainer, self.config, self.ranks, prepared=self._prepared)
            self.preparation = prepare(start)
            objective, host, agreement = self.preparation.objective, None, None
            own = self._compute_loss
            if start.holds_rows:
                with first_batches(trainer, self.ranks) as batches:
                    host = measure_host_loss(trainer, own, batches, damps=self.config.damps, ranks=self.ranks)
                    if not resumed:
                        agreement = check_agreement(trainer, objective, own, batches, start.documents)
            startup = time.perf_counter() - started
            about = {
                "versions": versions(trainer),
                "training": about_training(trainer),
                "agreement": asdict(agreement) if agreement else None,
            }
            self.recorder = Recorder(trainer, evidence_of(self.preparation, **about))
            self.training_loss = TrainingLoss(trainer, own, objective, host, self.recorder, self._metrics)
            self._reporting = Reporting(trainer, self.preparation, start.evaluation, self.ranks)
            self._reporting.begin(resumed=resumed)
            if self.ranks.is_first:
                checked = agreement.rows(startup) if agreement else ()
                overhead = self._overhead(self.preparation, start.documents)
                print_summary(self.preparation, overhead=overhead, checked=checked)
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

    def report(self) -> Written | None:
        """Writes the report of a run that has ended, and gives it to the first process."""
        assert self._reporting is not None, "training has begun"
        with self.ranks.together("the report of the run"):
            written = self._reporting.end(self._recorder.evidence)
            if self.ranks.is_first:
                add_safety(self.output_dir)  # to a card that came with a checkpoint
            return written

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

    def _overhead(self, preparation: Preparation, documents: Sequence[Document]) -> Overhead | None:
        """What each step will cost, if PACT has to compute the log-normaliser; None without a data loader, or rows."""
        if not documents:
            return None
        objective = preparation.objective
        anchors = objective.anchors.documents if objective.anchors else []
        step = expected_step(self.trainer, preparation.data, documents, objective.chat, anchors, self.config)
        if step is None:
            return None
        size = ModelSize.of(objective.head.model)
        return Overhead.of(
            step,
            size,
            len(objective.tokens.ids),
            log_normaliser=self.config.defaults.absolute,
            probe_flop=probe_flop(self.trainer, size, preparation.probe),
        )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
        """The trainer's own loss in evaluation, and with PACT's terms while it trains (see `TrainingLoss`)."""
        if not (model.training and torch.is_grad_enabled()):
            return self._compute_loss(model, inputs, *args, **kw)
        if self.training_loss is None:
            raise PactError(
                expected="PACT to be prepared before the first training step",
                got="a training step",
                consequence="The run would train without PACT.",
                remedy="Add the callback: `trainer.add_callback(PactCallback(trainer))`, then `trainer.train()`.",
            )
        return self.training_loss(model, inputs, *args, **kw)

    def training_step(self, *args: Any, **kw: Any) -> Any:
        """The trainer's own step, for whose logs it returns the host's loss alone.

        A perplexity, or a watchdog, is made of what is logged as `loss`, and curves are compared with those of other
        runs.
        """
        whole = self._training_step(*args, **kw)
        return whole if self.training_loss is None else self.training_loss.own_part(whole)

    def log(self, logs: dict[str, float], *args: Any, **kw: Any) -> None:
        """Adds PACT's metrics to the trainer's own where it logs the training loss."""
        if "loss" in logs and (metrics := self._metrics.take(self.trainer.accelerator)):
            logs = {**logs, **metrics, **self.noted}
            self.noted = {}
        self._log(logs, *args, **kw)
