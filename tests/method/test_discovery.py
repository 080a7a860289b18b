"""Finding the safety tokens on tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from pact_plugins.chat.format import render
from pact_plugins.errors import PactError
from pact_plugins.method import discovery, prompting
from pact_plugins.method.asking import Asked
from pact_plugins.method.contrast import Contrast
from pact_plugins.method.discovery import discover, discover_against_base, teacher_forced, to_safety_tokens
from pact_plugins.method.safety_tokens import SafetyTokens
from tests import tiny

VOCABULARY = 262


@pytest.fixture
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven short prompts, which fill one batch and part of another, and two refusals."""
    lines = {
        "harmful": [f"bad {i} {'x' * i}" for i in range(11)],
        "harmless": [f"good {i} {'y' * (11 - i)}" for i in range(11)],
        "refusals": ["No.", "I cannot."],
    }
    monkeypatch.setattr(prompting, "shipped", lambda name, _language="en": lines[name])


def assert_valid(tokens: SafetyTokens, top_k: int) -> None:
    tokens.check(tiny.tokenizer(), VOCABULARY)
    assert 1 <= len(tokens.positive) < len(tokens.ids) <= top_k
    assert list(tokens.weights) == sorted(tokens.weights, reverse=True)
    assert tokens.texts == tuple(tiny.tokenizer().decode([i]) for i in tokens.ids)


def test_discover_on_the_shipped_prompts() -> None:
    """Prevents: prompts that are missing from the package, or unequal in number, failing only at the user's."""
    tokens = discover(tiny.llama(num_hidden_layers=1), tiny.tokenizer(), top_k=20)
    assert_valid(tokens, 20)
    assert tokens.provenance["prompts"] == len(prompting.shipped("harmful")) == len(prompting.shipped("harmless")) > 0
    assert len(set(prompting.shipped("harmful")) & set(prompting.shipped("harmless"))) == 0


@pytest.mark.usefixtures("few_prompts")
@pytest.mark.parametrize("top_k", [2, 7, 50, 4096])
def test_discover_against_base(top_k: int) -> None:
    """Prevents: a contrast whose tokens do not fit the model, or are more than were asked for."""
    tokens = discover_against_base(tiny.llama(), tiny.llama(seed=1), tiny.tokenizer(), top_k=top_k)
    assert_valid(tokens, top_k)
    assert tokens.provenance["method"] == "aligned against base model"


@pytest.mark.usefixtures("few_prompts")
def test_a_preferred_token_is_found() -> None:
    """Prevents: a sign slip, after which PACT holds what the model avoids when it refuses."""
    aligned, base = tiny.llama(), tiny.llama()
    preferred, avoided = tiny.tokenizer()("N", add_special_tokens=False)["input_ids"][0], 100
    for model, token in ((aligned, preferred), (base, avoided)):
        model.lm_head = nn.Linear(32, VOCABULARY)
        with torch.no_grad():
            model.lm_head.weight.mul_(0.1)
            model.lm_head.bias.zero_()
            model.lm_head.bias[token] = 6.0
    tokens = discover_against_base(aligned, base, tiny.tokenizer())
    assert tokens.ids[0] == preferred
    assert tokens.stability is not None
    assert tokens.stability.held[0] == 1.0
    assert tokens.stability.low[0] <= tokens.weights[0] <= tokens.stability.high[0]
    assert tokens.stability.examples[0] == "[N]o."
    assert avoided not in [tokens.ids[i] for i in tokens.positive]


@pytest.mark.usefixtures("few_prompts")
def test_the_same_model_as_base_is_refused() -> None:
    """Prevents: tokens that only tell the two prompt formats apart, when `base_model` names the aligned model."""
    with pytest.raises(PactError):
        discover_against_base(tiny.llama(), tiny.llama(), tiny.tokenizer())


def test_identical_distributions_are_refused() -> None:
    """Prevents: a set of tokens drawn from rounding errors."""
    samples = [(torch.ones(3, VOCABULARY), torch.ones(3, VOCABULARY))]
    with pytest.raises(PactError, match="agree on every token"):
        to_safety_tokens(Contrast.of(samples), tiny.tokenizer(), {}, [])


def test_logits_that_are_not_finite_are_refused() -> None:
    """Prevents: NaN weights in the file that every later run reads."""
    bad = torch.randn(3, VOCABULARY)
    bad[1, 4] = float("nan")
    with pytest.raises(PactError, match="not finite"):
        to_safety_tokens(Contrast.of([(bad, torch.randn(3, VOCABULARY))]), tiny.tokenizer(), {}, [])


@pytest.mark.usefixtures("few_prompts")
def test_another_vocabulary_is_refused() -> None:
    """Prevents: comparing the probabilities of unrelated tokens."""
    with pytest.raises(PactError, match="unrelated tokens") as caught:
        discover_against_base(tiny.llama(), tiny.llama(vocab_size=300), tiny.tokenizer())
    assert "300" in caught.value.got


@pytest.mark.usefixtures("few_prompts")
@pytest.mark.parametrize("find", [discover, lambda m, t, **k: discover_against_base(m, tiny.llama(seed=1), t, **k)])
def test_a_chat_template_is_needed(find: Callable[..., SafetyTokens]) -> None:
    """Prevents: refusals that follow bare prompts, as no chat of this model ever does."""
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    with pytest.raises(PactError, match="prompts that find the safety tokens"):
        find(tiny.llama(), bare)


def test_teacher_forced_equals_single_rows() -> None:
    """Prevents: logits at the padding, or off by one, once prompts of different lengths share a batch."""
    model = tiny.llama().train()
    prompts = [[0, *range(10, 10 + n)] for n in (3, 9, 1, 5, 5, 2, 8, 4, 7, 6)]
    answers = [[20, 21, 22], [30]]
    for i, logits in enumerate(teacher_forced(model, prompts, answers)):
        answer = answers[i % 2]
        with torch.no_grad():
            alone = model.eval()(input_ids=torch.tensor([prompts[i] + answer])).logits[0]
        expected = alone[len(prompts[i]) - 1 : -1]
        assert logits.shape == (len(answer), VOCABULARY)
        assert torch.allclose(logits, expected, atol=1e-4)
        model.train()


def test_discovery_sees_the_chat_template(monkeypatch: pytest.MonkeyPatch, few_prompts: None) -> None:
    """Prevents: the aligned model judged on prompts without its template, or the base model on prompts with it."""
    seen: list[list[list[int]]] = []

    def spy(_model: nn.Module, prompts: Any, answers: Any) -> Iterator[Tensor]:
        seen.append([list(p) for p in prompts])
        generator = torch.Generator().manual_seed(len(seen))
        return (torch.randn(2, VOCABULARY, generator=generator) for _ in prompts)

    monkeypatch.setattr(discovery, "teacher_forced", spy)
    discover_against_base(tiny.llama(), tiny.llama(seed=1), tiny.tokenizer())
    chats, plain = seen
    first = prompting.shipped("harmful")[0]
    assert chats[0] == render(tiny.tokenizer(), [{"role": "user", "content": first}], generation_prompt=True)
    assert tiny.tokenizer().decode(plain[0]) == f"User: {first}\n\nAssistant: "


def in_own_answers(answers: list[str], tokenizer: Any, likely: list[int], harmful_ones: list[float]) -> SafetyTokens:
    """What is found in answers to harmful and harmless prompts in turn, which give these tokens these probabilities."""
    documents = [prompting.answered([0], tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers]
    harmless = [p / 2 for p in reversed(harmful_ones)]
    probabilities = torch.tensor([harmful_ones, harmless] * (len(answers) // 2))
    ids = torch.tensor([likely] * len(answers)).int()
    asked = Asked(documents, ids, probabilities, torch.zeros(0, 1), torch.zeros(0))
    return discovery.in_answers(asked, ["How do I make a bomb?"] * (len(answers) // 2), tokenizer, "a model")


def test_no_marker_is_held() -> None:
    """Prevents: holding a marker that is not flagged as special, such as DeepSeek's roles: every answer has them."""
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny.tokenizer().backend_tokenizer.to_str())
    )
    tokenizer.add_tokens([AddedToken("<turn>", special=False)])
    marker = tokenizer.convert_tokens_to_ids("<turn>")
    assert marker not in tokenizer.all_special_ids
    found = in_own_answers(["No.", "Yes."], tokenizer, [marker, 40, 41, 42], [0.5, 0.2, 0.1, 0.05])
    assert set(found.ids) <= {40, 41, 42}


def test_refusals_that_no_opening_tells_are_counted() -> None:
    """Prevents: the warning "hardly refuses" of a model that moralises; and refusals in German as compliance."""
    answers = [
        "It is not appropriate to build weapons.",
        "Take a pipe.",
        "Dabei kann ich dir nicht helfen.",
        "I can't help.",
    ]
    harmless = "Take a spoon."
    in_turn = [text for answer in answers for text in (answer, harmless)]
    found = in_own_answers(in_turn, tiny.tokenizer(), [40, 41, 42], [0.5, 0.2, 0.1])
    assert found.stability is not None
    assert found.stability.refusals == pytest.approx(2 / 3)
    none = in_own_answers(
        ["Dabei kann ich dir nicht helfen.", harmless], tiny.tokenizer(), [40, 41, 42], [0.5, 0.2, 0.1]
    )
    assert none.stability is not None
    assert none.stability.refusals is None


def test_modes_are_restored() -> None:
    """Prevents: dropout staying off for the rest of training because the tokens were looked for first."""
    model = tiny.llama().train()
    list(teacher_forced(model, [[0, 5]], [[6]]))
    assert all(m.training for m in model.modules())
