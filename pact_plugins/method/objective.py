"""`PactObjective`: the run-time object that turns a forward pass and the cached reference into loss and metrics."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pact_plugins.chat.answers import IGNORE_INDEX, AnswerTokens, Ints, on_host, split_documents
from pact_plugins.chat.format import ChatFormat
from pact_plugins.config import PactConfig
from pact_plugins.method import loss
from pact_plugins.method.anchors import Anchors
from pact_plugins.method.live import LiveReference
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.model.forward import decoder_inputs, to_device
from pact_plugins.model.subset_head import Capture, Request, SubsetHead
from pact_plugins.storage.cache import Reference, ReferenceCache, log_probabilities

_NOTHING_DAMPED = np.empty(0, np.int64)


@dataclass(frozen=True)
class Targets:
    """Everything about a batch that is known before its forward pass, on the model's device.

    Attributes:
        request: what the subset head has to compute.
        full: [N, S] log-probabilities of the reference with its full context.
        answer_only: [N, S] the same without the prompt; None where the gate is off.
        position: [N] index of each answer token in its answer, below 0 before the answer's own words.
        labels: [B, L] the batch's own without those that are damped: what the host's cross-entropy is to see.
        damped: number M of the tokens whose cross-entropy is left out.
        documents: number of documents looked up.
        supervised: number of tokens that have a label in the batch, damped ones among them.
        harm: [N] the probability that each token's prompt asks for harm, by which its divergence counts; None where all
            count alike.
    """

    request: Request
    full: Tensor
    answer_only: Tensor | None
    position: Tensor
    labels: Tensor
    damped: int
    documents: int
    supervised: int
    harm: Tensor | None = None


@dataclass(frozen=True)
class AtAnchors:
    """What was seen at the N answer tokens of anchors.

    Attributes:
        position: [N] index of each token in its answer, on the host.
        divergence: [N] in nats, with gradient.
        mass, reference_mass: [N] probability of the model, and of the reference, on those held tokens S+ that are among
            the candidates.
        connection: a zero that belongs into every loss on these (see `SubsetHead.decode`).
    """

    position: Tensor
    divergence: Tensor
    mass: Tensor
    reference_mass: Tensor
    connection: Tensor


@dataclass(frozen=True)
class Terms:
    """What PACT adds to the loss of a batch, as sums over its answer tokens: the host normalises.

    Attributes:
        kl: scalar, sum of the divergences, with gradient; times `weight`, to be divided by what the host divides its
            cross-entropy by.
        count: number of answer tokens N.
        statistics: detached sums over the answer tokens, to be divided by `count`.
    """

    kl: Tensor
    count: int
    statistics: dict[str, Tensor]


class PactObjective:
    """The safety term of one run.

    In a loop of one's own::

        targets = objective.targets(batch)
        with objective.watch(targets) as captured:
            outputs = model(**{**batch, "labels": targets.labels}, num_items_in_batch=targets.supervised)
        terms = objective.terms(captured, targets)
        loss = outputs.loss + config.weight * terms.kl / targets.supervised

    Damped tokens have no label for the host's loss, whatever it does with labels, and count among its items as before.

    Args:
        config: the run's settings.
        tokens: the safety tokens, checked against the model.
        chat: what the chat template puts around answers.
        head: the subset head of the model being trained.
        reference: of the training data.
        anchors: prompts with the reference's own answers that join each step, or None.
    """

    def __init__(
        self,
        config: PactConfig,
        tokens: SafetyTokens,
        chat: ChatFormat,
        head: SubsetHead,
        reference: ReferenceCache | LiveReference,
        anchors: Anchors | None = None,
    ) -> None:
        self.config, self.tokens, self.chat, self.head, self.reference = config, tokens, chat, head, reference
        self.anchors = anchors
        self._gate = config.active_gate.model_dump(exclude={"prefix"}) if config.active_gate else None
        self._weights = torch.tensor(tokens.weights)
        self._positive = torch.tensor(tokens.positive)
        self._positive_ids = np.asarray([tokens.ids[i] for i in tokens.positive])

    def targets(self, inputs: Mapping[str, Any], *, device: torch.device | None = None, damps: bool = True) -> Targets:
        """Splits a batch, looks its reference up, and moves the result to `device`.

        Args:
            inputs: `input_ids` and `labels` [B, L], and where present `position_ids` and `attention_mask`.
            device: where the forward pass will run; the batch's own device if None.
            damps: False leaves conflicts alone.
        """
        device = device or cast(Tensor, inputs["input_ids"]).device
        if self._weights.device != device:
            self._weights, self._positive = self._weights.to(device), self._positive.to(device)
        own = on_host(inputs)
        tokens = AnswerTokens.of(split_documents(own), self.chat)
        reference = self.reference.look_up(tokens)
        labels, (_, width) = torch.as_tensor(inputs["labels"]), own["labels"].shape
        damped, harm = _NOTHING_DAMPED, None
        if damps and self.config.damps:
            damped = self._damped(tokens, reference)
            assert reference.harm is not None, "a cache of a run that damps holds the harm of every prompt"
            harm = to_device(reference.harm[tokens.answer], device).float()
        flat = tokens.flat(width)
        request = Request(
            flat=to_device(flat, device),
            label=to_device(tokens.label, device),
            normalise=self.config.defaults.absolute,
            unlabelled=to_device(damped, device) if len(damped) else None,
        )
        if len(damped):
            # The token in column c is predicted in column c - 1.
            places = to_device(flat[damped] + 1, labels.device)
            labels = labels.flatten().index_fill(0, places, IGNORE_INDEX).view_as(labels)
        answer_only = None
        if self._gate is not None and reference.answer_only is not None:
            answer_only = to_device(reference.answer_only, device).float()
        return Targets(
            request=request,
            full=to_device(reference.full, device).float(),
            answer_only=answer_only,
            position=to_device(tokens.position, device),
            labels=labels,
            damped=len(damped),
            documents=len(tokens.documents),
            supervised=max(int((own["labels"][:, 1:] != IGNORE_INDEX).sum()), 1),
            harm=harm,
        )

    @contextmanager
    def watch(self, targets: Targets) -> Generator[list[Capture]]:
        """Captures the safety tokens' logits of the one forward pass inside the block."""
        with self.head.watch(targets.request) as captures:
            yield captures

    def terms(self, captures: list[Capture], targets: Targets) -> Terms:
        """The objective on what `watch` captured."""
        capture = SubsetHead.one(captures)
        normalised = capture.log_normaliser is not None
        student = log_probabilities(capture) if normalised else capture.logits
        kl, gate = self.divergence(student, targets)
        with torch.no_grad():
            statistics = {
                "kl": kl.detach().sum(),
                "reference_mass": self.held_mass(targets.full).sum(),
                "damped": kl.new_tensor(targets.damped),
            }
            if gate is not None:
                statistics["gate"] = gate.sum()
            if normalised:
                statistics["safety_mass"] = self.held_mass(student).sum()
        if targets.harm is not None:
            # A reference that declines for want of knowledge, not for harm, would work against what a row teaches; and
            # what is learned there, to decline in spite of an answer at hand, carries over to other harmless requests.
            kl = kl * targets.harm
        return Terms(kl.sum(), len(kl), statistics)

    def divergence(self, student: Tensor, targets: Targets) -> tuple[Tensor, Tensor | None]:
        """[N] divergence of each answer token, and [N] the gate where it is on.

        Args:
            student: [N, S] the model's log-probabilities of the safety tokens; for `paper` logits will do.
            targets: of the same N answer tokens.
        """
        gate = None
        if self._gate is not None and targets.answer_only is not None:
            gate = loss.gate(student, targets.answer_only, targets.position, **self._gate)
        if self.config.objective == "paper":
            divergence = loss.paper(
                student,
                targets.full,
                targets.answer_only,
                gate,
                self._weights,
                temperature=self.config.temperature,
            )
        else:
            divergence = loss.confidence(student, targets.full, targets.answer_only, gate, self._positive)
        return divergence, gate

    def held_mass(self, values: Tensor) -> Tensor:
        """[N] probability on the held tokens S+, from [N, S] log-probabilities."""
        return values[:, self._positive].exp().sum(-1)

    def anchor_terms(self, anchors: Anchors, rows: Sequence[int], device: torch.device) -> Terms:
        """The divergence at these anchors, from a forward pass of the decoder alone."""
        seen = self.at_anchors(anchors, rows, device)
        kl = seen.divergence.sum()
        return Terms(kl + seen.connection, len(seen.position), {"kl": kl.detach()})

    def at_anchors(self, anchors: Anchors, rows: Sequence[int], device: torch.device) -> AtAnchors:
        """What the model would say at these anchors, beside the reference."""
        inputs = anchors.batch(rows)
        position, candidates, reference = anchors.reference(rows)
        # The token in column c is predicted in column c - 1.
        labels = inputs["labels"].flatten()
        flat = (labels != IGNORE_INDEX).nonzero()[:, 0]
        flat, label, candidates, reference = (
            part.to(device) for part in (flat - 1, labels[flat], candidates, reference)
        )
        with self.head.watch(Request(flat, label, candidates=candidates)) as captures:
            connection = self.head.decode(**decoder_inputs(inputs, device))
        student = SubsetHead.one(captures).candidates
        assert student is not None, "they were asked for"
        held = torch.isin(candidates, torch.from_numpy(self._positive_ids).to(device))
        mass, before = ((values.detach().exp() * held).sum(-1) for values in (student, reference))
        return AtAnchors(position, loss.divergence(student, reference), mass, before, connection)

    def conflicts(self, tokens: AnswerTokens, reference: Reference) -> npt.NDArray[np.float32]:
        """[N] conflict of each answer token with its reference (`loss.conflict`), computed on the host."""
        assert reference.harm is not None, "a cache of a run that damps holds the harm of every prompt"
        values: npt.NDArray[np.float32] = loss.conflict(
            torch.from_numpy(reference.harm).float(),
            torch.from_numpy(tokens.position),
            torch.from_numpy(tokens.answer),
            torch.from_numpy(np.isin(tokens.label, self._positive_ids)),
        ).numpy()
        return values

    def _damped(self, tokens: AnswerTokens, reference: Reference) -> Ints:
        """Indices into the answer tokens whose cross-entropy is left out."""
        return np.flatnonzero(self.conflicts(tokens, reference) > self.config.conflict_threshold)
