"""The documents of a data set whose rows hold their labels: read column by column, many rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

from pact_plugins.chat.answers import Document, Ints, documents_of_row
from pact_plugins.errors import PactError

ROWS_AT_A_TIME = 1000

_ABSENT = None, None


def read_documents(dataset: Any) -> Iterator[Document]:
    """Every document of `dataset`, as `split_documents` gives them row by row, with `row` and `start` in the data set.

    Args:
        dataset: a `datasets.Dataset` with the columns `input_ids` and `labels`, and where present `position_ids`,
            `attention_mask`, and `seq_lengths`, the lengths of the documents of each packed row.

    Raises:
        PactError: a column holds something else than lists of integers, or another number of them than `input_ids`.
    """
    known = ("input_ids", "labels", "position_ids", "attention_mask", "seq_lengths")
    columns = [name for name in known if name in dataset.column_names]
    before = 0
    for table in dataset.select_columns(columns).with_format("arrow").iter(ROWS_AT_A_TIME):
        flat = {name: _flat(name, table[name]) for name in columns}
        input_ids, lengths = flat["input_ids"]
        for name, (_, own) in flat.items():
            if name != "seq_lengths" and not np.array_equal(own, lengths):
                row = int(np.flatnonzero(own != lengths)[0])
                raise _unreadable(
                    f"as many values under `{name}` as under `input_ids`",
                    f"{own[row]} and {lengths[row]} in row {before + row}",
                )
        labels, (mask, _) = flat["labels"][0], flat.get("attention_mask", _ABSENT)
        positions, _ = flat.get("position_ids", _ABSENT)
        if "seq_lengths" in flat:
            packed = flat["seq_lengths"][0]
            mask, positions = None, np.arange(len(input_ids)) - np.repeat(np.cumsum(packed) - packed, packed)
        for row, (start, stop) in enumerate(pairwise([0, *np.cumsum(lengths).tolist()]), before):
            own = slice(start, stop)
            yield from documents_of_row(
                input_ids[own],
                labels[own],
                None if mask is None else mask[own],
                None if positions is None else positions[own],
                row,
            )
        before += len(lengths)


def _flat(name: str, column: Any) -> tuple[Ints, Ints]:
    """The values of a column of lists, one list after the other, and the length of each."""
    compute: Any = import_module("pyarrow.compute")  # comes with `datasets`

    lists = column.combine_chunks()
    try:
        values = compute.list_flatten(lists).to_numpy(zero_copy_only=False)
        lengths = compute.list_value_length(lists).to_numpy(zero_copy_only=False)
    except NotImplementedError as error:  # no lists at all
        raise _unreadable(f"lists of integers under `{name}`", str(lists.type)) from error
    # Arrow's missing values make floats, and anything but numbers makes objects.
    if (len(values) and values.dtype.kind not in "iub") or lengths.dtype.kind != "i":
        raise _unreadable(f"lists of integers under `{name}`", f"{lists.type}, or missing values")
    return values.astype(np.int64), lengths.astype(np.int64)


def _unreadable(expected: str, got: str) -> PactError:
    return PactError(
        expected=f"{expected} in every row of the training set",
        got=got,
        consequence="Other tokens would be constrained than those that are trained on.",
        remedy="Tokenise the data set again, or leave it to the trainer.",
    )
