"""The documents of a trainer's data sets, as its batches will hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from pact_plugins.chat.answers import NO_TEXT, Document, split_documents
from pact_plugins.chat.dataset import read_documents
from pact_plugins.errors import PactError
from pact_plugins.model.ranks import Ranks

_READ_TWICE = 8
"""Rows that are read a second time, where something of the user's own makes them, or they stream."""

READ_AHEAD, READ_AHEAD_TOKENS = 256, 2**18
"""Rows of a data set that streams that are read before the first step at most, and their tokens."""


def training_documents(trainer: Any) -> Iterator[Document]:
    """Those of the training set (`documents_of`)."""
    return documents_of(trainer, trainer.train_dataset)


def first_documents(trainer: Any, ranks: Ranks) -> list[Document]:
    """Those of the first rows of a training set that streams, as the first process reads them.

    Raises:
        PactError: they are others each time that they are read, or cannot be read.
    """

    def read(rows: int) -> list[Document]:
        found, tokens = list[Document](), 0
        with torch.random.fork_rng(devices=[]):
            # Axolotl packs the rows of a stream in random order.
            torch.default_generator.manual_seed(trainer.args.seed)
            for number, row in enumerate(islice(trainer.train_dataset, rows)):
                found += (documents := _documents_of_row(trainer, row, number))
                tokens += sum(len(d.input_ids) for d in documents)
                if tokens > READ_AHEAD_TOKENS:
                    break
        return found

    def read_ahead() -> list[Document]:
        twice, found = read(_READ_TWICE), read(READ_AHEAD)
        if [d.key for d in twice] != [d.key for d in found[: len(twice)]]:
            raise _unsteady(f"a data set whose first {_READ_TWICE} rows are others the second time")
        return found

    return ranks.first(read_ahead, "reading the first rows of the data set")


def documents_of(trainer: Any, dataset: Any) -> Iterator[Document]:
    """Every sequence of a data set, as the trainer's batches will hold it; its `row` is that of the set.

    Raises:
        PactError: rows are others each time that they are read, or cannot be read.
    """
    columns: set[str] = set(getattr(dataset, "column_names", None) or ())
    # Rows that hold their labels need no collator of a host's, unless they are packed: then it decides whether
    # boundaries count. One of somebody's own may change anything.
    bounded = getattr(trainer.data_collator, "padding_free", False)
    of_a_host = _host_of(trainer.data_collator) in ("axolotl", "transformers", "trl")
    labelled = {"input_ids", "labels"} <= columns and ("seq_lengths" not in columns or bounded)
    # Under a transform (`with_transform`), what the trainer's loader sees is not what is stored. Images may be unused.
    as_stored = labelled and dataset.format["type"] != "custom" and not any(map(NO_TEXT.search, columns))
    if of_a_host and as_stored:
        yield from read_documents(dataset.select_columns(sorted(_collated(trainer, columns))))
        return
    # One row at a time, so that no collator option (shuffling, dropping the last batch) can leave one out.
    for i in range(len(dataset)):
        documents = _documents_of_row(trainer, dataset[i], i)
        if i < _READ_TWICE and [d.key for d in documents] != [d.key for d in _documents_of_row(trainer, dataset[i], i)]:
            raise _unsteady(f"a data set or data collator that gives row {i} differently the second time")
        yield from documents


def _unsteady(got: str) -> PactError:
    return PactError(
        expected="rows that are the same each time that the trainer reads them",
        got=got,
        consequence="The reference would be of other rows than those that are trained on.",
        remedy="Apply what changes them once: `dataset.map(...)`, for example, in place of `with_transform`; a stream "
        "has to begin anew each time that it is read.",
    )


def _host_of(collator: Any) -> str:
    return type(collator).__module__.partition(".")[0]


def _collated(trainer: Any, columns: set[str]) -> set[str]:
    """The columns that a host's collator makes batches of: TRL's takes all tokens of a row for seen, padding too."""
    ignored = {"attention_mask", "position_ids"} if _host_of(trainer.data_collator) == "trl" else set[str]()
    return columns.intersection(_collatable(trainer, dict.fromkeys(columns))) - ignored


def _documents_of_row(trainer: Any, row: dict[str, Any], number: int) -> list[Document]:
    batch: Mapping[str, Any] = trainer.data_collator([_collatable(trainer, row)])
    if seen := [name for name in batch if NO_TEXT.search(name)]:
        raise PactError(
            expected="a data set of text alone",
            got=f"`{seen[0]}` in the batch of row {number}",
            consequence="The reference would be computed without what its answers are about.",
            remedy="Leave images and sounds out, or train without PACT.",
        )
    return [replace(document, row=number) for document in split_documents(batch)]


def _collatable(trainer: Any, row: dict[str, Any]) -> dict[str, Any]:
    """A row without the columns that the trainer takes out before collating."""
    if trainer._signature_columns is None:  # Axolotl's cannot be set twice where it packs
        trainer._set_signature_columns_if_needed()
    kept: Any = trainer._signature_columns
    return {k: v for k, v in row.items() if k in kept} if trainer.args.remove_unused_columns else row
