"""Reference caches of the tiny model: how they are made and read in the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pact_plugins.chat.answers import AnswerTokens, split_documents
from pact_plugins.chat.format import ChatFormat
from pact_plugins.method.reference import open_or_build
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.storage.cache import PARTIAL, Reference, ReferenceCache
from pact_plugins.storage.identity import Identity
from pact_plugins.storage.segment import Segment
from tests.rows import CHAT, Row, documents

IDS = [50, 7, 80, 200]
IDENTITY = Identity(model="m", tokenizer="t", chat="c", precision="as stored", safety_tokens="s", reach=1000, harm=None)
HALF = 4e-3
"""Error of a log-probability of size 8 stored as float16."""


def but(identity: Identity = IDENTITY, **changes: Any) -> Identity:
    """The same identity but for some entries."""
    return identity.model_copy(update=changes)


FULL_ONLY = but(reach=None)


def made(folder: Path, head: SubsetHead, rows: list[Row], identity: Identity = IDENTITY, **more: Any) -> ReferenceCache:
    """The cache of rows, in `folder`, which other rows share."""
    return open_or_build(folder, identity, documents(rows), head, CHAT, show_progress=False, **more)[0]


def segment(folder: Path, identity: Identity = IDENTITY) -> Path:
    """Where the only segment of a store is, without looking into it."""
    (found,) = (path for path in (folder / identity.name).iterdir() if path.suffix != PARTIAL)
    return found


def counts(cache: ReferenceCache) -> dict[str, int]:
    """Values in each view of a cache of one segment."""
    opened: list[Segment] = [only for store in cache.stores for only in store.segments]
    assert len(opened) == len(cache.stores)
    return {view: count for one in opened for view, count in one.manifest.values.items()}


def look_up(cache: ReferenceCache, batch: dict[str, Any], chat: ChatFormat = CHAT) -> tuple[AnswerTokens, Reference]:
    tokens = AnswerTokens.of(split_documents(batch), chat)
    return tokens, cache.look_up(tokens)


@torch.no_grad()
def live(model: nn.Module, ids: list[int]) -> np.ndarray:
    """[L, S] log-probabilities of the token after each of `ids`, from one unpadded sequence in float32."""
    logits = model.eval()(input_ids=torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits, -1)[:, IDS].numpy()


def expected(model: nn.Module, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Both views of a row's answer tokens, one forward pass for each answer."""
    (document,) = documents([row])
    full, answer_only = [], []
    for answer in document.answers(CHAT):
        start, stop = answer.start, answer.stop
        full.append(live(model, row[0])[start - 1 : stop - 1])
        alone_ids = [*CHAT.header, *row[0][start : stop - 1]]
        answer_only.append(live(model, alone_ids)[len(CHAT.header) - 1 :])
    return np.concatenate(full), np.concatenate(answer_only)
