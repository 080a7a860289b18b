r"""A linear probe that tells harmful requests from harmless ones by what the reference computes of them.

That a model will decline is no sign of harm: it also declines what it does not know. Harm itself can be read from the
hidden states behind a prompt (Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction", arXiv
2406.11717). So the probe is a logistic regression on the states of some layers side by side (`LayerStates`) at a
prompt's last token, fitted on prompts of known kind.

These do not cover what a user's data asks. But most rows of a data set are harmless, so some of its own prompts join
the fit as harmless ones, each with the weight of not being harmful: expectation maximisation, whose rare harmful rows
keep next to no weight because they lie with the harmful prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pact_plugins.chat.answers import Document
from pact_plugins.chat.fingerprints import digest
from pact_plugins.chat.format import ChatFormat
from pact_plugins.config import PromptsConfig
from pact_plugins.method import prompting
from pact_plugins.method.prompting import Prompts
from pact_plugins.model.forward import batches_by_length, evaluating
from pact_plugins.model.layer_states import LAYERS, LayerStates
from pact_plugins.model.progress import progress
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.model.shared_start import SharedStart
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.model.support import check_ids

VERSION = 1
"""Of the states that are read, and of how the probe is fitted."""

PENALTY = 1e-4
"""Weight of the squared norm beside the mean loss, on standardised states divided by the root of their number."""

ROUNDS = 3
"""Fits with the user's own prompts; the weights hardly change in a fourth."""

OWN_PROMPTS, OWN_TOKENS = 256, 65_536
"""The user's prompts that join the fit at most, and their tokens."""


@dataclass(frozen=True)
class HarmProbe:
    """A fitted probe.

    Attributes:
        mean, scale, weights: [F] of the states, and what they are multiplied with once standardised.
        bias: log-odds of harm at the mean.
    """

    mean: Tensor
    scale: Tensor
    weights: Tensor
    bias: float

    def score(self, states: Tensor) -> Tensor:
        """[n] probability of harm for states [n, F], float32: sigmoid((states - mean) / scale @ weights + bias)."""
        mean, scale, weights = (t.to(states.device) for t in (self.mean, self.scale, self.weights))
        return torch.sigmoid((states - mean) / scale @ weights + self.bias)


def fit(harmful: Tensor, harmless: Tensor, own: Tensor) -> HarmProbe:
    r"""The probe of prompts of known kind, adapted to a data set.

    With z the standardised states divided by sqrt(F), it minimises, both kinds weighing one half::

        mean(softplus(-(z w + b)) over harmful) / 2 + mean(softplus(z w + b) over harmless, own) / 2 + PENALTY |w|^2 / 2

    where the second mean is weighted: 1 for a harmless prompt, and 1 - p for one of the user's own, p being its score
    by the probe before. The first probe knows none of them.

    Args:
        harmful, harmless: [n, F] states at the last tokens of prompts of each kind.
        own: [k, F] the same of prompts that the user trains on; none will do.
    """
    known = torch.cat([harmful, harmless])
    mean, scale = known.mean(0), (known.std(0) + 1e-4) * known.shape[1] ** 0.5
    z = (torch.cat([known, own]) - mean) / scale
    sign = torch.ones(len(z))
    sign[len(harmful) :] = -1

    def fitted(believed: Tensor) -> HarmProbe:
        """With these weights [k] of the user's prompts."""
        rest = torch.cat([torch.ones(len(harmless)), believed])
        share = torch.cat([torch.full((len(harmful),), 1 / len(harmful)), rest / rest.sum()]) / 2
        weights, bias = _logistic(z, sign, share)
        return HarmProbe(mean, scale, weights, bias)

    probe = fitted(torch.zeros(len(own)))
    for _ in range(ROUNDS if len(own) else 0):
        probe = fitted(1 - probe.score(own))
    return probe


def _logistic(z: Tensor, sign: Tensor, share: Tensor) -> tuple[Tensor, float]:
    """Weights and bias of a logistic regression with `PENALTY`, of rows z [n, F] with shares [n] of the loss."""
    weights, bias = torch.zeros(z.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)
    search = torch.optim.LBFGS(
        [weights, bias], max_iter=200, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        value = share @ F.softplus(-sign * (z @ weights + bias)) + PENALTY / 2 * weights.square().sum()
        value.backward()
        return value.detach()

    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        search.step(loss)
    return weights.detach(), float(bias.detach())


def prompts(config: PromptsConfig) -> Prompts:
    """The prompts of known kind: those that a model is asked, and more, of other kinds than how-to questions."""
    asked = Prompts.of(config)
    shipped = prompting.shipped
    return Prompts(
        (*asked.harmful, *shipped("more_harmful"), *shipped("other_harmful")),
        (*asked.harmless, *shipped("more_harmless"), *shipped("other_harmless")),
    )


def identity(known: Prompts, documents: Sequence[Document], chat: ChatFormat) -> str:
    """Names what a probe depends on beside the model and its chat template: the prompts, the data's own among them."""
    own = sorted(prompt.key.hex() for prompt in _own_prompts(documents, chat))
    return digest([VERSION, LAYERS, known.harmful, known.harmless, own])


def learn(
    head: SubsetHead,
    tokenizer: Any,
    known: Prompts,
    documents: Sequence[Document],
    chat: ChatFormat,
    *,
    ranks: Ranks = ALONE,
    show_progress: bool = True,
) -> HarmProbe:
    """The probe of `head`'s model as it is now, for a data set: one forward pass over each prompt, without an answer.

    Call it in the autocast context of the trainer's own forward passes.

    Args:
        head: of the model.
        tokenizer: its tokenizer.
        known: what `prompts` gives.
        documents: that are trained on.
        chat: what the chat template puts around their turns.
        ranks: of the run, each with the same model and documents.
        show_progress: whether progress is shown.

    Raises:
        PactError: the tokenizer has no chat template, or the states of the model cannot be read.
    """
    asked = prompting.as_chats(
        tokenizer,
        [*known.harmful, *known.harmless],
        "tell harmful rows of the data from harmless ones",
        "Set the model's own chat template, or do without: set `pact.conflict: keep`.",
    )
    check_ids(head.model, asked, "a prompt")
    chats = [prompting.answered(ids, ()) for ids in asked]
    told: dict[str, Any] = {"ranks": ranks, "show_progress": show_progress}
    states = _states(head, chats, _WHAT, **told)
    own = list(_own_prompts(documents, chat))
    own_states = _states(head, own, "reading prompts of the data", **told) if own else states[:0]
    harmful, harmless = states.split([len(known.harmful), len(known.harmless)])
    return ranks.first(lambda: fit(harmful, harmless, own_states), _WHAT)


_WHAT = "reading prompts of known kind"


def _states(head: SubsetHead, prompts: Sequence[Document], what: str, ranks: Ranks, show_progress: bool) -> Tensor:
    """[n, F] states at the last token of each prompt, on the host."""
    layers, batches = LayerStates(head.model), batches_by_length([len(p.input_ids) for p in prompts])
    found: dict[int, Tensor] = {}
    with evaluating(head.model):
        start = SharedStart(head, prompts)

        def of(batch: Sequence[int]) -> Tensor:
            documents = [prompts[i] for i in batch]
            shape, last = start.places(documents)
            with layers.watch(last, shape) as states:
                start.run(documents)
            return layers.joined(states).cpu()

        computed = ranks.merged(batches, map(of, ranks.part(batches)), what)
        for batch, states in progress(computed, f"PACT: {what}", len(batches), show_progress):
            found.update(zip(batch, states, strict=True))
    return torch.stack([found[i] for i in range(len(prompts))])


def _own_prompts(documents: Sequence[Document], chat: ChatFormat) -> Iterator[Document]:
    """What the data asks: of a sample of the documents what precedes their first answer.

    In the order of their keys, so that it is the same sample in whatever order the data comes.
    """
    number = tokens = 0
    for document in sorted({d.key: d for d in documents}.values(), key=lambda d: d.key):
        start = next((a.start for a in document.answers(chat) if a.words >= 0), None)
        if start is None:  # it goes on with an answer whose prompt is not there
            continue
        number, tokens = number + 1, tokens + start
        if number > OWN_PROMPTS or tokens > OWN_TOKENS:
            break
        yield replace(document.up_to(start), supervised=np.zeros(start, bool))
