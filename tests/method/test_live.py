"""The reference that is computed in each step: the same as the cached one, whatever the adapter has become."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftConfig, VeraConfig, get_peft_model
from torch import nn

from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.method.damping import by_answer
from pact_plugins.method.harm_probe import HarmProbe
from pact_plugins.method.live import LiveReference
from pact_plugins.method.objective import PactObjective
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.model import adapter, parity
from pact_plugins.model.fingerprints import model_fingerprint
from pact_plugins.model.parity import check_taken_off
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.model.support import decoder_of
from tests import tiny
from tests.caches import FULL_ONLY, HALF, IDENTITY, IDS, but, look_up, made
from tests.rows import CHAT, alone, documents, few, packed, padded

TARGETS = ["q_proj", "v_proj"]


def adapted(kind: PeftConfig | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(tiny.llama(), kind or LoraConfig(r=4, target_modules=TARGETS, **settings))


def move(model: nn.Module) -> None:
    """As if it had been trained for long."""
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += torch.randn_like(parameter)


@pytest.mark.parametrize("identity", [FULL_ONLY, IDENTITY, but(reach=2), but(harm="h", reach=None)], ids=str)
@pytest.mark.parametrize("batch", [padded, packed])
def test_it_equals_the_cache(identity: Any, batch: Any, tmp_path: Path) -> None:
    """Prevents: a run that is held to something else because its data streams, or to what it has become."""
    model, rows = adapted(), few()
    head = SubsetHead(model, IDS)
    width = 2 * model.config.hidden_size
    probe = HarmProbe(torch.zeros(width), torch.ones(width), torch.randn(width), 0.1)
    cached = made(tmp_path, head, rows, identity, probe=lambda: probe)
    move(model)
    modes = [module.training for module in model.train().modules()]
    drawn = torch.get_rng_state()
    live: Any = LiveReference(head, identity, CHAT, probe if identity.harm else None, nullcontext)
    (_, expected), (_, found) = (look_up(of, batch(rows)) for of in (cached, live))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [module.training for module in model.modules()] == modes
    for name in ("full", "answer_only", "harm"):
        one, other = getattr(expected, name), getattr(found, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            assert np.abs(one.astype(np.float32) - other.astype(np.float32)).max() < HALF
    with torch.no_grad():
        hidden = look_up(made(tmp_path / "moved", head, rows, identity, probe=lambda: probe), batch(rows))[1]
    assert np.abs(hidden.full.astype(np.float32) - found.full.astype(np.float32)).max() > 10 * HALF


def test_a_batch_without_an_answer(tmp_path: Path) -> None:
    """Prevents: a stream that stops the run where a batch was cut before all of its answers."""
    live: Any = LiveReference(SubsetHead(adapted(), IDS), IDENTITY, CHAT, None, nullcontext)
    batch = alone(few()[0])
    tokens, found = look_up(live, {**batch, "labels": torch.full_like(torch.as_tensor(batch["labels"]), -100)})
    assert len(tokens) == len(found.full) == 0


def test_conflicts_of_many_rows_take_few_passes() -> None:
    """Prevents: a stream that begins with a pass for each of its first rows, and the conflict of another row."""
    model = adapted()
    head, width = SubsetHead(model, IDS), 2 * model.config.hidden_size
    probe = HarmProbe(torch.zeros(width), torch.ones(width), 0.1 * torch.randn(width), 0.1)
    live = LiveReference(head, but(harm="h", reach=None), CHAT, probe, nullcontext)
    tokens = SafetyTokens.build(IDS, [1.0] * len(IDS), tiny.tokenizer(), {})
    objective = PactObjective(PactConfig(anchors=0), tokens, CHAT, head, live)
    rows = documents(few(6))
    rows.insert(3, replace(rows[0], supervised=np.zeros_like(rows[0].supervised)))  # without an answer
    passes: list[None] = []
    with decoder_of(head.base).register_forward_hook(lambda *_: passes.append(None)):
        found = [*by_answer(objective, rows)]
    assert len(passes) < len(rows) / 2
    assert [len(conflicts) for conflicts in found] == [1, 2, 1, 0, 2, 1, 2]
    for row, conflicts in zip(rows, found, strict=True):
        assert conflicts == pytest.approx(next(by_answer(objective, [row])), abs=1e-3)
    assert len({round(conflict, 2) for conflicts in found for conflict in conflicts}) > 2


def test_what_is_trained_stays_so() -> None:
    """Prevents: an adapter whose frozen half is trained, or that is frozen, after the first step."""
    model = adapted()
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(RuntimeError), adapter.taken_off(model):
        raise RuntimeError
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert 0 < sum(before) < len(before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ""),
        ({"use_dora": True}, ""),
        ({"modules_to_save": ["lm_head"]}, ""),
        ({"init_lora_weights": "gaussian"}, ""),
        ({"init_lora_weights": "pissa"}, r"adds something from the start (`init_lora_weights: pissa`)"),
        ({"init_lora_weights": "olora"}, r"adds something from the start (`init_lora_weights: olora`)"),
        ({"init_lora_weights": False}, "adds something from the start"),
        ({"bias": "all"}, "trained beside its adapter"),
    ],
    ids=str,
)
def test_which_adapters_leave_the_model_as_it_was(settings: dict[str, Any], words: str) -> None:
    """Prevents: a reference of a model that never was, or that goes with what is trained beside the adapter."""
    model = adapted(**settings)
    if settings.get("bias"):
        model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.bias = nn.Parameter(torch.zeros(64))
    assert (words in adapter.lost(model)) if words else not adapter.lost(model)
    if not words:
        check_taken_off(SubsetHead(model, IDS), trained=False)


def test_a_whole_model_is_lost() -> None:
    assert adapter.lost(tiny.llama()) == adapter.WHOLE


def test_an_adapter_of_another_kind_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an adapter that adds something or stays on, which no name tells."""
    vera = VeraConfig(r=4, target_modules=["q_proj"], d_initial=0.1)
    check_taken_off(SubsetHead(adapted(vera), IDS), trained=False)
    model = adapted(vera)
    move(model)
    check_taken_off(SubsetHead(model, IDS), trained=True)
    with pytest.raises(PactError, match="from the start"):
        check_taken_off(SubsetHead(model, IDS), trained=False)
    model = adapted()
    monkeypatch.setattr(parity, "taken_off", lambda _model: nullcontext())
    with pytest.raises(PactError, match="once the adapter is trained"):
        check_taken_off(SubsetHead(model, IDS), trained=False)


def test_the_model_below_an_adapter_has_an_identity() -> None:
    """Prevents: a resumed stream beside another model, or one that is refused beside its own."""
    model = adapted()
    before = model_fingerprint(model, adapter=False)
    assert before == model_fingerprint(model) == model_fingerprint(tiny.llama())
    move(model)
    assert before == model_fingerprint(model, adapter=False) != model_fingerprint(model)
    with torch.no_grad():
        model.get_base_model().model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert before != model_fingerprint(model, adapter=False)
