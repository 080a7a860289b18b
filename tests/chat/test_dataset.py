"""Reading the training set column by column: the same documents as row by row, and as the collator makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from pact_plugins.chat import dataset
from pact_plugins.chat.answers import Document, split_documents
from pact_plugins.chat.dataset import read_documents
from pact_plugins.run.documents import training_documents
from tests import tiny
from tests.bad_inputs.case import trainer_on


@pytest.fixture(autouse=True)
def few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a handful of rows make several batches."""
    monkeypatch.setattr(dataset, "ROWS_AT_A_TIME", 3)


def rows(*extra: str) -> list[dict[str, Any]]:
    """Rows of different lengths, some of several documents, one without any label."""
    rng = np.random.default_rng(0)
    made = []
    for i, length in enumerate([5, 9, 4, 12, 7, 3, 8, 6]):
        ids = rng.integers(0, 40, length)
        row = {
            "input_ids": ids.tolist(),
            "labels": np.where((rng.random(length) < 0.1) | (i == 5), -100, ids).tolist(),
            # The second document of every row starts at its fourth token.
            "position_ids": [*range(3), *range(length - 3)],
            "attention_mask": [*[1] * (length - i % 3), *[0] * (i % 3)],
        }
        made.append({k: v for k, v in row.items() if k in ("input_ids", "labels", *extra)})
    return made


def same(one: list[Document], other: list[Document]) -> bool:
    return [(d.input_ids.tolist(), d.supervised.tolist(), d.key) for d in one] == [
        (d.input_ids.tolist(), d.supervised.tolist(), d.key) for d in other
    ]


@pytest.mark.parametrize(
    "extra", [(), ("position_ids",), ("attention_mask",), ("position_ids", "attention_mask")], ids=str
)
def test_columns_give_the_documents_of_the_rows(extra: tuple[str, ...]) -> None:
    """Prevents: documents that differ from a batch's, which would all be cache misses."""
    data = rows(*extra)
    expected = [d for row in data for d in split_documents(row)]
    assert len(expected) >= len(data) - 1
    assert same(list(read_documents(Dataset.from_list(data))), expected)


def test_rows_end_documents() -> None:
    """Prevents: two rows becoming one document where the positions of the second continue those of the first."""
    data = [
        {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "position_ids": [0, 1, 2]},
        {"input_ids": [4, 5], "labels": [4, 5], "position_ids": [3, 4]},
    ]
    assert [d.input_ids.tolist() for d in read_documents(Dataset.from_list(data))] == [[1, 2, 3], [4, 5]]


def test_selected_rows_are_read_in_their_order() -> None:
    """Prevents: a filtered or shuffled data set being read as the file behind it."""
    data = rows()
    order = [6, 0, 3, 1, 2]
    expected = [d for i in order for d in split_documents(data[i])]
    assert same(list(read_documents(Dataset.from_list(data).select(order))), expected)


@pytest.mark.trl
@pytest.mark.parametrize("settings", [{}, {"packing": True}, {"packing": True, "packing_strategy": "wrapped"}], ids=str)
def test_documents_are_those_of_the_trainers_batches(settings: dict[str, Any], tmp_path: Path) -> None:
    """Prevents: boundaries of packed rows that the trainer's collator draws elsewhere."""
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(tmp_path), max_length=96, assistant_only_loss=True, report_to=[], use_cpu=True, **settings
    )
    trainer: Any = SFTTrainer(
        model=tiny.llama(), args=args, train_dataset=tiny.conversations(12), processing_class=tiny.tokenizer()
    )
    batches = [trainer.data_collator([trainer.train_dataset[i]]) for i in range(len(trainer.train_dataset))]
    expected = [d for batch in batches for d in split_documents(batch)]
    assert len(expected) >= len(batches)
    assert same(list(training_documents(trainer)), expected)


def test_a_transform_is_read_as_the_loader_reads_it(tmp_path: Path) -> None:
    """Prevents: the reference of stored rows, under a transform (`with_transform`) that makes others of them."""
    stored = Dataset.from_list([{"input_ids": [0, 7, 7, 8, 9], "labels": [-100, -100, -100, 8, 9]}] * 2)
    names = ("input_ids", "labels")
    cut = stored.with_transform(lambda rows: {name: [values[:4] for values in rows[name]] for name in names})
    (first, _) = training_documents(trainer_on(tmp_path, data=cut))
    assert (first.input_ids.tolist(), first.supervised.tolist()) == ([0, 7, 7, 8], [False, False, False, True])
