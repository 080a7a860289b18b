"""What runs leave out, or do less of, where something else is tested."""

from __future__ import annotations

import pytest

from pact_plugins.method import prompting, safety_tokens


def without_page(patch: pytest.MonkeyPatch) -> None:
    """As where the extra `report` is not installed: plots take longer to draw than a tiny model to train."""
    patch.setattr("pact_plugins.run.report.write._lacking", lambda: ["jinja2", "matplotlib"])


def few_prompts(patch: pytest.MonkeyPatch) -> None:
    """Short answers to some of the shipped prompts: to answer all of them takes longer than to train, too.

    They need not refuse: the models are of random weights.
    """
    patch.setattr(safety_tokens, "LEAST_REFUSALS", 0.0)
    shipped = prompting.shipped
    # In this order: the first takes the name from the second when it is imported.
    for place in ("evaluation.prompts", "method.prompting"):
        patch.setattr(f"pact_plugins.{place}.shipped", lambda *which: shipped(*which)[:16])
    patch.setattr(prompting, "MAX_ANSWER_TOKENS", 8)
