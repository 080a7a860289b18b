"""`PactCallback`: PACT for any transformers-based trainer, TRL's and Axolotl's among them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pact_plugins.binding import Binding
from pact_plugins.config import PactConfig
from pact_plugins.evidence import Evidence
from pact_plugins.probing import Probing
from pact_plugins.report.write import in_a_line
from pact_plugins.telling import tell

logger = logging.getLogger(__name__)


class PactCallback(TrainerCallback):
    """Switches PACT on for one trainer: `trainer.add_callback(PactCallback(trainer))`.

    Making the callback checks the trainer and wraps its loss; when training begins, the safety tokens and the
    reference are found. The trainer's logger receives, averaged over the logging interval:

    ===========================================  =======================================================================
    metric                                       meaning
    ===========================================  =======================================================================
    `pact/kl`                                    divergence from the reference, per answer token, before the weight
    `pact/gate`                                  mean gate, if it is on
    `pact/safety_mass`                           the model's probability on the held tokens (`confidence` alone)
    `pact/reference_mass`                        the reference's probability on them
    `pact/damped`                                share of cross-entropy's weight that was taken away
    `pact/answer_tokens`                         answer tokens constrained
    `pact/cache_hits`                            sequences whose reference was looked up
    `pact/probe_harmful`, `pact/probe_harmless`  margin towards refusing, in nats, of held-out prompts (`probe`)
    `pact/probe_refusing`                        share of the harmful ones with a margin above 0
    `pact/anchor_kl`, `pact/anchor_tokens`       the same divergence on the anchors, and their number, if they are on
    ===========================================  =======================================================================

    OUTPUT_DIR/pact_evidence.json says what the steps were held to (see `evidence.Evidence`), and is brought up to date
    whenever weights are saved. When training ends, a report is left in `OUTPUT_DIR/pact_report`.

    Args:
        trainer: the trainer that the callback is added to.
        config: a `PactConfig`, or what a `pact:` key may hold. `False` is an explicit off.

    Raises:
        PactError: the config breaks the schema, or the trainer cannot be served.
    """

    def __init__(self, trainer: Any, config: PactConfig | dict[str, Any] | bool = True) -> None:
        parsed = PactConfig.parse(config)
        self.trainer = trainer
        self.binding = Binding(trainer, parsed) if parsed else None
        self.probing: Probing | None = None
        if self.binding is None:
            logger.warning("PACT is switched off (`pact: false`): this run does not protect the model's refusals.")

    def on_train_begin(self, *_args: Any, **_kw: Any) -> None:
        if self.binding is not None:
            probe = self.binding.prepare().probe
            self.probing = Probing(self.binding, probe) if probe else None
        elif self.trainer.is_world_process_zero():
            Evidence.save_off(Path(self.trainer.args.output_dir))
        if self.probing is not None:
            self.probing.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_kw: Any) -> None:
        if self.binding is not None:
            self.binding.step_ended(saves=control.should_save)
        if self.probing is not None:
            self.probing.after_step(control)

    def on_save(self, *_args: Any, **_kw: Any) -> None:
        if self.binding is not None:
            self.binding.saved()

    def on_train_end(self, *_args: Any, **_kw: Any) -> None:
        if self.binding is None:
            return
        self.binding.end()
        try:
            if (folder := self.binding.report()) is not None:
                self.announce(folder)
        except Exception:
            # Hosts save the weights after this: what goes wrong with a report must not cost the training.
            logger.exception(
                "PACT: the run's report could not be made. The trained weights are not affected; `pact report %s` "
                "makes it from what was recorded.",
                self.binding.output_dir,
            )

    def announce(self, folder: Path) -> None:
        """Prints what the run's report says. For whoever makes another one of it to override.

        Args:
            folder: of the report.
        """
        tell(f"PACT: {in_a_line(folder)}", highlight=False, markup=False)
