"""The whole objective on a real model: against full logits, across layouts, and with everything that can go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pact_plugins.chat.answers import IGNORE_INDEX, AnswerTokens, split_documents
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.method import loss
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.run.preparation import Preparation, evidence_of, prepare
from pact_plugins.run.trainer import Start
from tests import tiny

TOKENS: list[int | str] = [40, 41, 42, 43]


def batch(n: int = 4) -> dict[str, torch.Tensor]:
    """A padded batch of two-turn conversations with labels on the answers."""
    tokenizer = tiny.tokenizer()
    rows = []
    for conversation in tiny.conversations(n, turns=2)["messages"]:
        encoded = tokenizer.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
        rows.append((encoded["input_ids"], encoded["assistant_masks"]))
    width = max(len(ids) for ids, _ in rows)
    inputs = {"input_ids": [], "labels": [], "attention_mask": []}
    for ids, mask in rows:
        pad = width - len(ids)
        inputs["input_ids"].append([*ids, *[2] * pad])
        inputs["labels"].append([*(i if m else IGNORE_INDEX for i, m in zip(ids, mask, strict=True)), *[-100] * pad])
        inputs["attention_mask"].append([1] * len(ids) + [0] * pad)
    return {name: torch.tensor(values) for name, values in inputs.items()}


def packed(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same documents in one row."""
    keep = inputs["attention_mask"].bool()
    lengths = keep.sum(1).tolist()
    return {
        "input_ids": inputs["input_ids"][keep].unsqueeze(0),
        "labels": inputs["labels"][keep].unsqueeze(0),
        "position_ids": torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0),
    }


def prepared(model: Any, folder: Path, inputs: dict[str, torch.Tensor], **settings: Any) -> Preparation:
    config = PactConfig(cache_dir=folder, **{"safety_tokens": TOKENS, "anchors": 0, **settings})
    return prepare(Start(model, tiny.tokenizer(), split_documents(inputs), config, show_progress=False))


def step(preparation: Preparation, model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Cross-entropy plus PACT, and every gradient."""
    model.zero_grad()
    objective = preparation.objective
    targets = objective.targets(inputs)
    with objective.watch(targets) as captured:
        given = {**inputs, "labels": targets.labels, "num_items_in_batch": targets.supervised}
        own = model(**given, use_cache=False).loss
    total = own + objective.config.weight * objective.terms(captured, targets).kl / targets.supervised
    total.backward()
    return total.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def moved(model: Any) -> Any:
    """The same model a little further, as if trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


SETTINGS = [
    {"objective": "paper", "conflict": "keep"},
    {"objective": "paper", "conflict": "damp", "gate": False},
    {"objective": "confidence", "conflict": "keep", "weight": 3.0},
    {"objective": "confidence", "conflict": "damp"},
    {"objective": "confidence", "gate": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_the_formulas_on_full_logits(settings: dict[str, Any], tmp_path: Path) -> None:
    """Prevents a wrong position, view, normaliser or weight anywhere between the batch and the gradient."""
    inputs, reference = batch(), tiny.llama().eval()
    model = tiny.llama()
    preparation = prepared(model, tmp_path, inputs, **settings)
    config = preparation.objective.config
    total, gradients = step(preparation, moved(model), inputs)

    model.zero_grad()
    ids = torch.tensor(TOKENS)
    logs = model(**inputs).logits.log_softmax(-1)
    bos = [tiny.tokenizer().bos_token_id] if config.answer_prefix == "bos" else []
    header = [*bos, *preparation.objective.chat.header]
    kl, damped, count, counted = 0.0, 0.0, 0, 0
    found = preparation.objective.reference.look_up(
        AnswerTokens.of(split_documents(inputs), preparation.objective.chat)
    )
    harms = [1.0] * 8 if found.harm is None else found.harm
    assert found.harm is None or 0 < sum(harms > 0.5) < 8
    cross_entropy = F.cross_entropy(logs[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    for row, labels in enumerate(inputs["labels"].tolist()):
        full = reference(**{k: v[row : row + 1] for k, v in inputs.items()}).logits[0].log_softmax(-1).detach()
        starts = [t for t in range(1, len(labels)) if labels[t] >= 0 and labels[t - 1] < 0]
        for start in starts:
            stop = next((t for t in range(start, len(labels)) if labels[t] < 0), len(labels))
            answer = labels[start:stop]
            short = reference(torch.tensor([header + answer[:-1]])).logits[0, len(header) - 1 :].log_softmax(-1)
            s, f, a = logs[row, start - 1 : stop - 1][:, ids], full[start - 1 : stop - 1][:, ids], short[:, ids]
            g = loss.gate(s, a, torch.arange(len(answer))) if config.active_gate else None
            harm = float(harms[counted])
            if config.objective == "paper":
                each = loss.paper(s, f, a, g, torch.ones(len(ids)))
            else:
                each = loss.confidence(s, f, a, g, torch.arange(len(ids)))
            kl = kl + each.sum() * (harm if config.damps else 1.0)
            if config.damps and harm > 0.5 and not {*answer[: loss.OPENING]} <= {*TOKENS}:
                damped = damped - logs[row, start - 1 : stop - 1].gather(1, torch.tensor(answer)[:, None]).sum()
            counted += 1
            count += len(answer)
    expected = cross_entropy + (config.weight * kl - damped) / count
    expected.backward()
    torch.testing.assert_close(total, expected.detach(), rtol=2e-4, atol=2e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=5e-3, atol=5e-4, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_packed_equals_padded(settings: dict[str, Any], tmp_path: Path) -> None:
    """Prevents a loss that depends on how documents are laid out."""
    inputs, model = batch(), tiny.llama(attn_implementation="sdpa")
    preparation = prepared(model, tmp_path, inputs, **settings)
    moved(model)
    loss_padded, padded_gradients = step(preparation, model, inputs)
    loss_packed, packed_gradients = step(preparation, model, packed(inputs))
    torch.testing.assert_close(loss_padded, loss_packed, rtol=1e-5, atol=1e-5)
    for name, gradient in padded_gradients.items():
        torch.testing.assert_close(gradient, packed_gradients[name], rtol=1e-4, atol=1e-5)


def test_confidence_adds_nothing_to_an_unchanged_model(tmp_path: Path) -> None:
    """Prevents a reference that is not the model before its first step."""
    inputs, model = batch(), tiny.llama().eval()
    objective = prepared(model, tmp_path, inputs, conflict="keep").objective
    targets = objective.targets(inputs)
    with objective.watch(targets) as captured:
        model(**inputs)
    terms = objective.terms(captured, targets)
    assert terms.count > 0
    assert abs(terms.kl.item() / terms.count) < 1e-6


def test_a_batch_without_answers_gives_a_connected_zero(tmp_path: Path) -> None:
    """Prevents NaN, or a parameter without gradient, when truncation leaves no answer."""
    inputs, model = batch(), tiny.llama()
    preparation = prepared(model, tmp_path, inputs)
    nothing = {**inputs, "labels": torch.full_like(inputs["labels"], IGNORE_INDEX)}
    targets = preparation.objective.targets(nothing)
    with preparation.objective.watch(targets) as captured:
        model(input_ids=nothing["input_ids"])
    total = preparation.objective.terms(captured, targets).kl
    total.backward()
    assert total.item() == 0


def test_an_unknown_sequence_stops_the_run(tmp_path: Path) -> None:
    """Prevents answers that train without PACT."""
    inputs = batch()
    objective = prepared(tiny.llama(), tmp_path, inputs).objective
    inputs["input_ids"][0, 3] = 99
    with pytest.raises(PactError, match="without PACT"):
        objective.targets(inputs)


def test_a_flipped_bit_stops_the_run(tmp_path: Path) -> None:
    """Prevents a damaged file from becoming the reference."""
    inputs = batch()
    objective = prepared(tiny.llama(), tmp_path, inputs).objective
    (path,) = objective.reference.folder.glob("*/full.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(PactError, match="checksum"):
        prepared(tiny.llama(), tmp_path, inputs).objective.targets(inputs)


def test_the_next_run_finds_the_cache(tmp_path: Path) -> None:
    """Prevents a reference that is computed again at every start, or found for another model."""
    inputs = batch()
    assert prepared(tiny.llama(), tmp_path, inputs).computed.rows
    assert not prepared(tiny.llama(), tmp_path, inputs).computed.rows
    assert prepared(moved(tiny.llama()), tmp_path, inputs).computed.rows


def test_resuming_keeps_the_first_reference(tmp_path: Path) -> None:
    """Prevents trained weights from being taken for the reference."""
    inputs = batch()
    first = prepared(tiny.llama(), tmp_path, inputs)
    evidence_of(first).save(tmp_path / "out")
    trained = moved(tiny.llama())
    documents, config = split_documents(inputs), first.objective.config
    again = prepare(
        Start(trained, tiny.tokenizer(), documents, config, resumed_from=tmp_path / "out", show_progress=False)
    )
    assert again.objective.reference.folder == first.objective.reference.folder
    with pytest.raises(PactError, match="no reference"):
        prepare(Start(trained, tiny.tokenizer(), documents, config, resumed_from=tmp_path, show_progress=False))


def test_data_without_answers_is_refused(tmp_path: Path) -> None:
    """Prevents a run that constrains nothing."""
    inputs = batch()
    inputs["labels"][:] = IGNORE_INDEX
    with pytest.raises(PactError, match="answer token"):
        prepared(tiny.llama(), tmp_path, inputs)


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    """Prevents ids that select unrelated tokens."""
    tokens = SafetyTokens((3,), (1.0,), ("x",), 32_000, "another tokenizer")
    tokens.save(tmp_path / "tokens.json")
    with pytest.raises(PactError, match="another one"):
        prepared(tiny.llama(), tmp_path, batch(), safety_tokens=tmp_path / "tokens.json")
    (tmp_path / "tokens.json").write_text((tmp_path / "tokens.json").read_text().replace("32000", "32001"))
    with pytest.raises(PactError, match="checksum"):
        prepared(tiny.llama(), tmp_path, batch(), safety_tokens=tmp_path / "tokens.json")
