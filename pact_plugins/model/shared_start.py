"""Forward passes over sequences that begin alike, such as chats with one system prompt: the start is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from pact_plugins.chat.answers import Document, Ints
from pact_plugins.model.forward import padded, to_device
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.model.support import decoder_of, last_hidden

LARGEST_ERROR = 0.03
"""Of a last hidden state behind a start that was kept, beside its norm; half precision moves it by about 0.01."""


class SharedStart:
    """Runs documents through a decoder behind the keys and values of the tokens with which all of them begin.

    To be used in eval mode, without gradients.

    Args:
        documents: all that will be run.

    Attributes:
        length: tokens of the start; 0 where they have none, or the decoder cannot go on from it.
    """

    def __init__(self, head: SubsetHead, documents: Sequence[Document]) -> None:
        self._head, self._decoder, self.length = head, decoder_of(head.base), 0
        self._kept: DynamicCache | None = None
        self._device = next(head.model.parameters()).device
        if head.runs_whole or any(d.seen is not None or d.positions is not None for d in documents):
            return
        ids = [d.input_ids for d in documents]
        if not (length := _common(ids)):
            return
        self._kept = _keys_and_values(self._decoder, self._row(ids[0][:length]))
        if self._kept is not None and self._goes_on(length, max(ids, key=len)):
            self.length = length

    def places(self, batch: Sequence[Document]) -> tuple[tuple[int, int], Tensor]:
        """Shape B, L of the forward pass over a batch, and [B] the flat places of the last tokens in it."""
        lengths = [len(d.input_ids) - self.length for d in batch]
        last = [row * max(lengths) + length - 1 for row, length in enumerate(lengths)]
        return (len(batch), max(lengths)), torch.tensor(last, device=self._device)

    def run(self, batch: Sequence[Document]) -> None:
        """A forward pass of the decoder over what follows the start in each document, padded on the right."""
        inputs = padded(batch, self._device)
        if not self.length:
            self._head.decode(**inputs)
            return
        self._behind(inputs["input_ids"][:, self.length :], inputs["attention_mask"])

    def _behind(self, ids: Tensor, mask: Tensor) -> Any:
        """The decoder's output for ids [B, L] behind the start; mask [B, start and L]."""
        assert self._kept is not None
        kept = deepcopy(self._kept)  # a forward pass adds to it
        kept.batch_repeat_interleave(len(ids))
        return self._decoder(input_ids=ids, attention_mask=mask, past_key_values=kept, use_cache=True)

    def _goes_on(self, length: int, ids: Ints) -> bool:
        """Whether these ids have the same last hidden state behind the start as by themselves."""
        row = self._row(ids)
        behind = _last(self._behind(row[:, length:], torch.ones_like(row)))
        alone = _last(self._decoder(input_ids=row, use_cache=False))
        return bool((behind - alone).norm() <= LARGEST_ERROR * alone.norm())

    def _row(self, ids: Ints) -> Tensor:
        return to_device(ids[None], self._device)


def _keys_and_values(decoder: Any, ids: Tensor) -> DynamicCache | None:
    """Those of a row of ids; None of a decoder that keeps something else, such as the state of a recurrence."""
    if not hasattr(decoder.config.get_text_config(), "num_hidden_layers"):
        return None  # from which a cache is made
    kept = getattr(decoder(input_ids=ids, use_cache=True), "past_key_values", None)
    plain = isinstance(kept, DynamicCache) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in kept.layers
    )
    return kept if plain else None


def _common(sequences: Sequence[Ints]) -> int:
    """How many tokens they begin with alike; of each at least one is left."""
    if len(sequences) < 2:
        return 0
    shortest = min(map(len, sequences)) - 1
    differ = (np.stack([s[:shortest] for s in sequences]) != sequences[0][:shortest]).any(0)
    return int(differ.argmax()) if differ.any() else shortest


def _last(output: Any) -> Tensor:
    return last_hidden(output)[0, -1].float()
