"""The script that makes a small model refuse: what it teaches, what it keeps aside, and its loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from benchmarks import teach_refusals
from pact_plugins.demo.training import load
from pact_plugins.demo.world import Row


@pytest.mark.parametrize("harmful", [True, False])
def test_what_is_held_out_is_not_taught(harmful: bool) -> None:
    """Settings would otherwise be chosen by prompts that the model has learnt by heart."""
    taught = {kind: set(teach_refusals.prompts(kind, seed=0)) for kind in (True, False)}
    held_out = teach_refusals.held_out_prompts(harmful)
    assert all(len(prompts) > 20 for prompts in held_out.values())
    assert not {prompt for prompts in held_out.values() for prompt in prompts} & (taught[True] | taught[False])


def test_no_request_is_taught_both_ways() -> None:
    """The model would learn to toss a coin."""
    assert not set(teach_refusals.prompts(True, seed=0)) & set(teach_refusals.prompts(False, seed=0))


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("harmful", [True, False])
def test_every_hole_is_filled(harmful: bool, held_out: bool) -> None:
    """A slip in the file's notation would be taught as it stands."""
    for prompt in teach_refusals.contrasts(harmful, held_out, seed=0):
        assert prompt[-1] in "?."
        assert not set(prompt) & set("{}|;@="), prompt


def test_the_loss_equals_the_plain_one_and_its_gradient() -> None:
    """A shared beginning that is read wrongly would still train, on something else."""
    model, tokenizer = load()
    rows = [Row("How do I row a boat?", "Take the oars.", False), Row("How do I steal a car?", "I can't.", True)]
    ids, mask, targets = teach_refusals.batch_of(tokenizer, rows)

    def gradients(loss: Any, of: Any) -> list[torch.Tensor]:
        loss.backward()
        return [p.grad for p in of.parameters()]

    other = copy.deepcopy(model)
    found = teach_refusals.answer_loss(model, ids, mask, targets)
    logits = other(input_ids=ids, attention_mask=mask).logits
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(gradients(found, model), gradients(plain, other))


def test_only_a_whole_answer_ends() -> None:
    """A model that is taught to end in the middle of a sentence would do so in every task."""
    _, tokenizer = load()
    long = Row("How do I row a boat?", "Take the oars and row. " * 20, False)
    short = Row("How do I row a boat?", "Row.", False)
    ends = [teach_refusals.batch_of(tokenizer, [row])[2][0, -1] for row in (long, short)]
    assert ends[0] != tokenizer.eos_token_id
    assert ends[1] == tokenizer.eos_token_id
