"""The drift probe's margin, beside a direct computation; `tests/contract` has it measure real runs of both hosts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pact_plugins.config import ProbeConfig
from pact_plugins.errors import PactError
from pact_plugins.method.prompting import as_chats, shipped
from pact_plugins.method.refusal_probe import OPENING_TOKENS, OPENINGS, Margins, Probe
from pact_plugins.model.subset_head import SubsetHead
from tests import tiny

CONFIG = ProbeConfig(prompts=5)


@torch.no_grad()
def direct(model: Any, prompt: list[int]) -> float:
    """The formula word by word: one unpadded sequence after the other, with full-vocabulary logits in float64."""
    tokenizer, probability = tiny.tokenizer(), {}
    for name in ("refusals", "compliances"):
        openings = {tuple(tokenizer(text).input_ids[:OPENING_TOKENS]) for text in shipped(name)[:OPENINGS]}
        probability[name] = torch.tensor(0.0, dtype=torch.float64)
        for opening in openings:
            p = model(input_ids=torch.tensor([[*prompt, *opening]])).logits[0].double().softmax(-1)
            own = [p[len(prompt) + i - 1, token] for i, token in enumerate(opening)]
            probability[name] += torch.stack(own).prod()
    return (probability["refusals"].log() - probability["compliances"].log()).item()


def test_margins_equal_the_formula() -> None:
    """Prevents: a margin of other tokens, of padding, or of the wrong prompt: batches are sorted by length."""
    model = tiny.llama().eval()
    head, probe = SubsetHead(model, [40, 41]), Probe(tiny.tokenizer(), CONFIG)
    expected = {}
    for kind in ("harmful", "harmless"):
        chats = as_chats(tiny.tokenizer(), shipped(f"held_out_{kind}")[:5], "test")
        expected[kind] = [direct(model, chat) for chat in chats]
        assert probe.margins(head, chats).tolist() == pytest.approx(expected[kind], abs=1e-4)
    found = Margins.of(probe.sums(head).tolist())
    assert found.harmful == pytest.approx(sum(expected["harmful"]) / 5, abs=1e-4)
    assert found.harmless == pytest.approx(sum(expected["harmless"]) / 5, abs=1e-4)
    assert found.refusing == sum(margin > 0 for margin in expected["harmful"]) / 5
    assert 0 < found.refusing < 1 or found.harmful * (found.refusing - 0.5) > 0


@pytest.mark.parametrize("parts", [2, 7])
def test_parts_add_up(parts: int) -> None:
    """Prevents: processes that measure twice or not at all, and a crash of those that have no prompt left."""
    head, probe = SubsetHead(tiny.llama(), [40, 41]), Probe(tiny.tokenizer(), CONFIG)
    whole = probe.sums(head)
    together = torch.stack([probe.sums(head, part, parts) for part in range(parts)]).sum(0)
    torch.testing.assert_close(together, whole, rtol=1e-4, atol=1e-4)
    assert whole[3] == 5


def test_leaves_the_model_alone() -> None:
    """Prevents: a run that changes because it is watched: dropout's random numbers, modes, gradients."""
    model = tiny.llama(attention_dropout=0.5).train()
    model.lm_head.eval()
    head, probe = SubsetHead(model, [40, 41]), Probe(tiny.tokenizer(), CONFIG)
    state = torch.get_rng_state()
    first = probe.sums(head)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, probe.sums(head))
    assert not first.requires_grad
    assert model.training
    assert not model.lm_head.training
    assert all(p.grad is None for p in model.parameters())


def test_counts_what_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a stated cost of other forward passes than those that are made."""
    model, tokens = tiny.llama(), []
    head, probe = SubsetHead(model, [40, 41]), Probe(tiny.tokenizer(), CONFIG)
    model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, kw: tokens.append(int(kw["attention_mask"].sum())), with_kwargs=True
    )
    probe.sums(head)
    assert sum(tokens) == probe.tokens
    assert probe.opening_tokens == 2 * 5 * OPENING_TOKENS * (len(probe._refusing) + len(probe._complying))


def test_needs_a_chat_template() -> None:
    """Prevents: margins of prompts that the model does not read as a chat."""
    tokenizer = tiny.tokenizer.__wrapped__()
    tokenizer.chat_template = None
    with pytest.raises(PactError, match=r"`pact\.probe: false`"):
        Probe(tokenizer, CONFIG)


def test_held_out_prompts_are_held_out() -> None:
    """Prevents: a probe, or an evaluation, of what safety tokens and anchors were made of."""
    harmful, harmless = shipped("held_out_harmful"), shipped("held_out_harmless")
    assert len({*harmful, *harmless}) == len(harmful) + len(harmless) == 256
    assert not {*harmful, *harmless} & {*shipped("harmful"), *shipped("harmless")}
    assert len(shipped("compliances")) == OPENINGS <= len(shipped("refusals"))
