"""The formulas of what PACT costs, against what a build stores and runs, and against counted operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pact_plugins.chat.answers import AnswerTokens
from pact_plugins.model.subset_head import Request, SubsetHead
from pact_plugins.run.cost import (
    Data,
    ModelSize,
    Overhead,
    Step,
    cache_bytes,
    count_reached_tokens,
    forward_lengths,
    padded_tokens,
    stratified,
)
from tests import tiny
from tests.caches import but, made
from tests.rows import CHAT, conversation, documents, few

IDS = [50, 7, 80, 200]
ROWS = [*few(), conversation(("another question", "answer 0"))]
"""The last answer is the first row's too."""


@contextmanager
def tokens_run(model: Any) -> Iterator[list[int]]:
    """Tokens of each forward pass of the decoder."""
    counts: list[int] = []
    hook = model.get_decoder().register_forward_hook(
        lambda _m, _args, kw, _out: counts.append(kw["input_ids"].numel()), with_kwargs=True
    )
    yield counts
    hook.remove()


@pytest.mark.parametrize("reach", [0, 3, 1000])
def test_figures_are_those_of_a_build(reach: int, tmp_path: Path) -> None:
    """Prevents: an estimate of a cache that is not the one that the run then makes."""
    docs = documents([*ROWS, ROWS[0]])
    model = tiny.llama()
    with tokens_run(model) as run:
        cache = made(tmp_path, SubsetHead(model, IDS), [*ROWS, ROWS[0]], but(reach=reach or None))
    (segment,) = cache.stores[0].segments
    data = Data.of(docs, [len(AnswerTokens.of([d], CHAT)) for d in docs])
    distinct = list({d.key: d for d in docs}.values())
    reached = sum(count_reached_tokens(d, CHAT, reach) for d in distinct)
    stored = sum(values.nbytes for values in segment.views.values())
    assert (data.distinct, data.answer_tokens) == (len(segment), segment.manifest.values["full"])
    assert cache_bytes(data.answer_tokens, reached, len(IDS)) == stored
    assert padded_tokens(forward_lengths(distinct, CHAT, reach)) == sum(run)


def test_data_counts_an_epoch_and_its_distinct_part() -> None:
    """Prevents: duplicates that are paid for once being counted twice, or the other way round."""
    docs = documents([ROWS[0], ROWS[1], ROWS[0]])
    data = Data.of(docs, counts := [len(AnswerTokens.of([d], CHAT)) for d in docs])
    assert (data.sequences, data.distinct, data.unanswered) == (3, 2, 0)
    assert data.answer_tokens == counts[0] + counts[1]
    assert data.answer_tokens_per_epoch == 2 * counts[0] + counts[1]
    assert data.tokens == sum(len(ROWS[i][0]) for i in (0, 1, 0))
    without = Data.of(docs, [counts[0], 0, counts[0]])
    assert (without.distinct, without.unanswered, without.answer_tokens) == (1, 1, counts[0])


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=300), st.integers(1, 40))
def test_the_sample_is_drawn_across_lengths(lengths: list[int], size: int) -> None:
    """Prevents: a build time from short sequences, or from long ones, only."""
    chosen = stratified(lengths, size)
    assert len(set(chosen)) == len(chosen) == min(size, len(lengths))
    if size <= len(lengths):
        ordered = sorted(lengths)
        for k, i in enumerate(chosen):
            low, high = k * len(lengths) / size, (k + 1) * len(lengths) / size
            assert ordered[int(low)] <= lengths[i] <= ordered[min(int(high), len(lengths) - 1)]


def counted(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_flop_of_a_step(tied: bool, checkpointing: bool, lora: bool) -> None:
    """Prevents: a share of something else than what a step really computes."""
    model: Any = tiny.llama(hidden_size=256, intermediate_size=512, num_hidden_layers=6, tie_word_embeddings=tied)
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
        model.enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    ids = torch.arange(16).reshape(2, 8)
    flop = counted(lambda: model(input_ids=ids, labels=ids).loss.backward())
    size = ModelSize.of(model)
    assert (size.checkpointing, size.head_trained) == (checkpointing, not lora)
    # The formula leaves out attention's products; and the second forward pass ends before each layer's last one.
    assert size.step_flop(ids.numel()) == pytest.approx(flop, rel=0.08)


@pytest.mark.parametrize("head_trained", [False, True])
def test_flop_of_the_subset_head_and_the_log_normaliser(head_trained: bool) -> None:
    """Prevents: a formula that leaves out a pass over the head."""
    model = tiny.llama()
    model.get_output_embeddings().requires_grad_(head_trained)
    head = SubsetHead(model, IDS)
    hidden = torch.randn(1, 10, 32, requires_grad=True)
    flat = torch.arange(7)

    def backward(normalise: bool) -> None:
        capture = head._capture(hidden, Request(flat, flat, normalise=normalise), None)
        total = capture.logits.sum()
        (total if capture.log_normaliser is None else total + capture.log_normaliser.sum()).backward()

    size = ModelSize.of(model)
    subset = counted(lambda: backward(normalise=False))
    assert subset == size.subset_head_flop(7, len(IDS))
    assert counted(lambda: backward(normalise=True)) - subset == size.log_normaliser_flop(7)


def test_shares_of_a_step() -> None:
    """Prevents: an overhead whose parts do not belong to the same step."""
    data = Data(sequences=40, distinct=40, unanswered=0, tokens=4000, answer_tokens=800, answer_tokens_per_epoch=800)
    anchors = documents(ROWS[:2])
    step = Step.of(data, steps_per_epoch=10, anchors=anchors, anchors_per_step=2)
    assert (step.tokens, step.answer_tokens) == (400, 80)
    assert step.anchor_tokens == sum(len(d.input_ids) for d in anchors)
    size = ModelSize(10_000, 0, hidden=10, vocabulary=100, head_trained=False, checkpointing=False)
    shares = Overhead.of(step, size, 5, log_normaliser=True)
    own = 4 * 10_000 * 400
    assert shares.anchors == pytest.approx(step.anchor_tokens / 400)
    assert shares.subset_head == pytest.approx(4 * (80 + step.anchor_answer_tokens) * 5 * 10 / own)
    assert shares.log_normaliser == pytest.approx(6 * 80 * 100 * 10 / own)
    assert shares.total == pytest.approx(shares.anchors + shares.subset_head + shares.log_normaliser)
    without = Overhead.of(Step.of(data, 10, [], 0), size, 5, log_normaliser=False)
    assert (without.anchors, without.log_normaliser, without.probe) == (0, 0, 0)


def test_share_of_a_reference_in_each_step() -> None:
    """Prevents: one more forward pass whose cost is not in the total, or of a head over every token."""
    data = Data(sequences=40, distinct=40, unanswered=0, tokens=4000, answer_tokens=800, answer_tokens_per_epoch=800)
    size = ModelSize(10_000, 0, hidden=10, vocabulary=100, head_trained=False, checkpointing=False)
    shares = Overhead.of(Step.of(data, 10, [], 0, 3000), size, 5, log_normaliser=False)
    assert shares.reference == pytest.approx(size.forward_flop(300, 80) / (4 * 10_000 * 400))
    assert shares.total == shares.subset_head + shares.reference


def test_share_of_the_probe() -> None:
    """Prevents: a probe whose cost is not in the total, or of a head over every token."""
    data = Data(sequences=40, distinct=40, unanswered=0, tokens=4000, answer_tokens=800, answer_tokens_per_epoch=800)
    size = ModelSize(10_000, 0, hidden=10, vocabulary=100, head_trained=False, checkpointing=False)
    flop = size.forward_flop(600, 50)
    assert flop == 2 * 9_000 * 600 + 2 * 1_000 * 50
    shares = Overhead.of(Step.of(data, 10, [], 0), size, 5, log_normaliser=False, probe_flop=flop / 100)
    assert shares.probe == pytest.approx(flop / 100 / (4 * 10_000 * 400))
    assert shares.total == shares.subset_head + shares.probe
