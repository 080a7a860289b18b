"""What in a run file may be right, and would surprise whoever did not mean it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pact_plugins.preflight.rules import Finding, Run
from pact_plugins.run.evidence import EVIDENCE


def remarks(run: Run) -> Iterator[Finding]:
    """One by one; none stops a run."""
    model = Path(run.model) if run.model else None
    if model is not None and any((folder / EVIDENCE).exists() for folder in (model, model.parent)):
        yield Finding.of(
            "model",
            expected="the model as it was before fine-tuning",
            got=f"one that a run under PACT wrote: {model}",
            consequence="Its refusals as they are now would be the reference.",
            remedy="Name the original model, or resume that run, unless this is a second stage.",
        )
    if "$" in str(run.settings.get("output_dir")):
        yield Finding.of(
            "output_dir",
            expected="a folder by its name",
            got=f"`{run.settings['output_dir']}`, in which hosts fill in no variable",
            consequence="The run would write into a folder of that name below the one in which it is started.",
            remedy="Write the folder out, or give `--output_dir` on the command line, where the shell fills it in.",
        )
