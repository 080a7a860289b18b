"""The harm probe: its states against the model's own, its fit against the formula, and what it makes of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.tiny_models import tiny_model
from pact_plugins.config import PromptsConfig
from pact_plugins.errors import PactError
from pact_plugins.method import harm_probe, prompting
from pact_plugins.method.harm_probe import PENALTY, HarmProbe, fit
from pact_plugins.method.prompting import Prompts
from pact_plugins.model.layer_states import LAYERS, LayerStates
from pact_plugins.model.subset_head import SubsetHead
from tests import tiny
from tests.caches import FULL_ONLY, IDS, but, look_up, made
from tests.rows import CHAT, alone, conversation, documents, few, packed

HARM = but(FULL_ONLY, harm="h")


def drawn(*shape: int, seed: int = 0, around: float = 0.0) -> Tensor:
    """Random states whose first number lies around something."""
    states = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    states[:, 0] += around
    return states


@torch.no_grad()
def states_of(model: Any, ids: list[int]) -> Tensor:
    """[F] the states of a two-layer model after its layers at the last of `ids`, before the last norm."""
    found: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _a, out: found.append(out[0, -1])) for layer in model.model.layers]
    model.eval()(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return torch.cat(found)


def test_the_fit_is_the_minimum_of_the_formula() -> None:
    """Prevents: kinds of different size that weigh by their number, and a fit that stops early."""
    harmful, harmless = drawn(20, 6, around=1.0), drawn(50, 6, seed=1, around=-1.0)
    probe = fit(harmful, harmless, harmless[:0])
    weights = probe.weights.double().requires_grad_()
    bias = torch.tensor(probe.bias, dtype=torch.double, requires_grad=True)
    known = torch.cat([harmful, harmless])
    z = ((known - known.mean(0)) / (known.std(0) + 1e-4) / 6**0.5).double() @ weights + bias
    loss = (F.softplus(-z[:20]).mean() + F.softplus(z[20:]).mean()) / 2 + PENALTY / 2 * weights.square().sum()
    loss.backward()
    assert weights.grad is not None
    assert bias.grad is not None
    assert max(weights.grad.abs().max(), bias.grad.abs()) < 1e-4
    torch.testing.assert_close(probe.score(known), torch.sigmoid(z).float().detach(), rtol=1e-4, atol=1e-5)


def test_a_data_set_is_taken_for_mostly_harmless() -> None:
    """Prevents: a task that sounds harmful being left out, and its harmful rows being learned with it."""
    harmful, harmless = drawn(60, 8, around=2.0), drawn(60, 8, seed=1, around=-2.0)
    task, bad = drawn(90, 8, seed=2, around=0.5), drawn(10, 8, seed=3, around=2.0)
    task[:, 1] += 6  # what sets it apart from all that is known
    before, after = (fit(harmful, harmless, own) for own in (task[:0], torch.cat([task, bad])))
    assert (before.score(task) > 0.5).float().mean() > 0.3
    assert (after.score(task) > 0.5).float().mean() < 0.05
    assert (after.score(bad) > 0.5).float().mean() > 0.85


def test_data_that_is_harmful_throughout_stays_so() -> None:
    """Prevents: a set of harmful rows alone that the probe adapts to, and lets through."""
    harmful, harmless = drawn(60, 8, around=2.0), drawn(60, 8, seed=1, around=-2.0)
    own = drawn(60, 8, seed=2, around=2.0)
    assert (fit(harmful, harmless, own).score(own) > 0.5).float().mean() > 0.85


def test_harm_is_scored_at_each_prompt_s_last_token(tmp_path: Path) -> None:
    """Prevents: the score of another answer, of another token or of padding, in whatever layout it is looked up."""
    head = SubsetHead(tiny.llama(), IDS)
    rows = [*few(), conversation(("a", "b"), ("c", "d"), ("e", "f"))]
    probe = HarmProbe(torch.zeros(64), torch.ones(64), drawn(1, 64)[0] / 8, 0.1)
    cache = made(tmp_path, head, rows, HARM, probe=lambda: probe)
    expected = []
    for row, document in zip(rows, documents(rows), strict=True):
        own = [states_of(head.model, row[0][: answer.start]) for answer in document.answers(CHAT)]
        _, found = look_up(cache, alone(row))
        assert found.harm is not None
        expected += (scores := probe.score(torch.stack(own)).tolist())
        np.testing.assert_allclose(found.harm, scores, atol=2e-3)
    assert max(expected) - min(expected) > 0.1
    _, together = look_up(cache, packed(rows))
    assert together.harm is not None
    np.testing.assert_allclose(together.harm, expected, atol=2e-3)
    cache.verify()


def test_both_views_beside_harm(tmp_path: Path) -> None:
    """Prevents: values of one view in the file of another."""
    head, rows = SubsetHead(tiny.llama(), IDS), few()
    probe = HarmProbe(torch.zeros(64), torch.ones(64), torch.zeros(64), 0.0)
    _, with_harm = look_up(made(tmp_path / "c", head, rows, but(harm="h"), probe=lambda: probe), packed(rows))
    _, without = look_up(made(tmp_path / "d", head, rows), packed(rows))
    assert with_harm.harm is not None
    assert without.harm is None
    assert (with_harm.harm == 0.5).all()
    assert with_harm.answer_only is not None
    assert without.answer_only is not None
    np.testing.assert_array_equal(with_harm.full, without.full)
    np.testing.assert_array_equal(with_harm.answer_only, without.answer_only)


def test_learns_the_same_whatever_the_order_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a shuffled data set, or another number of processes, being damped otherwise."""
    monkeypatch.setattr(harm_probe, "OWN_PROMPTS", 3)
    head, rows = SubsetHead(tiny.llama(), IDS), few(6)
    known = Prompts(("steal it", "burn it down"), ("buy it", "a longer harmless one"))
    one, other = (
        harm_probe.learn(head, tiny.tokenizer(), known, documents(data), CHAT, show_progress=False)
        for data in (rows, [*rows[::-1], rows[2]])
    )
    torch.testing.assert_close(one.weights, other.weights, rtol=0, atol=0)
    assert one.bias == other.bias
    chats = prompting.as_chats(tiny.tokenizer(), [*known.harmful, *known.harmless], "test")
    score = one.score(torch.stack([states_of(head.model, chat) for chat in chats]))
    assert (score > 0.5).tolist() == [True, True, False, False]


def test_needs_a_chat_template() -> None:
    """Prevents: a probe of prompts that the model never sees so, without a word."""
    tokenizer = tiny.tokenizer().__class__(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    with pytest.raises(PactError, match="conflict: keep"):
        harm_probe.learn(SubsetHead(tiny.llama(), IDS), tokenizer, Prompts(("a",), ("b",)), [], CHAT)


def test_known_prompts_are_apart() -> None:
    """Prevents: a prompt of both kinds, one that is held out to judge by, and a user's own that are not used."""
    known = harm_probe.prompts(PromptsConfig())
    held_out = {*prompting.shipped("held_out_harmful"), *prompting.shipped("held_out_harmless")}
    assert not {*known.harmful} & {*known.harmless}
    assert not {*known.harmful, *known.harmless} & held_out
    assert len({*known.harmful}) == len(known.harmful) > 300
    assert len({*known.harmless}) == len(known.harmless) > 500
    german = harm_probe.prompts(PromptsConfig(languages=["en", "de"]))
    assert {*prompting.shipped("harmful", "de")} <= {*german.harmful}
    docs = documents(few())
    names = {harm_probe.identity(prompts, own, CHAT) for prompts in (known, german) for own in (docs, docs[1:])}
    assert len(names) == 4
    assert harm_probe.identity(known, docs[::-1], CHAT) == harm_probe.identity(known, docs, CHAT)


@pytest.mark.parametrize(("layers", "read"), [(1, 1), (2, 2), (3, 2), (24, LAYERS)])
def test_layers_are_spread_from_the_middle_to_the_last(layers: int, read: int) -> None:
    """Prevents: a small model without layers to read, and the same layer read twice."""
    model = tiny.llama(num_hidden_layers=layers)
    chosen = LayerStates(model)._layers
    numbers = [list(model.model.layers).index(layer) + 1 for layer in chosen]
    assert numbers == sorted({*numbers})
    assert numbers[-1] == layers
    assert numbers[0] >= layers // 2
    assert len(numbers) == read


@pytest.mark.parametrize("model_type", ["gpt2", "gemma3n_text", "xlnet"])
def test_states_of_other_models(model_type: str) -> None:
    """Prevents: states of another token where layers put out tuples or several streams, or tokens before rows."""
    from transformers import AutoModelForCausalLM

    model = tiny_model(model_type, AutoModelForCausalLM)
    head, ids = SubsetHead(model.eval(), [3, 5]), torch.tensor([[7, 8, 9, 10], [11, 12, 13, 14]])
    layers = LayerStates(model)

    @torch.no_grad()
    def states(ids: Tensor, places: list[int]) -> Tensor:
        with layers.watch(torch.tensor(places), ids.shape) as found:
            head.decode(ids, torch.ones_like(ids))
        return layers.joined(found)

    if model_type == "xlnet":
        with pytest.raises(PactError, match="conflict: keep"):
            states(ids, [2])
        return
    both = states(ids, [2, 6])
    torch.testing.assert_close(states(ids[1:], [2])[0], both[1], rtol=1e-4, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-3
