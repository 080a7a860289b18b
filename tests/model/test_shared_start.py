"""Sequences that begin alike: the same states behind a start that was kept as without it."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.tiny_models import tiny_model
from pact_plugins.chat.answers import Document
from pact_plugins.model.layer_states import LayerStates
from pact_plugins.model.shared_start import SharedStart
from pact_plugins.model.subset_head import SubsetHead

START = [5, 6, 7, 8]


def documents(*ends: list[int]) -> list[Document]:
    """A document of the start and each end."""
    return [Document(np.array([*START, *end]), np.zeros(len(START) + len(end), bool)) for end in ends]


def states(head: SubsetHead, start: SharedStart, batch: list[Document]) -> Tensor:
    """[n, F] at the last token of each."""
    layers, (shape, last) = LayerStates(head.model), start.places(batch)
    with layers.watch(last, shape) as found:
        start.run(batch)
    return layers.joined(found)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "bloom", "opt", "mamba", "recurrent_gemma"])
@torch.no_grad()
def test_states_are_those_of_whole_sequences(model_type: str) -> None:
    """Prevents: positions, windows or masks that begin anew behind the start, and a decoder that cannot go on."""
    head = SubsetHead(tiny_model(model_type, AutoModelForCausalLM).eval(), [3, 5])
    batch = documents([9, 10, 11], [12], [13, 14, 15, 16, 17])
    start = SharedStart(head, batch)
    assert start.length == (0 if model_type in ("mamba", "recurrent_gemma") else len(START))
    alone = torch.cat([states(head, SharedStart(head, [document]), [document]) for document in batch])
    for _ in range(2):  # a batch leaves the start as it was
        torch.testing.assert_close(states(head, start, batch), alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_sequence_keeps_a_token_of_its_own() -> None:
    """Prevents: a sequence that is the start of another, of which nothing is left to run."""
    head = SubsetHead(tiny_model("llama", AutoModelForCausalLM).eval(), [3, 5])
    batch = documents([], [9], [9, 10])
    start = SharedStart(head, batch)
    assert start.length == len(START) - 1
    alone = torch.cat([states(head, SharedStart(head, [document]), [document]) for document in batch])
    torch.testing.assert_close(states(head, start, batch), alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_decoder_that_goes_on_otherwise_is_asked_whole() -> None:
    """Prevents: states behind keys and values that a decoder reads at other places, taken for its own."""
    head = SubsetHead(tiny_model("llama", AutoModelForCausalLM).eval(), [3, 5])
    own = SharedStart._behind
    with patch.object(SharedStart, "_behind", lambda self, ids, mask: own(self, ids.flip(1), mask)):
        assert SharedStart(head, documents([9, 10, 11], [12])).length == 0
