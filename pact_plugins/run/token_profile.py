"""`Profile`: how the model and its reference compare at each token of an answer, measured on a few sequences.

Written beside the run's evidence when training ends, as `pact_profile.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pact_plugins.chat.answers import Document
from pact_plugins.method.anchors import Anchors
from pact_plugins.method.objective import PactObjective
from pact_plugins.model.forward import batches_by_length, collate, decoder_inputs, evaluating
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.storage import files
from pact_plugins.storage.cache import log_probabilities

POSITIONS = 32
"""Answer tokens, from the first, that are told apart: refusals are decided in the first few."""

FILE = "pact_profile.json"


@dataclass(frozen=True)
class Profile:
    """Means over the answers that are long enough, by index of the token in its answer.

    Attributes:
        sequences: how many were measured.
        tokens: [P] answer tokens at each index; at least one.
        model: [P] the model's probability on the held tokens S+, as it is now.
        reference: [P] the reference's.
        kl: [P] divergence, as the run computes it at such answers.
    """

    sequences: int
    tokens: tuple[int, ...]
    model: tuple[float, ...]
    reference: tuple[float, ...]
    kl: tuple[float, ...]


def measure_profile(objective: PactObjective, documents: Sequence[Document]) -> Profile:
    """The profile of the model as it is now, in eval mode; the reference comes from the cache.

    Call it in the autocast context of the trainer's own forward passes.

    Args:
        documents: sequences in its cache, each with an answer token.
    """
    device = next(objective.head.model.parameters()).device

    def of(batch: list[int]) -> tuple[Tensor, ...]:
        inputs = collate([documents[i] for i in batch])
        targets = objective.targets(inputs, device=device, damps=False)
        with objective.head.watch(replace(targets.request, normalise=True)) as captures:
            objective.head.decode(**decoder_inputs(inputs, device))
        student = log_probabilities(SubsetHead.one(captures))
        divergence, _ = objective.divergence(student, targets)
        return targets.position, objective.held_mass(student), objective.held_mass(targets.full), divergence

    return _measured(objective, documents, of)


def profile_of_anchors(objective: PactObjective, anchors: Anchors) -> Profile:
    """The same of the anchors, whose reference they hold themselves."""
    device = next(objective.head.model.parameters()).device

    def of(batch: list[int]) -> tuple[Tensor, ...]:
        seen = objective.at_anchors(anchors, batch, device)
        return seen.position, seen.mass, seen.reference_mass, seen.divergence

    return _measured(objective, anchors.documents, of)


def _measured(
    objective: PactObjective, documents: Sequence[Document], of: Callable[[list[int]], tuple[Tensor, ...]]
) -> Profile:
    """`of` a batch: position, mass of the model and of the reference, and divergence, [N] each."""
    sums = torch.zeros(4, POSITIONS, dtype=torch.float64)
    with evaluating(objective.head.model):
        for batch in batches_by_length([len(d.input_ids) for d in documents]):
            position, *seen = of(batch)
            values, position = torch.stack([torch.ones_like(seen[0]), *seen]).double().cpu(), position.cpu()
            early = (position >= 0) & (position < POSITIONS)
            sums.index_add_(1, position[early], values[:, early])
    kept = sums[:, sums[0] > 0].numpy()
    model, reference, kl = (tuple(np.round(row, 9).tolist()) for row in kept[1:] / kept[0])
    return Profile(len(documents), tuple(kept[0].astype(int).tolist()), model, reference, kl)


def save_profiles(profiles: Mapping[str, Profile], folder: Path) -> None:
    """Writes the profiles of a run, by what was measured."""
    files.write(folder / FILE, {name: asdict(p) for name, p in profiles.items()})
