"""`PactCallback`: PACT for any transformers-based trainer, TRL's and Axolotl's among them."""

from __future__ import annotations

import logging
import sys
import weakref
from typing import Any

from transformers import Trainer, TrainerCallback

from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.model.progress import tell
from pact_plugins.run.as_loaded import was_prepared
from pact_plugins.run.binding import Binding
from pact_plugins.run.evidence import Evidence
from pact_plugins.run.monitor import Probing
from pact_plugins.run.report.write import Written
from pact_plugins.run.trainer import output_dir

logger = logging.getLogger(__name__)


class PactCallback(TrainerCallback):
    """Switches PACT on for one trainer: `trainer.add_callback(PactCallback(trainer))`.

    Making the callback checks the trainer and wraps its loss; when training begins, the safety tokens and the
    reference are found. The trainer's logger receives, averaged over the logging interval:

    ===========================================  =======================================================================
    metric                                       meaning
    ===========================================  =======================================================================
    `pact/loss`                                  what PACT adds to a step's loss; `loss` is the host's own
    `pact/kl`                                    divergence from the reference, per answer token, before the weight
    `pact/gate`                                  mean gate, if it is on
    `pact/safety_mass`                           the model's probability on the held tokens (`confidence` alone)
    `pact/reference_mass`                        the reference's probability on them
    `pact/damped`                                share of cross-entropy's weight that was taken away
    `pact/answer_tokens`                         answer tokens constrained
    `pact/cache_hits`                            sequences whose reference was looked up
    `pact/probe_harmful`, `pact/probe_harmless`  margin towards refusing, in nats, of held-out prompts (`probe`)
    `pact/probe_refusing`                        share of the harmful ones with a margin above 0
    `pact/anchor_kl`, `pact/anchor_tokens`       divergence over the vocabulary at the anchors, and their tokens, if on
    ===========================================  =======================================================================

    OUTPUT_DIR/pact_evidence.json says what the steps were held to (see `evidence.Evidence`), and is brought up to date
    whenever weights are saved. When training ends, a report is left in `OUTPUT_DIR/pact_report`.

    Args:
        trainer: the trainer that the callback is added to. Without one, as in `callbacks=[PactCallback()]` where the
            trainer is made, it is the one that begins to train with it.
        config: a `PactConfig`, or what a `pact:` key may hold. `False` is an explicit off. It may stand alone.
        settings: keys of a `pact:` block, in place of `config`.

    Raises:
        PactError: the config breaks the schema, or the trainer cannot be served.
    """

    def __init__(self, trainer: Any = None, config: PactConfig | dict[str, Any] | bool = True, **settings: Any) -> None:
        if isinstance(trainer, PactConfig | dict | bool) and config is True:
            trainer, config = None, trainer
        if settings and config is not True:
            raise PactError(
                expected="the settings as one object, or each by its name",
                got=f"an object, and {', '.join(settings)} by name",
                consequence="One of the two would be ignored.",
                remedy="Put all of them into the object.",
            )
        if trainer is not None:
            _check_new(trainer)
        self.config = PactConfig.parse(settings or config)
        self.trainer: Any = None
        self.binding: Binding | None = None
        self.probing: Probing | None = None
        self._prepared = was_prepared(getattr(trainer, "model", None))
        self._unused = weakref.finalize(self, logger.error, _UNUSED)
        if trainer is not None:
            self._bind(trainer)
        if self.config is None:
            self._unused.detach()
            logger.warning("PACT is switched off (`pact: false`): this run does not protect the model's refusals.")

    def _bind(self, trainer: Any) -> None:
        self._unused.detach()
        self.trainer = trainer
        self.binding = Binding(trainer, self.config, prepared=self._prepared) if self.config else None

    def on_init_end(self, *_args: Any, model: Any = None, **_kw: Any) -> None:
        self._prepared = was_prepared(model)

    def on_train_begin(self, *_args: Any, **_kw: Any) -> None:
        self._meet(_calling_trainer(self))
        handler = self.trainer.callback_handler
        others = [own for own in handler.callbacks if not isinstance(own, _EndsFirst)]
        handler.callbacks = [_EndsFirst(self), *others]  # another list: this one is being gone through
        if self.binding is not None:
            probe = self.binding.prepare().probe
            self.probing = Probing(self.binding, probe) if probe else None
        elif self.trainer.is_world_process_zero():
            Evidence.save_off(output_dir(self.trainer))
        if self.probing is not None:
            self.probing.begin()

    def _meet(self, calling: Any) -> None:
        """Binds to the trainer that begins to train, or refuses another one than that of the callback."""
        if calling is not None and sum(own is self for own in calling.callback_handler.callbacks) > 1:
            raise PactError(
                expected="the callback once in the trainer's list",
                got="the same one several times",
                consequence="Each step would count several times.",
                remedy="Add it once.",
            )
        if self.trainer is None and calling is not None:
            self._bind(calling)
        elif self.trainer is None or calling not in (None, self.trainer):
            raise PactError(
                expected="the trainer of the callback to begin training",
                got="something else" if calling is None else "another trainer",
                consequence="The run would train without PACT.",
                remedy="Make a callback for each trainer: `trainer.add_callback(PactCallback(trainer))`.",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_kw: Any) -> None:
        if self.binding is not None:
            self.binding.step_ended(saves=control.should_save)
        if self.probing is not None:
            self.probing.after_step(control)

    def on_save(self, *_args: Any, **_kw: Any) -> None:
        if self.binding is not None:
            self.binding.saved()

    def _end(self) -> None:
        """Training has ended; see `_EndsFirst`."""
        if self.binding is None:
            return
        self.binding.end()
        try:
            if (written := self.binding.report()) is not None:
                self.announce(written)
        except Exception:
            # Hosts save the weights after this: what goes wrong with a report must not cost the training.
            logger.exception(
                "PACT: the run's report could not be made. The trained weights are not affected; `pact report %s` "
                "makes it from what was recorded.",
                self.binding.output_dir,
            )

    def announce(self, written: Written) -> None:
        """Prints what the run's report says. For whoever makes another one of it to override."""
        tell(f"PACT: {written.line}", highlight=False, markup=False)


class _EndsFirst(TrainerCallback):
    """Ends PACT's part before trackers hear of the end: MLflow and trackio close their run then, and take no rates.

    It stands before all other callbacks, and does nothing once its owner was removed.
    """

    def __init__(self, owner: PactCallback) -> None:
        self.owner = owner

    def on_train_end(self, *_args: Any, **_kw: Any) -> None:
        if any(own is self.owner for own in self.owner.trainer.callback_handler.callbacks):
            self.owner._end()


_UNUSED = (
    "PACT: a `PactCallback` was made, and no trainer began to train with it: nothing trained under PACT by it. Add it "
    "before `trainer.train()`."
)


def _check_new(trainer: Any) -> None:
    """Refuses what is no trainer, and one that has trained: PACT begins with the model before its first step."""
    if not isinstance(trainer, Trainer):
        raise PactError(
            expected="a trainer, transformers' own or one that is derived from it, as `PactCallback(trainer)`",
            got=f"the class {trainer.__name__}" if isinstance(trainer, type) else f"a {type(trainer).__name__}",
            consequence="The run would train without PACT.",
            remedy="Write `trainer.add_callback(PactCallback(trainer))`, or `callbacks=[PactCallback()]` where the "
            "trainer is made. Settings come second: `PactCallback(trainer, {'weight': 0.3})`.",
        )
    if trainer.state.global_step:
        raise PactError(
            expected="a trainer that is yet to train",
            got=f"one that has trained {trainer.state.global_step:,} steps",
            consequence="Its weights are no reference for what the model was.",
            remedy="Add the callback before `trainer.train()`, and train the original model again.",
        )


def _calling_trainer(callback: TrainerCallback) -> Any:
    """The trainer that calls this callback, found up the stack, since trainers do not tell; None if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer) and any(own is callback for own in found.callback_handler.callbacks):
            return found
        frame = frame.f_back
    return None
