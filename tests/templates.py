"""Chat templates as the hosts ship them, each on a tokenizer that knows its special tokens."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

_SPECIAL = re.compile(
    r"<\|[^<>{}\s'\"|]+\|>|<\uff5c[^<>{}'\"]+?\uff5c>|</?(?:think|tool_call|tool_response|(?:start|end)_of_turn|end_of_utterance)>"
    r"|\[/?[A-Z_]{3,}\]|\[\|[a-z]+\|\]|<[a-z_]+\|>|<\|[a-z_]+>"
)
"""What special tokens look like."""

_FOLDERS = {"trl": "chat_templates", "axolotl": "utils/chat_templates/templates"}


def shipped_templates() -> dict[str, str]:
    """The templates of the hosts that are installed, by host and name."""
    found = {}
    for host, folder in _FOLDERS.items():
        spec = find_spec(host)
        if spec is not None and spec.origin is not None:
            files = sorted((Path(spec.origin).parent / folder).glob("*.jinja"))
            assert files, f"no templates of {host}"
            found |= {f"{host}/{path.stem}": path.read_text(encoding="utf-8") for path in files}
    return found


def by_host(names: Iterable[str], template: Callable[[str], str] = str) -> list[Any]:
    """Names as parameters of a test: Axolotl's templates are tested where Axolotl is installed."""
    marks = {"axolotl": pytest.mark.axolotl}
    return [pytest.param(name, marks=marks.get(template(name).partition("/")[0], ())) for name in names]


def tokenizer_with(template: str | None, *messages: dict[str, Any]) -> Any:
    """The tiny tokenizer with this template, and with the special tokens that are in it or in rendered `messages`."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = template
    if template is None:
        return tokenizer
    texts = [template]
    for count in range(1, len(messages) + 1):
        texts.append(rendered(tokenizer, list(messages[:count])) or "")
    tokens = {token for text in texts for token in _SPECIAL.findall(text)} - set(tokenizer.all_special_tokens)
    tokenizer.add_special_tokens({"additional_special_tokens": [*tiny.SPECIAL[3:], *sorted(tokens)]})
    return tokenizer


def rendered(tokenizer: Any, messages: list[dict[str, Any]]) -> str | None:
    """The conversation as text; None if the template has no such conversations."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # templates raise what they like
        return None


MISTRAL = (
    "{{ bos_token }}{% for m in messages if m['role'] != 'system' %}"
    "{% if m['role'] == 'user' %}[INST] {% if loop.last and messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] }}\n\n{% endif %}{{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""As Mistral 7B Instruct v0.3 writes conversations without tools: no generation prompt, and a system prompt only before
a user's turn that is the last."""
