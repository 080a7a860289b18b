"""Published tokenizers: every token of an assistant that is trained on is constrained, and no other.

The truth is computed from the rendered text: the characters of each message, mapped to tokens by their offsets.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_plugins.chat.answers import AnswerTokens, Document
from pact_plugins.chat.format import ChatFormat
from pact_plugins.config import PactConfig
from pact_plugins.run.examination import find_answers
from pact_plugins.run.trainer import Start
from tests import tiny
from tests.contract.hosts import common
from tests.conversations import MASKS, ONE, SHAPES, THOUGHT, TWO, Row, assistant, found, left_alone, row, user
from tests.families_page import PAGE, line, told_here
from tests.published import FAMILIES, tokenizer
from tests.templates import by_host

if find_spec("trl"):
    from trl import SFTConfig, SFTTrainer

Bools = npt.NDArray[np.bool_]
PRESENT = [name for name, family in FAMILIES.items() if family.template_text is not None]
HERE = [name for name in PRESENT if told_here(name)]
"""Those of this environment's own templates."""


def template(name: str) -> str:
    return FAMILIES[name].template


def check(name: str, r: Row, mask: str, joining: bool = True) -> None:
    supervised, constrained = found(name, r, MASKS[mask](r), joining)
    assert not (constrained & ~supervised).any()
    others = left_alone(r)
    own = tokenizer(name, joining)
    assert not (constrained & others).any(), own.decode(r.ids[constrained & others])
    missed = supervised & r.of("assistant") & ~constrained
    assert not missed.any(), own.decode(r.ids[missed])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", by_host(PRESENT, template))
def test_an_assistants_tokens_and_no_others(name: str, shape: str) -> None:
    """Prevents: user words, tool results and turn ends that are constrained, and answers that are not, in silence."""
    if (r := row(name, SHAPES[shape])) is None:
        pytest.skip("the template has no such conversations")
    for mask in MASKS:
        check(name, r, mask)
    one_token_a_byte = row(name, SHAPES[shape], joining=False)
    assert one_token_a_byte is not None
    for mask in MASKS:
        check(name, one_token_a_byte, mask, joining=False)


@pytest.mark.parametrize("name", by_host(HERE, template))
def test_the_page_is_up_to_date(name: str) -> None:
    """Prevents: a page that promises what is not, or not any more."""
    assert line(name) in PAGE.read_text(encoding="utf-8"), "run `python -m tests.families_page`"


@pytest.mark.parametrize("changed", ["m['content'] | trim", "m['content'] | upper", "m['content'] | replace(' ', '')"])
def test_a_template_that_changes_words(changed: str) -> None:
    """Prevents: answers that are looked for as the user wrote them, and not as the model is trained on them."""
    own = copy.deepcopy(tokenizer("SmolLM 2"))
    own.chat_template = own.chat_template.replace("m['content']", changed)
    text = own.apply_chat_template(
        [user(" Q one "), assistant(" A one "), user("Q two"), assistant("A two")], tokenize=False
    )
    ids = np.asarray(own(text, add_special_tokens=False)["input_ids"], np.int64)
    supervised = np.arange(len(ids)) > 0
    tokens = AnswerTokens.of([Document(ids, supervised)], ChatFormat.from_tokenizer(own))
    said = own.decode(tokens.label).replace("<|im_end|>", "|").upper().replace(" ", "")
    assert said == "AONE|ATWO|"


@pytest.mark.trl
@pytest.mark.parametrize("own", [True, False], ids=["assistant_only_loss", "every token"])
@pytest.mark.parametrize("name", [name for name in PRESENT if template(name).startswith("trl/")])
def test_rows_of_trl_are_covered(name: str, own: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Prevents: advice on a template that TRL does not render with, and thoughts or answers that are left out."""
    messages = [*ONE[:1], {**ONE[1], **THOUGHT}, *TWO[2:3], {**TWO[3], **THOUGHT}]
    tokens = tokenizer(name)
    settings = {**common(tmp_path), "assistant_only_loss": own, "max_length": 2048}
    try:
        trainer = SFTTrainer(
            model=tiny.llama(vocab_size=len(tokens)),
            args=SFTConfig(**settings),
            train_dataset=Dataset.from_list([{"messages": messages}]),
            processing_class=copy.deepcopy(tokens),
        )
    except ValueError as error:
        pytest.skip(f"TRL does not train on this template: {error}")
    start = Start.of(trainer, PactConfig(eval=False))
    documents, template = start.documents, start.template
    found = find_answers(documents, start.tokenizer, start.config, template)
    assert (found.coverage.share, found.coverage.missed) == (1.0, ())
    (document,) = documents
    constrained = AnswerTokens.of([document], found.chat)
    text = tokens.decode(constrained.label)
    told = tokens.decode(document.input_ids)
    assert [word in text for word in ("Aone.", "Atwo.", "Qone?", "Qtwo?")] == [True, True, False, False]
    assert text.count("Tthought.") == told.count("Tthought.")
    if own:
        assert "writes an answer differently" not in caplog.text


BLANKS = st.text(" \n", max_size=5)
WORDS = st.text("abc.?\n é你", min_size=1, max_size=12).map(lambda text: f"{text}!")
TURNS = st.lists(st.tuples(BLANKS, WORDS, BLANKS, WORDS), min_size=1, max_size=4)


@settings(max_examples=max(1_000, settings.default.max_examples))
@given(
    name=st.sampled_from(HERE),
    turns=TURNS,
    system=st.none() | WORDS,
    mask=st.sampled_from(sorted(MASKS)),
    joining=st.booleans(),
)
def test_any_conversation(
    name: str, turns: list[tuple[str, str, str, str]], system: str | None, mask: str, joining: bool
) -> None:
    """Prevents: what holds for the words above, and not for others."""
    # Each message is found again by its number.
    pairs = [(f"{b}Q{i}{q}", f"{c}A{i}{a}") for i, (b, q, c, a) in enumerate(turns)]
    messages = [m for q, a in pairs for m in (user(q), assistant(a))]
    if system is not None:
        messages.insert(0, {"role": "system", "content": f"S{system}"})
    if (r := row(name, messages, joining)) is not None:
        check(name, r, mask, joining)
