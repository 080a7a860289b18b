"""What can be seen of a run that is about to begin before its model is asked anything: whether it can be served."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pact_plugins.chat.answers import Document
from pact_plugins.chat.fingerprints import digest, tokenizer_fingerprint
from pact_plugins.chat.format import ChatFormat
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.method import harm_probe
from pact_plugins.method.finder import Finder
from pact_plugins.method.prompting import Prompts
from pact_plugins.method.refusal_probe import Probe
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.model.fingerprints import model_fingerprint
from pact_plugins.model.forward import precision
from pact_plugins.model.parity import check_parity
from pact_plugins.model.sharding import full_shape
from pact_plugins.model.subset_head import SubsetHead, hold_head
from pact_plugins.model.support import check_ids, check_lengths
from pact_plugins.run.cost import Data
from pact_plugins.run.coverage import Coverage, located
from pact_plugins.run.evidence import Evidence
from pact_plugins.run.trainer import Start
from pact_plugins.storage.identity import Identity

logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """What a training set holds.

    Attributes:
        chat: what its chat template puts around turns.
        answered: the documents that have an answer token.
        data: how much all of them hold.
        coverage: how much of what assistants say in them is constrained.

    Nothing is found where anchors alone are held.
    """

    chat: ChatFormat
    answered: list[Document]
    data: Data
    coverage: Coverage


def find_answers(
    documents: Sequence[Document], tokenizer: Any, config: PactConfig, template: str | None = None
) -> Found:
    """Locates the answers of a training set, which was rendered with `template` or the tokenizer's own.

    Raises:
        PactError: there is no answer token, too few supervised assistant tokens are in an answer that was located, or
            the chat template has no header that the settings need.
    """
    chat = ChatFormat.from_tokenizer(tokenizer, config.answer_prefix, template)
    if config.active_gate is not None:
        chat.require_header("build the reference without the prompt, which the gate needs (`pact.gate`)")
    chat, coverage, counts, several = located(documents, chat, tokenizer.decode)
    for note in (*chat.notes, *(chat.history if several else ())):
        logger.warning("PACT: the chat template %s.", note)
    answered = [d for d, count in zip(documents, counts, strict=True) if count]
    if not answered:
        raise PactError(
            expected="a training set with at least one answer token: supervised, and in an assistant turn",
            got=f"none in {len(documents):,} supervised sequences",
            consequence="The run would train without PACT, or train on nothing.",
            remedy="Check the chat template, and that `max_length`/`sequence_len` does not cut the answers off.",
        )
    coverage.require(config.min_coverage)
    return Found(chat, answered, Data.of(documents, counts), coverage)


@dataclass(frozen=True)
class Examined:
    """A run that was examined; its methods are to be called in the trainer's autocast context.

    Attributes:
        start: what was read off its trainer.
        found: what its training set holds.
        probe: the drift probe, or None when it is off.
        harm: prompts from which the harm of others is learnt; None where nothing is damped.
        continued: evidence of the run that is being resumed.
        fingerprint: of the model before its first step.
        finder: finds tokens and anchors.
        tokens: the safety tokens; None if they have yet to be found.
    """

    start: Start
    found: Found
    probe: Probe | None
    harm: Prompts | None
    continued: Evidence | None
    fingerprint: str
    finder: Finder
    tokens: SafetyTokens | None

    def head(self, tokens: SafetyTokens | None) -> SubsetHead:
        """The subset head of these tokens, or of as many others where they have yet to be found.

        Raises:
            PactError: they are not this model's, it hardly refuses, or its logits are not read as it computes them.
        """
        config = self.start.config
        if tokens is not None and config.safety_tokens == "auto" and not self.continued:
            tokens.require_refusals()
        head = SubsetHead(self.start.model, list(tokens.ids if tokens else range(config.top_k)))
        if tokens is not None:
            tokens.check(self.start.tokenizer, full_shape(head.base.get_output_embeddings().weight)[0])
        check_parity(head)
        return head

    def identity(self, ids: Sequence[int]) -> Identity:
        """What the reference of a row is computed with, `ids` being the safety tokens."""
        config, chat = self.start.config, self.found.chat
        return Identity(
            model=self.fingerprint,
            tokenizer=tokenizer_fingerprint(self.start.tokenizer),
            chat=chat.fingerprint(),
            precision=precision(self.start.model),
            safety_tokens=digest(list(ids)),
            reach=config.gate_reach if config.active_gate else None,
            harm=harm_probe.identity(self.harm, self.found.answered, chat) if self.harm else None,
        )


def examine(start: Start) -> Examined:
    """Looks at all that a run begins with, but for what its model would have to say.

    Raises:
        PactError: the tokenizer, tokens, data or prompts cannot be served.
    """
    model, tokenizer, config, ranks = start.model, start.tokenizer, start.config, start.ranks
    if start.holds_rows:
        found = find_answers(start.documents, tokenizer, config, start.template)
    else:
        found = Found(ChatFormat.from_tokenizer(tokenizer), [], Data.of([], []), Coverage(0, (), 0))
    check_ids(model, (d.input_ids for d in start.documents), "the training set")
    check_lengths(model, [len(d.input_ids) for d in start.documents])
    probe = Probe(tokenizer, config.active_probe) if config.active_probe else None
    if probe is not None:
        check_ids(model, (d.input_ids for d in probe.documents), "a prompt of the probe")
    harm = harm_probe.prompts(config.prompts) if config.damps else None
    folder = start.resumed_from
    run = ranks.first(lambda: Evidence.load(folder), "resuming") if folder else None
    hold_head(model)  # the subset head does so too, after the forward passes that find its tokens
    with start.autocast():
        # Where the data set streams, the model without its adapter is the reference, of a resumed run as well.
        if start.streams:
            fingerprint = model_fingerprint(model, adapter=False)
        else:
            fingerprint = run.identity.model if run else model_fingerprint(model)
        finder = Finder(config, model, tokenizer, fingerprint, ranks=ranks)
        tokens = run.tokens if run else finder.known_tokens()
    return Examined(start, found, probe, harm, run, fingerprint, finder, tokens)
