"""Training data that cannot be told apart, read by the model, or found again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from pact_plugins.chat.answers import AnswerTokens, Document, split_documents
from pact_plugins.chat.dataset import read_documents
from pact_plugins.chat.format import ChatFormat
from pact_plugins.chat.rendered import rendered_with
from pact_plugins.model.subset_head import SubsetHead
from tests import tiny
from tests.bad_inputs.case import BadInput, Begun, config, given, trainer_on
from tests.caches import IDS, look_up, made
from tests.rows import alone, conversation, documents, few

_IGNORE = -100


def _batch(**columns: Any) -> Callable[[Path], Any]:
    return given(split_documents, columns)


def _rows(*rows: dict[str, Any]) -> Callable[[Path], Any]:
    return lambda _folder: list(read_documents(Dataset.from_list(list(rows))))


def _document(*ids: int, answer: int = 2) -> Document:
    """A document whose last `answer` tokens are supervised."""
    return Document(np.asarray(ids), np.arange(len(ids)) >= len(ids) - answer)


def _prepared(
    *rows: Document, model: Callable[[], Any] = tiny.llama, tokenizer: Any = "tiny", **settings: Any
) -> Begun:
    """A run on these documents."""
    data = [{"input_ids": d.input_ids, "labels": np.where(d.supervised, d.input_ids, _IGNORE)} for d in rows]

    def make(folder: Path) -> Any:
        trainer = trainer_on(folder, Dataset.from_list(data), tokenizer, model=model)
        return trainer, config(folder, **settings)

    return Begun(make)


def _gpt2() -> Any:
    sizes = {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny.tokenizer()), **sizes))


def _template(text: str) -> Any:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = text
    return tokenizer


def _spelt(text: str) -> Document:
    """The text as a document of which all is trained on."""
    ids = tiny.tokenizer()(text)["input_ids"]
    return _document(*ids, answer=len(ids) - 1)


def _changed_while_training(folder: Path) -> None:
    """A row that the trainer cut shorter than it was before the first step."""
    ids, labels = few()[0]
    cache = made(folder / "cache", SubsetHead(tiny.llama(), IDS), few())
    look_up(cache, alone((ids[:-2], labels[:-2])))


_NO_BATCH = r"a training batch with .*; got .*data collator"
_WITHOUT_TEXT = "{% for m in messages %}{{ m['role'] }}: {{ m['text'] }}{% endfor %}"
_WITHOUT_END = (
    "{% for m in messages %}{{ 'A:' if m['role'] == 'assistant' else 'U:' }}{{ m['content'] }}{% endfor %}"
    "{{ 'A:' if add_generation_prompt }}"
)
_NO_GENERATION_PROMPT = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"

_OTHER_TURNS = tiny.TEMPLATE.replace("<|{{ m['role'] }}|>", "<|assistant|>{{ m['role'] }}")

INPUTS = [
    BadInput("A batch without labels", _batch(input_ids=[[1, 2]]), r"`labels`; got the keys \['input_ids'\]"),
    BadInput(
        "A batch with images",
        _batch(**alone(few()[0]), pixel_values=torch.zeros(1, 3, 8, 8)),
        r"a training batch of text; got `pixel_values`",
    ),
    BadInput("Rows of different lengths", _batch(input_ids=[[1, 2], [3]], labels=[[1, 2], [3]]), _NO_BATCH),
    BadInput("Texts in place of token ids", _batch(input_ids=[["a"]], labels=[["a"]]), _NO_BATCH),
    BadInput(
        "Fewer labels than tokens", _batch(input_ids=[[1, 2, 3]], labels=[[1, 2]]), r"`labels`.*\(1, 3\).*\(1, 2\)"
    ),
    BadInput(
        "Labels that are moved by one already",
        _batch(input_ids=[[1, 2, 3]], labels=[[2, 3, -100]]),
        r"tokens at their own places.*; got the label 2 at token 0 of row 0, which is 1",
    ),
    BadInput(
        "A row with a label of another token",
        _rows({"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [1, 2], "labels": [-100, 3]}),
        r"got the label 3 at token 1 of row 1, which is 2",
    ),
    BadInput(
        "A mask for each pair of tokens",
        _batch(input_ids=[[1, 2]], labels=[[1, 2]], attention_mask=np.ones((1, 1, 2, 2), int)),
        r"`attention_mask`.*\(1, 2\); got the shape \(1, 1, 2, 2\)",
    ),
    BadInput(
        "A mask of fractions",
        _batch(**{**alone(few()[0]), "attention_mask": torch.rand(1, len(few()[0][0]))}),
        r"integers under `attention_mask`; got numbers of torch.float32",
    ),
    BadInput(
        "Positions in three dimensions",
        _batch(**dict.fromkeys(("input_ids", "labels"), torch.ones(1, 2)), position_ids=torch.ones(3, 1, 2)),
        r"`position_ids`.*; got the shape \(3, 1, 2\)",
    ),
    BadInput(
        "A row with fewer labels than tokens",
        _rows({"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [1, 2, 3], "labels": [1, 2]}),
        r"`labels` as under `input_ids`.*; got 2 and 3 in row 1",
    ),
    BadInput(
        "A label that is missing",
        _rows({"input_ids": [1, 2], "labels": [None, 2]}),
        r"`labels`.*; got .*missing values",
    ),
    BadInput(
        "Rows of text", _rows({"input_ids": ["a"], "labels": ["a"]}), r"integers under `input_ids`.*; got .*string"
    ),
    BadInput(
        "Rows that are not split into tokens",
        _rows({"input_ids": "a", "labels": "a"}),
        r"integers under `input_ids`.*; got string",
    ),
    BadInput("An empty training set", _prepared(), r"at least one answer token.*; got none in 0"),
    BadInput(
        "A training set without an answer",
        _prepared(*documents([(ids, [_IGNORE] * len(ids)) for ids, _ in few()])),
        r"at least one answer token.*; got none in 0",
    ),
    BadInput(
        "Answers that packing has split, among prompts that are trained on",
        _prepared(
            *documents([conversation(("Why?", "Because."), on_inputs=True)]), _document(*range(6, 46), answer=39)
        ),
        r"at least 95% of the supervised.*; got 18\.8% .* begins inside a turn \(first in row 1.*`pact.min_coverage`",
    ),
    BadInput(
        "A token beyond the model's vocabulary",
        _prepared(*documents(few()), _document(0, 7, 8, 9999)),
        r"token ids from 0 to 261.*; got 9999 in the training set",
    ),
    BadInput("A negative token", _prepared(_document(0, 7, -1, 8, 9)), r"token ids from 0 to 261.*; got -1 in"),
    BadInput(
        "A tokenizer that is larger than the model's embeddings",
        _prepared(*documents(few()), model=lambda: tiny.llama(vocab_size=100)),
        r"token ids from 0 to 99.*resize_token_embeddings",
    ),
    BadInput(
        "A tokenizer of which only the training set fits the model",
        _prepared(_document(0, 4, 7, 8, 9), model=lambda: tiny.llama(vocab_size=100), probe={"every": 1, "prompts": 2}),
        r"token ids from 0 to 99.*in a prompt of the probe",
    ),
    BadInput(
        "A sequence longer than the model's positions",
        _prepared(_document(*range(6, 106)), model=_gpt2),
        r"at most 64 tokens.*; got one of 100 tokens.*`max_length`",
    ),
    BadInput(
        "Prompts that are trained on, without a chat template",
        lambda _folder: AnswerTokens.of([_document(0, 7, 8, answer=2)], ChatFormat()),
        r"a chat template, whose tokens.*; got a tokenizer without one",
    ),
    BadInput(
        "A gate without a generation prompt",
        _prepared(*documents(few()), tokenizer=_template(_NO_GENERATION_PROMPT), gate=True),
        r"a chat template, whose tokens.*puts nothing before an answer.*`pact\.gate`",
    ),
    BadInput(
        "Data sets whose chat templates mark turns differently",
        given(rendered_with, tiny.tokenizer(), [("a.jsonl", tiny.TEMPLATE), ("b.jsonl", _OTHER_TURNS)]),
        r"got other tokens around the turns of `b\.jsonl` than around those of `a\.jsonl`",
    ),
    BadInput(
        "A chat template with a mistake",
        _prepared(*documents(few()), tokenizer=_template("{{ messages[0].content + 1 }}")),
        r"a chat template that renders.*; got \w+Error",
    ),
    BadInput(
        "A chat template that wants a system turn",
        _prepared(*documents(few()), tokenizer=_template("{{ raise_exception('no system turn') }}")),
        r"a chat template that renders.*no system turn",
    ),
    BadInput(
        "A chat template that leaves texts out",
        _prepared(*documents(few()), tokenizer=_template(_WITHOUT_TEXT)),
        r"renders the text of each message; got one that leaves out PACTUSER, .*`content` is a text or a list",
    ),
    BadInput(
        "Prompts that are trained on, and answers that do not end",
        _prepared(_spelt("U:aA:bU:cA:d"), tokenizer=_template(_WITHOUT_END)),
        r"ends each answer with a special token.*; got several answers.*`assistant_only_loss: true`",
    ),
    BadInput("A row that changed while training", _changed_while_training, r"every training sequence.*cache"),
]
