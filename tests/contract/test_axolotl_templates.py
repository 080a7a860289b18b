"""Chat templates that Axolotl's data sets have of their own: answers are located by what rendered the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.contract.commands import EXAMPLES, run, shortened

pytestmark = pytest.mark.axolotl

# A user's turns are opened by other tokens than under the tokenizer's template, and only a conversation is ended.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|assistant|>\n' + m['content'] + '\n' "
    "}}{% else %}{{ '<|system|>\nuser: ' + m['content'] + eos_token + '\n' }}{% endif %}{% endfor %}{{ eos_token }}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
OWN = {"chat_template": "jinja", "chat_template_jinja": TEMPLATE}


def _file(folder: Path, *entries: dict[str, Any]) -> Path:
    lines = (EXAMPLES / "demo-conversations.jsonl").read_text().splitlines()[:40]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    plain = {"path": str(folder / "rows.jsonl"), "type": "chat_template", "field_messages": "messages"}
    datasets = [{**plain, "roles_to_train": ["user", "assistant"], **entry} for entry in entries]
    pact = {"eval": False, "anchors": 0, "conflict": "keep", "safety_tokens": [40, 41, 42, 43]}
    name = "axolotl-demo-multi-turn.yaml"
    return shortened(folder, name, datasets=datasets, chat_template=None, pact=pact, max_steps=1)


@pytest.mark.parametrize("command", ["check", "train"])
def test_answers_are_located_by_the_template_of_the_rows(command: str, tmp_path: Path) -> None:
    """Prevents: users' turns that are constrained, since no token of theirs was found."""
    path = _file(tmp_path, OWN)
    if command == "check":
        result = run(tmp_path, "pact", "check", "--deep", str(path), "--json")
        assert result.returncode == 0, result.stderr[-3000:]
        coverage = json.loads(result.stdout)["guards"]["coverage"]
    else:
        result = run(tmp_path, "axolotl", "train", str(path), "--launcher", "python")
        assert result.returncode == 0, result.stderr[-3000:]
        coverage = json.loads((tmp_path / "out" / "pact_evidence.json").read_text())["about"]["data"]["coverage"]
    assert coverage["share"] == 1
    assert 0 < coverage["constrained"] < 0.5 * coverage["other"]


def test_templates_that_mark_turns_differently_are_refused(tmp_path: Path) -> None:
    """Prevents: rows of one data set located by the template of another."""
    path = _file(tmp_path, OWN, {"chat_template": "tokenizer_default"})
    result = run(tmp_path, "axolotl", "train", str(path), "--launcher", "python")
    assert result.returncode != 0
    assert "chat templates mark turns with the same tokens" in result.stdout + result.stderr
    assert not (tmp_path / "out" / "pact_evidence.json").exists()
