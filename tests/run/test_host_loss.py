"""What hosts and people make of labels: the safety term takes the same scale, and damping takes the labels away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pact_plugins.chat.answers import AnswerTokens, split_documents
from pact_plugins.errors import PactError
from pact_plugins.method import loss
from pact_plugins.method.anchors import WEIGHT
from pact_plugins.method.objective import Terms
from pact_plugins.run.callback import PactCallback
from pact_plugins.run.host_loss import HostLoss
from tests import tiny
from tests.contract.hosts import TOKENS, config, trl_trainer
from tests.contract.matrix import TokenLoss, dft, focal, own_mean, plain, smoothed, unchanged, with_function

pytestmark = pytest.mark.trl


def _beside_labels(trainer: Any) -> None:
    """A distillation: labels are one part of what it learns from."""

    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        value = outputs.loss + outputs.logits.logsumexp(-1).mean()
        return (value, outputs) if return_outputs else value

    trainer.compute_loss = compute_loss


def _without_labels(trainer: Any) -> None:
    """A distillation alone."""

    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        value = outputs.logits.logsumexp(-1).mean() + 0.0 * labels.sum()
        return (value, outputs) if return_outputs else value

    trainer.compute_loss = compute_loss


CASES: dict[str, tuple[dict[str, Any], Callable[[Any], None], TokenLoss, bool]] = {
    "plain": ({}, unchanged, plain, True),
    "dft": ({"loss_type": "dft"}, unchanged, dft, True),
    "label smoothing": ({"label_smoothing_factor": 0.1}, unchanged, smoothed, True),
    "a function of one's own": ({}, with_function, focal, True),
    "a mean of one's own": ({}, own_mean, plain, False),
}
"""Settings of TRL, what is done to its trainer, the loss of a token, and whether it is divided by the items given."""


def _prepared(folder: Path, settings: dict[str, Any], change: Callable[[Any], None], **pact: Any) -> PactCallback:
    trainer = trl_trainer(tiny.llama(), folder, **settings)
    change(trainer)
    callback = PactCallback(trainer, config(folder, **pact))
    callback.on_train_begin()
    trainer.current_gradient_accumulation_steps = 3  # as the training loop sets it
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    trainer.model.train()
    return callback


def _expected(callback: PactCallback, batch: dict[str, Tensor], each: TokenLoss, divisor: float) -> tuple[Tensor, int]:
    """The loss of a micro-batch from full logits, and how many of its tokens are damped."""
    assert callback.binding is not None
    assert callback.binding.preparation is not None
    objective, model = callback.binding.preparation.objective, callback.trainer.model
    tokens = AnswerTokens.of(split_documents(batch), objective.chat)
    reference = objective.reference.look_up(tokens)
    assert reference.harm is not None
    harm, ids = torch.from_numpy(reference.harm).float()[tokens.answer], torch.tensor(TOKENS)
    label, row, column = (torch.from_numpy(part) for part in (tokens.label, tokens.row, tokens.column))
    held = torch.isin(label, ids)
    position, answer = torch.from_numpy(tokens.position), torch.from_numpy(tokens.answer)
    turns = torch.zeros(len(reference.harm)).index_add_(0, answer, (~held & (position < loss.OPENING)).float())
    damped = (harm > 0.5) & (turns[answer] > 0)
    logs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[row, column]
    logs = logs.log_softmax(-1)
    kl = loss.divergence(logs[:, ids], torch.from_numpy(reference.full).float()) * harm
    return (each(logs, label)[~damped].sum() + kl.sum()) / divisor, int(damped.sum())


@pytest.mark.parametrize("name", CASES)
def test_the_term_and_damping_beside_any_loss(name: str, tmp_path: Path) -> None:
    """Prevents: plain cross-entropy subtracted from another loss, and a divergence at another scale than the loss."""
    settings, change, each, per_item = CASES[name]
    callback = _prepared(tmp_path, settings, change)
    trainer, model = callback.trainer, callback.trainer.model
    assert callback.binding is not None
    assert callback.binding.training_loss is not None
    assert callback.binding.training_loss.host == HostLoss(per_item)
    items, damped = 500, list[int]()
    for batch in trainer.get_train_dataloader():
        labels = int((batch["labels"][:, 1:] != -100).sum())
        expected, left_out = _expected(callback, batch, each, items if per_item else labels)
        damped += [left_out, labels - left_out]
        found = trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(items))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        theirs, ours = (torch.autograd.grad(value, list(model.parameters())) for value in (expected, found))
        for one, other in zip(theirs, ours, strict=True):
            torch.testing.assert_close(other.to_dense(), one, rtol=1e-3, atol=1e-5)
    assert all(sum(damped[part::2]) for part in (0, 1))  # some are, and some are not


@pytest.mark.parametrize("name", CASES)
def test_a_micro_batch_that_is_damped_whole(name: str, tmp_path: Path) -> None:
    """Prevents: a mean over no labels, which is not a number, and weights lost for good."""
    settings, change, _each, per_item = CASES[name]
    callback = _prepared(tmp_path, settings, change, conflict_threshold=0.0)
    batch = next(iter(callback.trainer.get_train_dataloader()))
    labels = int((batch["labels"][:, 1:] != -100).sum())
    expected, _ = _expected(callback, batch, lambda logs, _: 0.0 * logs[:, 0], 500 if per_item else labels)
    found = callback.trainer.compute_loss(callback.trainer.model, dict(batch), num_items_in_batch=torch.tensor(500))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.backward()
    assert all(parameter.grad.to_dense().isfinite().all() for parameter in callback.trainer.model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_anchors_weigh_as_much_as_a_step_of_the_host(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: anchors at a third of their weight, where the host adds up the means of three micro-batches."""
    settings, change, _each, per_item = CASES[name]
    callback = _prepared(tmp_path, settings, change)
    trainer, binding = callback.trainer, callback.binding
    assert binding is not None
    batch = next(iter(trainer.get_train_dataloader()))
    given = {"num_items_in_batch": torch.tensor(500)}
    without = trainer.compute_loss(trainer.model, dict(batch), **given)
    assert binding.preparation is not None
    objective, kl = binding.preparation.objective, torch.tensor(70.0)
    monkeypatch.setattr(objective, "anchors", SimpleNamespace(rows=lambda _turn: [0], tokens=lambda _rows: 10))
    monkeypatch.setattr(objective, "anchor_terms", lambda *_: Terms(kl, 10, {"kl": kl}))
    beside = trainer.compute_loss(trainer.model, dict(batch), **given) - without
    assert beside.item() == pytest.approx(WEIGHT * (7.0 if per_item else 21.0), rel=1e-4)


@pytest.mark.parametrize("change", [_beside_labels, _without_labels])
def test_a_loss_that_labels_do_not_rule_is_not_damped(change: Callable[[Any], None], tmp_path: Path) -> None:
    """Prevents: harmful rows that go on being learned although they were damped."""
    with pytest.raises(PactError, match=r"a loss of the tokens that have a label.*`pact\.conflict: keep`"):
        _prepared(tmp_path, {}, change)
    _prepared(tmp_path, {}, change, conflict="keep")


def test_what_is_added_to_a_loss_beside_tokens_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """Prevents: a refusal of AdaLoRA and of mixtures of experts, whose losses have a term for what no label says."""

    def regularised(trainer: Any) -> None:
        own = trainer.compute_loss
        trainer.compute_loss = lambda *args, **kw: own(*args, **kw) + 10.0

    callback = _prepared(tmp_path, {}, regularised)
    assert callback.binding is not None
    assert callback.binding.training_loss is not None
    assert callback.binding.training_loss.host.per_item
