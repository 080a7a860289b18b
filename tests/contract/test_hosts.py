"""One contract for every host: the same data gives the same loss and the same gradients as a bare loop."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from transformers import TrainingArguments

from pact_plugins import PactCallback, PactError
from pact_plugins.chat.answers import split_documents
from pact_plugins.method.anchors import WEIGHT
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.preflight.requirements import TESTED
from pact_plugins.run.documents import training_documents
from pact_plugins.run.preparation import prepare
from pact_plugins.run.trainer import Start
from tests import tiny
from tests.contract.hosts import HOSTS, Trainer, axolotl_trainer, common, config, model_of, trl_trainer
from tests.counting import Counting
from tests.rows import documents, few, packed, padded

pytestmark = pytest.mark.usefixtures("brief_runs")

SOME = 0.03
"""A conflict that some rows are above, of what random weights make of them."""

CONFIGS = {
    "paper": {"objective": "paper", "weight": 2.0},
    "damped": {"objective": "confidence", "conflict_threshold": SOME, "weight": 2.0},
    "anchored": {"objective": "confidence", "conflict": "keep", "anchors": 2, "gate": True},
}
LAYOUTS = [
    ("full", "padded"),
    ("full", "packed"),
    ("full", "checkpointing"),
    ("lora", "padded"),
    ("lora", "packed"),
    ("qlora", "padded"),
]
SAMPLE = {
    ("full", "padded", "paper"),
    ("full", "packed", "damped"),
    ("full", "checkpointing", "anchored"),
    ("lora", "padded", "damped"),
    ("lora", "packed", "anchored"),
    ("qlora", "padded", "paper"),
    ("qlora", "padded", "damped"),
}
MICRO_BATCHES = [
    pytest.param(*case, id="-".join(case), marks=() if case in SAMPLE else pytest.mark.release)
    for case in ((*layout, pact) for layout in LAYOUTS for pact in CONFIGS)
]


def in_one_row(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The documents of a padded batch packed into one row with `position_ids`."""
    return packed(
        [(d.input_ids.tolist(), np.where(d.supervised, d.input_ids, -100).tolist()) for d in split_documents(batch)]
    )


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("adapter", "layout", "pact"), MICRO_BATCHES)
@pytest.mark.parametrize("host", HOSTS)
def test_a_micro_batch_equals_the_bare_loop(
    host: Trainer, adapter: str, layout: str, pact: str, tmp_path: Path
) -> None:
    """Prevents a host whose own loss, hooks or normalisation change what PACT computes."""
    settings = CONFIGS[pact]
    trainer = host(model_of(adapter, layout == "checkpointing"), tmp_path)
    callback = PactCallback(trainer, config(tmp_path, **settings))
    callback.on_train_begin()
    batch = next(iter(trainer.get_train_dataloader()))
    if layout == "packed":
        batch = in_one_row(batch)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # as the training loop sets it
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()

    model = model_of(adapter).train()
    for mine, theirs in zip(model.parameters(), trainer.model.parameters(), strict=True):
        mine.data = mine.data.to(theirs.dtype)  # TRL trains adapters of 4-bit models in bfloat16
    inputs = {k: v for k, v in batch.items() if k in ("input_ids", "labels", "attention_mask", "position_ids")}
    objective = prepare(
        Start(
            model,
            tiny.tokenizer(),
            list(training_documents(trainer)),
            config(tmp_path, **settings),
            show_progress=False,
        )
    ).objective
    targets = objective.targets(inputs)
    assert "conflict_threshold" not in settings or 0 < targets.damped < len(targets.position)
    with objective.watch(targets) as captured:
        # Without a cache: only then do models tell packed documents apart by their positions.
        given = {**inputs, "labels": targets.labels, "num_items_in_batch": targets.supervised}
        own = model(**given, use_cache=False).loss
    weight = objective.config.weight
    total = own + weight * objective.terms(captured, targets).kl / targets.supervised
    if objective.anchors is not None:
        anchored = objective.anchor_terms(objective.anchors, objective.anchors.rows(0), own.device)
        total = total + weight * WEIGHT * anchored.kl / anchored.count
    total.backward()
    assert (total - model(**inputs, use_cache=False).loss).abs() > 1e-3
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=1e-5)
    expected = gradients(model)
    assert any(gradient.abs().max() > 1e-4 for gradient in expected.values())
    for name, gradient in gradients(trainer.model).items():
        rounding = 1e-2 if gradient.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(gradient, expected[name], rtol=rounding, atol=rounding / 10)


@pytest.mark.parametrize("host", HOSTS)
def test_the_host_s_loss_gives_the_normaliser(host: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a second pass over the vocabulary where the host has just made one: damped tokens alone need it."""
    if host is trl_trainer and version("trl") == TESTED["trl"][0]:
        pytest.skip("TRL before its fused head has no log-probabilities to give")
    trainer = host(tiny.llama(), tmp_path)
    callback = PactCallback(trainer, config(tmp_path, conflict_threshold=SOME))
    callback.on_train_begin()
    own, rows = SubsetHead._over_vocabulary, list[int]()

    def counting(self: SubsetHead, hidden: torch.Tensor, *args: Any) -> torch.Tensor:
        rows.append(len(hidden))
        return own(self, hidden, *args)

    monkeypatch.setattr(SubsetHead, "_over_vocabulary", counting)
    trainer.model.train()
    batch = dict(next(iter(trainer.get_train_dataloader())))
    assert callback.binding is not None
    assert callback.binding.preparation is not None
    targets = callback.binding.preparation.objective.targets(batch)
    trainer.compute_loss(trainer.model, batch).backward()
    assert rows == [targets.damped]
    assert 0 < targets.damped < len(targets.position)
    assert all(p.grad is None or p.grad.layout == torch.strided for p in trainer.model.parameters())


@pytest.mark.parametrize("objective", ["paper", "confidence"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_step_costs_nothing_over_the_vocabulary(host: Trainer, objective: str, tmp_path: Path) -> None:
    """Prevents a second forward pass, a tensor over the vocabulary, or a wait for the device that plain steps lack.

    TRL before its fused head has no log-probabilities to give: there `confidence` computes its own, in chunks.
    """
    counted, passes = [], []
    for settings in (None, {"objective": objective, "gate": True, "conflict": "keep"}):
        trainer = host(tiny.llama(), tmp_path)
        if settings:
            PactCallback(trainer, config(tmp_path, **settings)).on_train_begin()
        trainer.model.train()
        trainer.model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
        batch = dict(next(iter(trainer.get_train_dataloader())))
        with Counting(len(tiny.tokenizer())) as counting:
            trainer.compute_loss(trainer.model, batch).backward()
        counted.append(counting)
    plain, pact = counted
    assert plain.wide > 0
    if host is axolotl_trainer or version("trl") != TESTED["trl"][0] or objective == "paper":
        assert pact.wide == plain.wide
    assert pact.waits == plain.waits
    assert len(passes) == 2


def test_a_compiled_model_trains_alike(tmp_path: Path) -> None:
    """Prevents hooks that torch.compile skips, breaks the graph at, or traces into another loss.

    Of both hosts, `test_matrix.py` compares the loss of a compiled model with that by hand.
    """
    if Version(torch.__version__) < Version("2.7"):
        pytest.skip("TRL's fused head does not run compiled in this torch, with PACT or without")
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    breaks: list[int] = []
    trained: list[dict[str, torch.Tensor]] = []
    for settings, pact in ((compiled, False), (compiled, True), ({}, True)):
        torch._dynamo.reset()
        counters.clear()
        trainer = trl_trainer(tiny.llama(num_hidden_layers=1), tmp_path, **settings)
        if pact:
            trainer.add_callback(PactCallback(trainer, config(tmp_path, weight=5.0, anchors=2, conflict_threshold=0.0)))
        trainer.train()
        breaks.append(sum(counters["graph_break"].values()))
        model = trainer.accelerator.unwrap_model(trainer.model)
        trained.append({n: p.detach().clone() for n, p in model.named_parameters()})
    assert breaks[0] == breaks[1]
    plain, pact_compiled, pact_eager = trained
    assert any((plain[name] - pact_compiled[name]).abs().max() > 1e-3 for name in plain)
    for name, parameter in pact_compiled.items():
        torch.testing.assert_close(parameter, pact_eager[name], rtol=1e-4, atol=1e-5)


def alike(n: int = 16) -> Dataset:
    """Conversations with equally many answer tokens: under them, a mean of micro-batch means is the batch's mean."""
    turns = [(f"question {i}", f"answer {i:02d}") for i in range(n)]
    messages = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in turns]
    return Dataset.from_dict({"messages": messages})


@pytest.mark.parametrize("anchors", [0, 2])
@pytest.mark.parametrize("host", HOSTS)
def test_accumulation_changes_nothing(host: Trainer, anchors: int, tmp_path: Path) -> None:
    """Prevents a safety term that grows or shrinks with gradient accumulation.

    Axolotl's own cross-entropy is a mean of micro-batch means, so there it takes equally many answer tokens.
    """
    data = alike() if host is axolotl_trainer else None
    results = []
    for batch_size, accumulation in ((8, 1), (1, 8)):
        trainer = host(tiny.llama(), tmp_path, data, gradient_accumulation_steps=accumulation)
        trainer.args.per_device_train_batch_size = trainer._train_batch_size = batch_size
        trainer.add_callback(PactCallback(trainer, config(tmp_path, weight=5.0, anchors=anchors)))
        trainer.train()
        results.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
    untrained = dict(tiny.llama().named_parameters())
    for name, parameter in results[0].items():
        assert (parameter - untrained[name]).abs().max() > 1e-3
        torch.testing.assert_close(parameter, results[1][name], rtol=1e-4, atol=1e-5)


def test_accumulation_in_a_bare_loop(tmp_path: Path) -> None:
    """Prevents terms that are no plain sums over the batch: eight rows alone must add up to the eight together."""
    rows = few(8)
    results = []
    for batches in ([padded(rows)], [padded([row]) for row in rows]):
        model = tiny.llama()
        objective = prepare(
            Start(
                model, tiny.tokenizer(), documents(rows), config(tmp_path, conflict_threshold=0.0), show_progress=False
            )
        ).objective
        with torch.no_grad():
            model.lm_head.weight[40] += 0.1  # far enough to matter, and not where log(1 - mass) magnifies rounding
        for batch in batches:
            targets = objective.targets(batch)
            with objective.watch(targets) as captured:
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            (2.0 * objective.terms(captured, targets).kl).backward()
        results.append(gradients(model))
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"packing": True}, {"padding_free": True, "max_length": None}], ids=str)
def test_trl_layouts_train(settings: dict[str, Any], tmp_path: Path) -> None:
    """Prevents cache misses under the collators of packing and padding-free training."""
    trainer = trl_trainer(tiny.llama(), tmp_path, **settings)
    trainer.add_callback(PactCallback(trainer, config(tmp_path)))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert all(entry["pact/answer_tokens"] > 0 and entry["pact/cache_hits"] > 0 for entry in logged)
    assert logged[0]["pact/kl"] < 1e-6 < logged[1]["pact/kl"]


@pytest.mark.parametrize("host", HOSTS)
def test_evaluation_is_left_alone(host: Trainer, tmp_path: Path) -> None:
    """Prevents an eval_loss that cannot be compared with runs without PACT."""
    trainer = host(tiny.llama(), tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        plain = trainer.compute_loss(trainer.model, dict(batch))
        # The other objective adds nothing to a model that has not changed.
        PactCallback(trainer, config(tmp_path, objective="paper")).on_train_begin()
        assert trainer.compute_loss(trainer.model, dict(batch)) == plain


def test_bound_once_and_removable(tmp_path: Path) -> None:
    """Prevents a term that counts twice, and wrappers that stay."""
    trainer = trl_trainer(tiny.llama(), tmp_path)
    callback = PactCallback(trainer, config(tmp_path))
    with pytest.raises(PactError, match="one PACT per trainer"):
        PactCallback(trainer, config(tmp_path))
    assert callback.binding is not None
    callback.binding.remove()
    assert "compute_loss" not in vars(trainer)
    assert PactCallback(trainer, False).binding is None


def test_a_step_before_preparation_stops(tmp_path: Path) -> None:
    """Prevents training without PACT when the callback never hears that training begins."""
    trainer = trl_trainer(tiny.llama(), tmp_path)
    PactCallback(trainer, config(tmp_path))
    trainer.model.train()
    with pytest.raises(PactError, match="prepared"):
        trainer.compute_loss(trainer.model, dict(next(iter(trainer.get_train_dataloader()))))


def test_models_that_cannot_be_served_are_refused(tmp_path: Path) -> None:
    """Prevents a loss on hidden states that do not lead to the logits."""
    on_head = get_peft_model(tiny.llama(), LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    trainer = transformers.Trainer(on_head, TrainingArguments(**common(tmp_path)))
    with pytest.raises(PactError, match="LoRA adapter on the head"):
        PactCallback(trainer, config(tmp_path))
    trainer = trl_trainer(tiny.llama(), tmp_path)
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    with pytest.raises(PactError, match="streaming"):
        PactCallback(trainer, config(tmp_path))


def test_a_removed_binding_does_not_prepare(tmp_path: Path) -> None:
    """Prevents a run that prints PACT's table and trains without it."""
    trainer = trl_trainer(tiny.llama(), tmp_path)
    trainer.add_callback(callback := PactCallback(trainer, config(tmp_path)))
    assert callback.binding is not None
    callback.binding.remove()
    with pytest.raises(PactError, match="one from which it was removed"):
        trainer.train()
    assert not (tmp_path / "cache").exists()
