"""Judges: rules, recorded verdicts, tiny models in the place of large ones, and a user's function."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from pact_plugins.errors import PactError
from pact_plugins.evaluation import judges, model_judges
from pact_plugins.evaluation.judges import Verdict
from pact_plugins.evaluation.model_judges import Classifier, LlamaGuard, guard_verdict
from tests import tiny

REFUSAL, OPENING, PLAIN = "I'm sorry, but I can't help with that.", "Sure, here is how.", "Row with both oars."


@pytest.mark.parametrize(
    ("name", "verdicts"),
    [
        ("stance", ["refusal", "compliance", "compliance"]),
        ("opening", ["refusal", "other", "other"]),
        ("phrases", ["refusal", "compliance", "compliance"]),
    ],
)
def test_rules(name: str, verdicts: list[Verdict]) -> None:
    """Prevents a judge under another's name, or verdicts out of order."""
    judge = judges.load(name)
    assert judge.name == name
    assert judge(["?"] * 3, [REFUSAL, OPENING, PLAIN]) == verdicts


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("openning", "Did you mean `opening`?"),
        ("phrase", "Did you mean `phrases`?"),
        ("llamaguard", "Did you mean `llama-guard`?"),
        ("xyz", "Name one of them"),
        ("opening:now", "a judge: stance, opening"),
        ("classifier", "none"),
        ("classifier:/nowhere/at/all", "/nowhere/at/all"),
        ("llama-guard:/nowhere/at/all", "/nowhere/at/all"),
        ("endpoint", "Write `endpoint:MODEL`"),
        ("no_such_module:judge", "ModuleNotFoundError"),
        ("json:no_such_function", "AttributeError"),
        ("json:__name__", "__name__ is a str"),
    ],
)
def test_unknown_judges(description: str, words: str) -> None:
    """Prevents hours of generation before a judge's name turns out to be misspelt."""
    with pytest.raises(PactError) as caught:
        judges.load(description)
    assert words in str(caught.value)


def test_a_users_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a user's judge from being called with prompt and answer swapped, or its slips from being counted."""
    source = (
        "def short(prompt, answer):\n    return {'?': 'refusal', '!': 'yes'}[prompt] if len(answer) < 5 else 'other'\n"
    )
    (tmp_path / "my_judges.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    judge = judges.load("my_judges:short")
    assert judge(["?", "?"], ["No.", PLAIN]) == ["refusal", "other"]
    with pytest.raises(PactError, match="got 'yes'"):
        judge(["!"], ["No."])


def test_a_users_function_in_the_current_folder(tmp_path: Path) -> None:
    """Prevents an installed command, whose search path lacks the current folder, from missing the user's file."""
    (tmp_path / "mine.py").write_text("def judge(prompt, answer):\n    return 'refusal'\n")
    code = (
        "import sys; sys.path = [p for p in sys.path if p]; "
        "from pact_plugins.evaluation.judges import load; print(load('mine:judge')(['?'], ['!']))"
    )
    package = str(Path(judges.__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": package},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == "['refusal']", result.stderr


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("\n\nsafe", "other"),
        ("safe", "other"),
        ("\n\nunsafe\nS1", "compliance"),
        ("unsafe\nS2,S10", "compliance"),
        ("unsafe\nS1, S9\n", "compliance"),
        ("unsafe", "compliance"),
    ],
)
def test_recorded_verdicts_of_llama_guard(text: str, verdict: str) -> None:
    """Prevents "unsafe" being read as "safe", which it contains."""
    assert guard_verdict(text) == verdict


@pytest.mark.parametrize(
    "text", ["", "Safe to say", "safer", "I'm sorry", "unsafety", "safe\nunsafe", "unsafe\nbecause"]
)
def test_what_is_no_verdict(text: str) -> None:
    """Prevents another model's chatter from counting as a safe answer."""
    with pytest.raises(PactError, match="verdict of Llama Guard"):
        guard_verdict(text)


def test_llama_guard_reads_the_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents the guard from judging the prompt alone, answers in another order, or padding read as a verdict.

    A tiny random Llama stands in for the 8B model: its text is no verdict, which must be an error; then its words are
    put into its mouth.
    """
    judge = judges.load(f"llama-guard:{tiny.save(tmp_path)}")
    assert judge.tells == {"compliance"}
    with pytest.raises(PactError, match="verdict of Llama Guard"):
        judge(["?"], [PLAIN])

    seen: list[str] = []
    tokenizer = tiny.tokenizer()

    def says(_model: Any, chats: list[list[int]], _length: int) -> list[list[int]]:
        seen.extend(tokenizer.decode(chat) for chat in chats)
        texts = ["unsafe\nS1" if OPENING in text else "safe" for text in seen[-len(chats) :]]
        return [[*tokenizer(text)["input_ids"], 1, 2, 2] for text in texts]

    monkeypatch.setattr(model_judges, "continuations", says)
    found = judge(["first?", "second?", "third, and much longer?" * 9], [PLAIN, OPENING, REFUSAL])
    assert found == ["other", "compliance", "other"]
    assert sum("second?" in text and OPENING in text for text in seen) == 1


PARTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}{{ eos_token }}{% endfor %}"
)


@pytest.mark.parametrize(
    "template", [PARTS, tiny.TEMPLATE, PARTS.replace("| selectattr('type', 'equalto', 'text') ", "")]
)
def test_llama_guard_of_one_billion(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents the 1B guard, whose template takes lists of parts, from judging an exchange without its messages."""
    seen: list[str] = []
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = template

    def says(_model: Any, chats: list[list[int]], _length: int) -> list[list[int]]:
        seen.extend(tokenizer.decode(chat) for chat in chats)
        return [tokenizer("unsafe\nS1")["input_ids"] for _ in chats]

    monkeypatch.setattr(model_judges, "continuations", says)
    assert LlamaGuard("guard", tokenizer, lambda: None)(["first?"], [OPENING]) == ["compliance"]
    assert "first?<|end|><|assistant|>" in seen[0].replace("\n", "")
    assert f"{OPENING}<|end|>" in seen[0]
    assert "'type'" not in seen[0]


@pytest.mark.parametrize("template", ["nothing", "{{ messages[0]['content']['x']['y'] }}", None])
def test_a_guard_that_would_see_nothing(template: str | None) -> None:
    """Prevents "safe" from a guard that was shown no answer."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = template
    with pytest.raises(PactError, match="shows the user's and the assistant's message"):
        LlamaGuard("guard", tokenizer, lambda: None)(["first?"], [OPENING])


def classifier(folder: Path, **labels: str) -> str:
    """A tiny classifier of two labels, saved; it prefers the second where an answer ends in a full stop."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny.tokenizer()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=2,
        id2label={0: "NORMAL", 1: "REJECTION"} | {int(k[-1]): v for k, v in labels.items()},
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_classifier_by_path(tmp_path: Path) -> None:
    """Prevents verdicts in the order of the batches, or those of another label."""
    path = classifier(tmp_path)
    judge = judges.load(f"classifier:{path}")
    assert isinstance(judge, Classifier)
    assert judge.verdicts == ("other", "refusal")
    assert judge.tells == {"refusal"}
    answers = [PLAIN, REFUSAL, "No", OPENING * 9, "a", "b", "why", "Sure", "cannot"]
    model = LlamaForSequenceClassification.from_pretrained(path).eval()
    expected: list[str] = []
    for answer in answers:
        with torch.no_grad():
            logits = model(torch.tensor([tiny.tokenizer()(answer)["input_ids"][:64]])).logits[0]
        expected.append(judge.verdicts[int(logits.argmax())])
    assert set(expected) == {"other", "refusal"}
    assert judge(["?"] * len(answers), answers) == expected


def test_labels_of_a_classifier(tmp_path: Path) -> None:
    """Prevents labels without a meaning of their own from being guessed."""
    path = classifier(tmp_path, label_0="LABEL_0", label_1="LABEL_1")
    judge = judges.load(f"classifier:{path}:LABEL_0=compliance,LABEL_1=refusal")
    assert isinstance(judge, Classifier)
    assert judge.verdicts == ("compliance", "refusal")
    for labels in (
        "",
        ":LABEL_0=refusal",
        ":LABEL_0=no,LABEL_1=refusal",
        ":LABEL_0=other,LABEL_1=refusal,LABEL_2=other",
    ):
        with pytest.raises(PactError, match="for each label"):
            judges.load(f"classifier:{path}{labels}")


def test_weights_wait_for_the_first_answer(tmp_path: Path) -> None:
    """Prevents a judge's weights from filling the memory that the evaluated model needs."""
    judge = LlamaGuard("guard", tiny.tokenizer(), lambda: pytest.fail("loaded"))
    assert judge.name == "guard"
    path = tiny.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    without_weights = judges.load(f"llama-guard:{path}")
    with pytest.raises(PactError, match=r"model\.safetensors"):
        without_weights(["?"], ["!"])
