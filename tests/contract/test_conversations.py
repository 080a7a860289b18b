"""What the hosts' own data pipelines make of conversations: held are the supervised tokens of the assistant's turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from pact_plugins.chat.answers import AnswerTokens, split_documents
from pact_plugins.chat.format import ChatFormat
from tests import tiny
from tests.contract.hosts import trl_trainer

CHATS = [
    [("system", "Be kind."), ("user", "one?"), ("assistant", "first."), ("user", "two?"), ("assistant", "second.")],
    [("user", "three?"), ("assistant", "third one.")],
    [("user", "four?"), ("assistant", "fourth."), ("tool", "result"), ("assistant", "fifth."), ("user", "well")],
]
ANSWERS = ["first.", "second.", "third one.", "fourth.", "fifth."]
END = "<|end|>"


def messages(**of_assistant: Any) -> list[list[dict[str, Any]]]:
    return [
        [{"role": role, "content": text, **(of_assistant if role == "assistant" else {})} for role, text in chat]
        for chat in CHATS
    ]


def held(batches: Any) -> list[str]:
    """The answers that are held in batches, as text; position 0 is checked to be at their first token."""
    tokenizer, chat = tiny.tokenizer(), ChatFormat.from_tokenizer(tiny.tokenizer())
    found = []
    for batch in batches:
        tokens = AnswerTokens.of(split_documents(batch), chat)
        for answer in range(int(tokens.answer.max(initial=-1)) + 1):
            own = tokens.answer == answer
            assert tokens.position[own][0] == 0
            found.append(tokenizer.decode(tokens.label[own]))
    return sorted(found)


def supervised(batches: Any) -> int:
    return sum(int(d.supervised.sum()) for batch in batches for d in split_documents(batch))


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("mask", ["assistant only", "everything"])
def test_trl_conversations(mask: str, packing: bool, tmp_path: Path) -> None:
    """Prevents another turn than the assistant's from being held, under TRL's masks and layouts."""
    only = mask == "assistant only"
    data = Dataset.from_dict({"messages": messages()})
    trainer = trl_trainer(tiny.llama(), tmp_path, data, assistant_only_loss=only, packing=packing)
    batches = list(trainer.get_train_dataloader())
    assert held(batches) == sorted(text + END for text in ANSWERS)
    if only:
        assert supervised(batches) == sum(len(text) + 1 for text in ANSWERS)


@pytest.mark.parametrize("completion_only", [True, False])
def test_trl_prompts_and_completions(completion_only: bool, tmp_path: Path) -> None:
    """Prevents earlier answers of a prompt from being held where only the completion is trained on."""
    split = [(chat[:3], chat[3:]) if len(chat) == 5 else (chat[:1], chat[1:]) for chat in messages()[:2]]
    data = Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in split])
    trainer = trl_trainer(tiny.llama(), tmp_path, data, assistant_only_loss=False, completion_only_loss=completion_only)
    earlier = [] if completion_only else ["first."]
    if completion_only:
        # The first completion begins with the user's turn, which TRL trains on too.
        assert supervised(trainer.get_train_dataloader()) > len("second.") + len("third one.") + 2
    assert held(trainer.get_train_dataloader()) == sorted(text + END for text in [*earlier, "second.", "third one."])


def axolotl_batches(folder: Path, chats: list[list[dict[str, Any]]], **settings: Any) -> list[Any]:
    """Batches of Axolotl's own strategy for chat templates and its collator."""
    from axolotl.prompt_strategies.chat_template import ChatTemplatePrompter, ChatTemplateStrategy
    from axolotl.utils.collators import DataCollatorForSeq2Seq

    tokenizer = tiny.tokenizer()
    prompter = ChatTemplatePrompter(
        tokenizer,
        chat_template=tiny.TEMPLATE,
        message_property_mappings={"role": "role", "content": "content"},
        message_field_training="train",
        message_field_training_detail="train_detail",
        field_messages="messages",
        roles={role: [role] for role in ("system", "user", "assistant", "tool")},
    )
    default = {
        "train_on_inputs": False,
        "sequence_len": 512,
        "train_on_eos": "turn",
        "roles_to_train": ["assistant"],
    }
    strategy = ChatTemplateStrategy(prompter, tokenizer, **{**default, **settings})
    rows = [strategy.tokenize_prompt({"messages": chat}) for chat in chats]
    rows = [{k: row[k] for k in ("input_ids", "attention_mask", "labels")} for row in rows]
    return [DataCollatorForSeq2Seq(tokenizer)(rows)]


TURNS = [text + END for text in ANSWERS]
AXOLOTL = {
    "answers": ({}, {}, TURNS),
    "inputs too": ({"train_on_inputs": True}, {}, TURNS),
    "both roles": ({"roles_to_train": ["user", "assistant"]}, {}, TURNS),
    "users alone": ({"roles_to_train": ["user"]}, {}, []),
    "all ends": ({"train_on_eos": "all"}, {}, TURNS),
    "no ends": ({"train_on_eos": "none"}, {}, ANSWERS),
    "trained": ({"roles_to_train": []}, {"train": True}, TURNS),
    "untrained": ({}, {"train": False}, []),
    "ends alone": ({"roles_to_train": [], "train_on_eos": "all"}, {}, [END] * len(ANSWERS)),
}


@pytest.mark.axolotl
@pytest.mark.parametrize("name", AXOLOTL)
def test_axolotl_conversations(name: str, tmp_path: Path) -> None:
    """Prevents another turn than the assistant's from being held, under Axolotl's settings of what is trained on."""
    settings, of_assistant, expected = AXOLOTL[name]
    batches = axolotl_batches(tmp_path, messages(**of_assistant), **settings)
    assert held(batches) == sorted(expected)
    total = sum(map(len, expected)) - (len(END) - 1) * sum(text.endswith(END) for text in expected)
    more = name in ("inputs too", "both roles", "users alone", "all ends", "ends alone")
    assert (supervised(batches) > total) is more


@pytest.mark.axolotl
def test_axolotl_trains_a_part_of_a_turn(tmp_path: Path) -> None:
    """Prevents what `train_detail` leaves out from being held, and two parts of a turn from being two answers."""
    chat = messages()[1]
    text = chat[1]["content"]
    detail = [(0, 1, True), (2, 4, False), (5, len(text) - 1, True)]
    chat[1]["train_detail"] = [
        {"begin_offset": begin, "end_offset": end, "train": train} for begin, end, train in detail
    ]
    (batch,) = axolotl_batches(tmp_path, [chat], roles_to_train=[])
    (document,) = split_documents(batch)
    tokens = AnswerTokens.of([document], ChatFormat.from_tokenizer(tiny.tokenizer()))
    assert (tokens.column + 1).tolist() == np.flatnonzero(document.supervised).tolist()
    assert tiny.tokenizer().decode(tokens.label).startswith(text[:2] + text[5:])
    assert set(tokens.answer.tolist()) == {0}
