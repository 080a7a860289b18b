"""What a run does to report itself: asks its model before and after, looks at it once more, writes the report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from pact_plugins.evaluation.of_run import RunEvaluation
from pact_plugins.evaluation.run import Evaluation
from pact_plugins.model.ranks import Ranks
from pact_plugins.run.evidence import FINAL, Evidence
from pact_plugins.run.preparation import Preparation
from pact_plugins.run.report.write import Written, make_report
from pact_plugins.run.token_profile import Profile, measure_profile, profile_of_anchors, save_profiles
from pact_plugins.run.trainer import about_training, output_dir


def rates_to_log(found: Evaluation) -> dict[str, float]:
    """`pact_eval/SET/KIND/MEASURE_before` and `..._after`, between 0 and 1; behind KIND the judge, if one decided."""
    logged: dict[str, float] = {}
    for m in found.measurements:
        place = [Path(m.prompt_set).name, m.kind, *([m.judge] if m.judge else []), m.measure]
        name = re.sub(r"[^\w./-]", "-", "/".join(["pact_eval", *place]))  # what every tracker takes
        if m.against is not None:
            logged[f"{name}_before"] = m.against.share
        logged[f"{name}_after"] = m.model.share
    return logged


class Reporting:
    """The report of one trainer's run.

    Args:
        evaluation: what its model is asked, if it is.
        ranks: the processes of the run, all of which answer and look; the first one writes.
    """

    def __init__(self, trainer: Any, preparation: Preparation, evaluation: RunEvaluation | None, ranks: Ranks) -> None:
        self.trainer, self.preparation, self.evaluation, self.ranks = trainer, preparation, evaluation, ranks

    @property
    def _folder(self) -> Path:
        return output_dir(self.trainer)

    @property
    def _model(self) -> Any:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def begin(self, *, resumed: bool) -> None:
        """Lets the model answer before its first step."""
        if self.evaluation is None:
            return
        name, known = str(about_training(self.trainer)["model"]), self.preparation.identity.model
        with self.trainer.accelerator.autocast():
            self.evaluation.before(self._model, name, resumed=resumed, fingerprint=known)

    def end(self, evidence: Evidence) -> Written | None:
        """Keeps what was logged, looks at the trained model, lets it answer as well, and writes the report.

        The first process is given the report.

        Args:
            evidence: of the run, with the fingerprints of the model as it is now.
        """
        trainer, objective = self.trainer, self.preparation.objective
        self._keep_history()
        with trainer.accelerator.autocast():
            profiles = dict[str, Profile]()
            if sample := self.preparation.sample:
                profiles["training answers"] = measure_profile(objective, sample)
            if objective.anchors is not None:
                profiles["anchors"] = profile_of_anchors(objective, objective.anchors)
            if self.ranks.is_first:
                save_profiles(profiles, self._folder)
            if self.evaluation is not None:
                about = about_training(trainer)
                found = self.evaluation.after(
                    self._model,
                    str(about["model"]),
                    adapter=about["adapter"],
                    fingerprint=evidence.trained_model,
                    weights=evidence.weights.get(FINAL, ()),
                )
                trainer.log(self.ranks.first(lambda: rates_to_log(cast(Evaluation, found)), "logging the rates"))
                self._keep_history()
        return make_report(self._folder, saved=False) if self.ranks.is_first else None

    def _keep_history(self) -> None:
        if self.ranks.is_first:
            Evidence.save_history(self.trainer.state.log_history, self._folder)
