"""The drift probe of a run: when it measures, what it logs, and when it stops the run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pact_plugins.errors import PactError
from pact_plugins.method.refusal_probe import Margins, Probe
from pact_plugins.run.binding import Binding
from pact_plugins.storage import files

logger = logging.getLogger(__name__)

NOTE = "pact_stopped.json"
"""In the output folder of a run that the probe has stopped."""


class Probing:
    """Measures before the first step and every `pact.probe.every` steps.

    Args:
        binding: a prepared binding whose config has the probe switched on.
    """

    def __init__(self, binding: Binding, probe: Probe) -> None:
        self.binding, self.probe = binding, probe
        self.trainer = binding.trainer

    def begin(self) -> None:
        """The measurement before the first step; a resumed run has made it already.

        Raises:
            PactError: the model refuses less than `stop_below` asks for, before any training.
        """
        if self.trainer.state.global_step > 0:
            return
        if self.trainer.is_world_process_zero():
            self._note.unlink(missing_ok=True)
        margins = self.measure()
        least = self.probe.config.stop_below
        if least is not None and margins.refusing < least:
            raise PactError(
                expected=f"a model that leans towards refusing at least {least:.0%} of the held-out harmful prompts "
                "before training (`pact.probe.stop_below`)",
                got=f"one that does so for {margins.refusing:.0%}",
                consequence="The run would stop at its first measurement.",
                remedy="Lower `stop_below`, or check that this is the aligned model with its own chat template.",
            )
        self.trainer.log(_metrics(margins))

    def after_step(self, control: Any) -> None:
        """Measures if it is time, has the result logged beside the loss of this step, and stops a run that drifted."""
        step = self.trainer.state.global_step
        if step % self.probe.config.every:
            return
        margins = self.measure()
        self.binding.noted.update(_metrics(margins))
        control.should_log = True
        least = self.probe.config.stop_below
        if least is None or margins.refusing >= least:
            return
        control.should_training_stop = True
        if self.trainer.is_world_process_zero():
            found = {"step": step, "refusing": margins.refusing, "stop_below": least}
            files.write(self._note, found)
            logger.warning(
                "PACT stops this run at step %d: the model leans towards refusing %.0f%% of the held-out harmful "
                "prompts, less than `pact.probe.stop_below` (%.0f%%). Its weights are those of this step: do not use "
                "them as they are; see %s.",
                *(step, 100 * margins.refusing, 100 * least, self._note),
            )

    def measure(self) -> Margins:
        """The margins now, the same in every process: each takes its part of the prompts."""
        assert self.binding.preparation is not None, "the binding is prepared"
        what, ranks = "measuring the drift", self.binding.ranks
        with ranks.together(what), self.trainer.accelerator.autocast():
            sums = self.probe.sums(self.binding.preparation.objective.head, ranks.rank, ranks.size)
            return Margins.of([sum(parts) for parts in zip(*ranks.exchange(sums.tolist(), what), strict=True)])

    @property
    def _note(self) -> Path:
        return self.binding.output_dir / NOTE


def _metrics(margins: Margins) -> dict[str, float]:
    return {
        "pact/probe_harmful": margins.harmful,
        "pact/probe_harmless": margins.harmless,
        "pact/probe_refusing": margins.refusing,
    }
