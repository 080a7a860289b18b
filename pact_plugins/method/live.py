"""`LiveReference`: what the model says of a batch with its adapter off, computed whenever it is asked for.

A data set that streams cannot go through the model before the first step. But an adapter that began with nothing leaves
the model as it was, there to be asked: one more forward pass over each row, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from pact_plugins.chat.answers import AnswerTokens
from pact_plugins.chat.format import ChatFormat
from pact_plugins.method.harm_probe import HarmProbe
from pact_plugins.method.reference import computed, forward_sequences, value_counts
from pact_plugins.model.adapter import taken_off
from pact_plugins.model.forward import batches_by_length, evaluating
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.storage.cache import Reference
from pact_plugins.storage.identity import Identity


class LiveReference:
    """The reference of a run whose data set streams; beside `ReferenceCache`, with values of the same precision.

    Args:
        head: of the model, whose adapter began with nothing.
        identity: of the run.
        chat: what the chat template puts around turns.
        probe: scores the harm of prompts; None where nothing is damped.
        autocast: makes the context in which the trainer runs its forward passes.

    Attributes:
        where, size: where its values are, for people, and their bytes on disk.
    """

    where = "computed in each step: one more forward pass over its rows, with the adapter off"
    size = 0

    def __init__(
        self,
        head: SubsetHead,
        identity: Identity,
        chat: ChatFormat,
        probe: HarmProbe | None,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.identity = identity
        self._head, self._chat, self._probe, self._autocast = head, chat, probe, autocast

    def look_up(self, tokens: AnswerTokens) -> Reference:
        """The reference of every answer token of a batch.

        Raises:
            PactError: the model gives logits that are not finite.
        """
        views = [view for store in self.identity.stores for view in store.views]
        each = [AnswerTokens.of([document], self._chat) for document in tokens.documents]
        sizes = value_counts(each, self.identity.reach)
        counts = {view: sizes[view] for view in views}
        work = forward_sequences(each, counts, self.identity.reach, self._chat)
        batches = [[work[i] for i in batch] for batch in batches_by_length([len(s.input_ids) for s in work])]
        widths = {view: 1 if view == "harm" else len(self._head.ids) for view in views}
        found = {view: np.empty((int(counts[view].sum()), widths[view]), np.float16) for view in views}
        starts = {view: np.cumsum(counts[view]) - counts[view] for view in views}
        model = self._head.model
        with self._autocast(), taken_off(model), evaluating(model):
            for values in computed(batches, self._head, self._probe):
                for place, part in values:
                    start = int(starts[place.view][place.document]) + place.skip
                    found[place.view][start : start + place.rows] = part
        answer_only = None
        if (reach := self.identity.reach) is not None:
            answer_only = found["full"].copy()
            answer_only[tokens.position < reach] = found["answer_only"]
        return Reference(found["full"], answer_only, found["harm"][:, 0] if "harm" in found else None)
