"""Prompts of published judges, read from the files in which their authors publish them; nothing in them is run."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from string import Formatter
from typing import Any

from pact_plugins.errors import PactError

SOURCES = {
    "strongreject": "`judge_templates.json` of github.com/dsbowen/strong_reject (folder strong_reject/eval_files)",
    "harmbench": "`eval_utils.py` of github.com/centerforaisafety/HarmBench, or for the Mistral classifier a .py file "
    "with the `MISTRAL_CLS_PROMPT` of its model card",
}
"""Where each judge's prompts are published, all under the MIT licence."""


def installed() -> Path | None:
    """The prompts of the package `strong_reject`, if it is installed; it is not imported."""
    spec = find_spec("strong_reject")
    folders = spec.submodule_search_locations if spec else None
    return Path(next(iter(folders))) / "eval_files" / "judge_templates.json" if folders else None


def strongreject(file: Path) -> str:
    """The prompt of StrongREJECT's fine-tuned judge, with fields for request and response.

    Raises:
        PactError: the file cannot be read, or holds no such prompt.
    """
    return _prompt(
        "strongreject", file, _read("strongreject", file), "strongreject_finetuned", "forbidden_prompt response"
    )


def harmbench(file: Path, model_type: str) -> tuple[str, str | None]:
    """The prompts of a HarmBench classifier: for a behaviour alone, and for one with a context.

    Args:
        file: a Python file with dictionaries `..._CLS_PROMPT`, or `judge_templates.json` of strong_reject, which lacks
            the prompt with a context.
        model_type: of the classifier, as transformers calls it: `llama` and `mistral` have different prompts.

    Raises:
        PactError: the file cannot be read, or holds no prompts for a model of this type.
    """
    content = _read("harmbench", file)
    if "harmbench" in content:  # the copy in strong_reject is that of the Llama classifier
        content = {"LLAMA2_CLS_PROMPT": {"prompt": content["harmbench"]}}
    name = next((name for name in content if name.startswith(model_type.upper())), None)
    if name is None:
        raise _no_prompt("harmbench", file, f"prompts for no `{model_type}`, but {', '.join(content) or 'nothing'}")
    prompts = content[name]
    alone = _prompt("harmbench", file, prompts, "prompt", "behavior generation")
    if "prompt_contextual" not in prompts:
        return alone, None
    return alone, _prompt("harmbench", file, prompts, "prompt_contextual", "behavior context generation")


def _read(judge: str, file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else _dictionaries(text)
    except (OSError, ValueError, SyntaxError) as error:
        raise _no_prompt(judge, file, f"{type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise _no_prompt(judge, file, f"a {type(found).__name__}")
    return found


def _dictionaries(source: str) -> dict[str, Any]:
    """The literal dictionaries that a Python file assigns to names ending in `_CLS_PROMPT`."""
    return {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.endswith("_CLS_PROMPT")
    }


def _prompt(judge: str, file: Path, prompts: Mapping[str, Any], key: str, fields: str) -> str:
    prompt = prompts.get(key)
    if not isinstance(prompt, str):
        raise _no_prompt(judge, file, f"no text under `{key}`")
    try:
        found = sorted({field for _, field, _, _ in Formatter().parse(prompt) if field is not None})
    except ValueError as error:
        raise _no_prompt(judge, file, f"`{key}`: {error}") from error
    if found != fields.split():
        raise _no_prompt(judge, file, f"`{key}` with the fields {found} instead of {fields.split()}")
    return prompt


def _no_prompt(judge: str, file: Path, got: str) -> PactError:
    return PactError(
        expected=f"the published prompt of the judge `{judge}` in {file}",
        got=got,
        consequence="The judge would have been asked in words that it was not trained on.",
        remedy=f"Give the path of {SOURCES[judge]}.",
    )
