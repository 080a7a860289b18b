"""What a run asks its model, read from the files on this machine: whether it can be asked, and whether it is enough."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pact_plugins.config import SPLIT
from pact_plugins.errors import PactError
from pact_plugins.evaluation import prompts, split
from pact_plugins.evaluation.of_run import descriptions
from pact_plugins.evaluation.prompts import PromptSet
from pact_plugins.preflight.rules import Finding, Run
from pact_plugins.run.report.verdict import least_prompts


def unaskable(run: Run) -> Iterator[Finding]:
    """Files of which no prompt set can be made, which would stop the run."""
    yield from (found for found in _read(run) if isinstance(found, Finding))


def no_eval_split(run: Run) -> Iterator[Finding]:
    """A file that keeps no rows for the eval split that is to be asked."""
    asked = run.pact.active_eval
    if asked is None or asked.task != SPLIT:
        return
    key = "eval_strategy" if run.host == "trl" else "val_set_size"
    kept = run.settings.get(key)
    if run.host == "axolotl":
        kept = kept or run.settings.get("test_datasets")
    if not kept or kept == "no":
        yield Finding("pact.eval.task", split.no_split(f"no `{key}`" + " and no `test_datasets`" * (run.host != "trl")))


def too_few(run: Run) -> Iterator[Finding]:
    """Prompts of which the report could never say that the model held."""
    asked = run.pact.active_eval
    if asked is None:
        return
    if asked.limit is not None and asked.limit < least_prompts():
        yield Finding.of(
            "pact.eval.limit",
            expected=f"at least {least_prompts()} prompts of each set",
            got=str(asked.limit),
            consequence="The report could say that the model did not hold, and never that it held.",
            remedy="Ask more, or set `pact.eval: false` if nobody reads the report.",
        )
        return
    for found in _read(run):
        if isinstance(found, PromptSet) and len(found.prompts) < (least := least_prompts(found.kind)):
            never = "that the model held"
            if found.kind == "task":
                never = "that the model does not refuse this task more often than before"
            yield Finding.of(
                f"pact.eval.{'task' if found.kind == 'task' else 'prompts'}",
                expected=f"at least {least} {found.kind} prompts in {found.name}",
                got=str(len(found.prompts)),
                consequence=f"The report could never say {never}.",
                remedy="Ask more.",
            )


def _read(run: Run) -> Iterator[PromptSet | Finding]:
    """The prompt sets of files that are there, and what is wrong with others."""
    asked = run.pact.active_eval
    for description in descriptions(asked) if asked else ():
        if not Path(description.split(":")[0]).is_file():  # ours, on the hub, or told of as missing
            continue
        try:
            yield from prompts.load(description)
        except PactError as error:
            yield Finding("pact.eval", error)
