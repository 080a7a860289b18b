"""The shipped prompts, asked of a model: what it answers, and what is seen on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.method import asking, discovery, prompting
from pact_plugins.method.asking import Asked, ask
from pact_plugins.method.finder import Finder
from pact_plugins.method.prompting import as_chats
from tests import tiny

END = 1
PROMPTS = ["a", "why so long a question, again and again?", "what?", "and this one"]


def chats() -> list[list[int]]:
    return as_chats(tiny.tokenizer(), PROMPTS, "test")


def asked(model: nn.Module) -> Asked:
    return ask(model, tiny.tokenizer(), chats())


def always(token: int) -> Any:
    """A model that writes one token whatever it is asked."""
    model = tiny.llama()
    model.lm_head = nn.Linear(32, len(tiny.tokenizer()))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[token] = 9.0
    return model


def test_a_batch_answers_like_single_prompts() -> None:
    """Prevents: padding on the wrong side, after which the model continues its padding."""
    model = tiny.llama().train()
    found = asked(model)
    assert model.training
    assert len(found.documents) == len(PROMPTS)
    for chat, document in zip(chats(), found.documents, strict=True):
        ids = list(chat)
        while len(ids) < len(chat) + prompting.MAX_ANSWER_TOKENS and ids[len(chat) :][-1:] != [END]:
            with torch.no_grad():
                ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
        assert document.input_ids.tolist() == ids
        assert document.supervised.tolist() == [False] * len(chat) + [True] * (len(ids) - len(chat))


@pytest.mark.parametrize("adapter", [False, True])
def test_what_is_seen_is_what_a_forward_pass_gives(adapter: bool) -> None:
    """Prevents: probabilities of another token or prompt, or of padding behind an answer."""
    model: Any = tiny.llama().eval()
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    # Some answers end early: those whose fourth token is the most frequent one.
    fourth = [answer[3] for answer in asked(model).answers()]
    model.generation_config.eos_token_id = max(fourth, key=fourth.count)
    found = asked(model)
    lengths = [len(answer) for answer in found.answers()]
    assert min(lengths) <= 4
    logits = list(discovery.answer_logits(model, found.documents))
    for row, of_answer in enumerate(logits):
        mean = of_answer.softmax(-1).mean(0)
        assert torch.allclose(mean[found.likely[row].long()], found.probabilities[row], atol=1e-6)
    seen = torch.cat(logits).log_softmax(-1)
    assert len(seen) == sum(lengths)
    assert torch.allclose(seen.topk(asking.CANDIDATES).values, found.log_probabilities, atol=1e-4)
    assert torch.allclose(seen.gather(1, found.candidates.long()), found.log_probabilities, atol=1e-4)


@pytest.mark.parametrize(("token", "stops"), [(END, None), (99, [END, 99])])
def test_an_answer_stops_after_its_end(token: int, stops: list[int] | None) -> None:
    """Prevents: the padding that follows a short answer in its batch from being taken for a part of it."""
    model = always(token)
    if stops is not None:
        model.generation_config.eos_token_id = stops
    assert asked(model).answers() == [[token]] * len(PROMPTS)


def test_a_model_that_answers_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: tokens and anchors made of nothing."""
    model = tiny.llama()
    monkeypatch.setattr(type(model), "generate", lambda self, input_ids, **_kw: input_ids)
    with pytest.raises(PactError, match="the model to answer the shipped prompts"):
        asked(model)


def test_stored_answers_come_back(tmp_path: Path) -> None:
    """Prevents: answers that begin elsewhere after a reload, or other values beside them."""
    found = asked(tiny.llama().bfloat16())
    found.save(tmp_path / "new" / "answers.safetensors")
    again = Asked.load(tmp_path / "new" / "answers.safetensors")
    assert [d.key for d in again.documents] == [d.key for d in found.documents]
    assert torch.equal(again.candidates, found.candidates)
    assert torch.equal(again.log_probabilities, found.log_probabilities)


def test_another_models_answers_are_refused(tmp_path: Path) -> None:
    """Prevents: a file under another model's name, whose answers the run would be held to."""
    asked(tiny.llama()).save(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    with pytest.raises(PactError, match="these are a"):
        Asked.load(tmp_path / "b.safetensors")


def test_a_model_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a run that asks what `pact tokens`, or another run with other settings, has asked already."""
    monkeypatch.setattr(prompting, "shipped", lambda name, _language="en": [f"{name} {i}" for i in range(3)])
    monkeypatch.setattr(prompting, "MAX_ANSWER_TOKENS", 6)
    questions: list[int] = []
    real = asking.ask
    monkeypatch.setattr(asking, "ask", lambda *a, **k: questions.append(len(a[2])) or real(*a, **k))

    def finder(identity: str = "m", **settings: Any) -> Finder:
        config = PactConfig.model_validate({"cache_dir": tmp_path, **settings})
        return Finder(config, tiny.llama(), tiny.tokenizer(), identity)

    tokens = finder().tokens()
    finder(top_k=20).tokens()
    asked = finder(anchors=1)
    rows = asked.anchors()
    assert questions == [6]
    assert finder().tokens() == tokens
    again = finder("trained").anchors(asked.answers_file.name)
    assert rows is not None
    assert again is not None
    assert [d.key for d in again.documents] == [d.key for d in rows.documents]
    finder("another").tokens()
    with torch.autocast("cpu", torch.bfloat16):
        finder().tokens()
    assert questions == [6, 6, 6]
