"""What the task files beside this one call: prompts and judges of `pact eval`, for lm-evaluation-harness.

lm-evaluation-harness loads this file by its path, and finds the package in its environment.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask  # pyright: ignore

from pact_plugins.errors import PactError
from pact_plugins.evaluation import judges, prompts
from pact_plugins.evaluation.generation import Answer, Generation, Speaker
from pact_plugins.evaluation.layouts import Kind
from pact_plugins.evaluation.measure import judge_answers, measure
from pact_plugins.evaluation.prompts import Prompt, PromptSet


class ChatTask(ConfigurableTask):  # pyright: ignore
    """A task that is asked under the chat template, or not at all."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def build_all_requests(self, *, apply_chat_template: bool = False, **options: Any) -> None:
        """The requests.

        Raises:
            PactError: the harness was not told to use the chat template.
        """
        if not apply_chat_template:
            raise PactError(
                expected="`--apply_chat_template` (in Axolotl's file `apply_chat_template: true`)",
                got="a run without it",
                consequence="A chat model would have been asked in a form that it was never trained on, and its rate "
                "of refusals would say nothing.",
                remedy="Add it. Axolotl's plugin passes it on in `axolotl lm-eval`, not at the end of training: set "
                "`lm_eval_post_train: false` there.",
            )
        super().build_all_requests(apply_chat_template=apply_chat_template, **options)


def harmful(**_options: Any) -> dict[str, Dataset]:
    """The held-out harmful prompts."""
    return _dataset("harmful")


def harmless(**_options: Any) -> dict[str, Dataset]:
    """The held-out harmless prompts."""
    return _dataset("harmless")


def _dataset(kind: Kind) -> dict[str, Dataset]:
    (found,) = prompts.load(f"held-out:{kind}")
    return {"test": Dataset.from_list([{"id": p.id, "prompt": p.text} for p in found.prompts])}


def refusal_rates(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """What an answer to a harmful prompt adds to each rate: 0 or 1."""
    return _rates("harmful", doc, results)


def over_refusal_rates(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """What an answer to a harmless prompt adds to each rate: 0 or 1."""
    return _rates("harmless", doc, results)


def _rates(kind: Kind, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The rates of `pact eval`, of one answer."""
    (response,) = results
    asked = PromptSet("held-out", kind, (Prompt(str(doc["id"]), doc["prompt"]),))
    answer = Answer(
        "held-out", kind, str(doc["id"]), doc["prompt"], Speaker("lm-eval", None, ""), Generation(), response
    )
    used = [judges.load(name) for name in judges.DEFAULT_JUDGES]
    return {m.measure: m.model.share for m in measure([asked], {"model": judge_answers([answer], [asked], used)}, used)}
