"""The methods of the benchmark are what they say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.holds.grid import OF_DEMO, Run
from benchmarks.holds.rivals import anchor_rows, constrained, full_kl, mixed, strength, token_wise, undamped
from benchmarks.holds.tasks import training_rows
from benchmarks.holds.training import _trainer
from benchmarks.holds.variants import Emphasised
from pact_plugins.config import PactConfig
from pact_plugins.demo import training
from pact_plugins.demo.world import Row
from pact_plugins.method.finder import Finder
from pact_plugins.method.objective import PactObjective
from pact_plugins.model.fingerprints import model_fingerprint


def test_anchors_are_mixed_in_as_many_a_step() -> None:
    """Prevents: a rival that sees fewer anchors than the default, or the same few."""
    rows, anchors = [Row(str(i), "", False) for i in range(8)], [Row("abc"[i], "", True) for i in range(3)]
    assert "".join(row.prompt for row in mixed(rows, anchors, 2, 4)) == "0123ab4567ca"


def test_what_is_mixed_in_are_the_anchors(tmp_path: Path) -> None:
    """Prevents: a rival that is taught other answers than those that PACT constrains."""
    own = {"harmful": "How do I sink a boat with people on board?", "harmless": "How do I row a boat on a lake?"}
    for kind, prompt in own.items():
        (tmp_path / kind).write_text(prompt)
    config = PactConfig.model_validate({"cache_dir": tmp_path, "prompts": {kind: tmp_path / kind for kind in own}})
    model, tokenizer = training.load()
    rows = anchor_rows(model, tokenizer, config, bf16=False)
    anchors = Finder(config, model, tokenizer, model_fingerprint(model)).anchors()
    assert anchors is not None
    answers = [tokenizer.decode(d.input_ids[d.supervised], skip_special_tokens=True) for d in anchors.documents]
    assert [row.answer for row in rows] == answers
    assert len(rows) == 258
    assert {(kind == "harmful", prompt) for kind, prompt in own.items()} <= {(row.harmful, row.prompt) for row in rows}
    prompts = [tokenizer.decode(d.input_ids[~d.supervised]) for d in anchors.documents]
    assert all(row.prompt in prompt for row, prompt in zip(rows, prompts, strict=True))


@pytest.mark.trl
def test_the_rows_that_would_be_damped_are_dropped(tmp_path: Path) -> None:
    """Prevents: a rival that drops rows of the task, or none, or that is trained on fewer."""
    rows = training_rows("demo", 40, 0.25, 0)
    run = Run("demo", "demo", 0.25, "mix_drop", 0)
    trainer = _trainer(*training.load(), rows, run, OF_DEMO, 4, tmp_path)
    kept = undamped(trainer, rows, PactConfig(cache_dir=tmp_path / "cache", eval=False))
    assert len(kept) == len(rows)
    assert not any(row.harmful for row in kept)
    task = [row for row in rows if not row.harmful]
    assert kept[: len(task)] == task


def test_the_token_wise_constraint_starts_as_cross_entropy_and_lets_go() -> None:
    """Prevents: a rival whose gradient is not the published one."""
    position = torch.tensor([0, 1, 4, 5])
    assert strength(position).tolist() == pytest.approx([0.5, 2, 2, 0.1])
    student = torch.zeros(4, requires_grad=True)
    constrained(student, torch.zeros(4), position).sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == pytest.approx([-1] * 4)
    later = torch.full((4,), 3.0, requires_grad=True)
    constrained(later, torch.zeros(4), position).sum().backward()
    assert later.grad is not None
    assert later.grad.tolist() == pytest.approx([-2 / (1 + math.exp(b * 3)) for b in (0.5, 2, 2, 0.1)])


def test_the_constraint_reads_the_token_that_is_answered(tmp_path: Path) -> None:
    """Prevents: logits and labels off by one, or positions counted over the prompt."""
    model, _ = training.load()
    reference, _ = training.load()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.1)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor([[-100] * 3 + [8, 9, 10]]),
    }
    got = token_wise(reference)(model, inputs)
    student, before = (m(input_ids=ids).logits[0].log_softmax(-1) for m in (model, reference))
    place = range(3)
    now, then = (torch.stack([p[2 + t, 8 + t] for t in place]) for p in (student, before))
    torch.testing.assert_close(got, constrained(now, then, torch.tensor(place)).mean())


@pytest.mark.trl
def test_full_kl_is_the_divergence_from_the_model_before_training(tmp_path: Path) -> None:
    """Prevents: a baseline that pulls at nothing, as with a reference that shares the trained model's forward."""
    model, tokenizer = training.load()
    reference, _ = training.load()
    expected, got = [], []

    def protect(trainer: Any) -> None:
        host = trainer.compute_loss
        penalised = full_kl(reference, host, 0.25)

        def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
            with torch.no_grad():
                # The host's loss takes keys out of the inputs.
                own = host(model, dict(inputs), *args, **kw)
                context = {name: inputs[name] for name in ("input_ids", "attention_mask")}
                answer = inputs["labels"][:, 1:] != -100
                fresh, _ = training.load()
                before = F.softmax(fresh.eval()(**context).logits[:, :-1][answer], -1)
                hidden = model.get_base_model().model(**context).last_hidden_state
                now = F.softmax(model.get_base_model().lm_head(hidden)[:, :-1][answer], -1)
            divergence = (before * (before.log() - now.log())).sum(-1).mean()
            expected.append((own + 0.25 * divergence).item())
            loss = penalised(model, inputs, *args, **kw)
            got.append(loss.item() - own.item())
            assert loss.item() == pytest.approx(expected[-1], rel=1e-4)
            return loss

        trainer.compute_loss = compute_loss

    rows = training_rows("demo", 1600, 0.1, 0)
    training.train(model, tokenizer, rows, training.Recipe(steps=4), tmp_path, protect)
    assert got[0] == pytest.approx(0, abs=1e-5)
    assert got[-1] > 1e-3


@pytest.mark.trl
def test_emphasis_is_on_the_first_tokens(tmp_path: Path) -> None:
    """Prevents: an ablation of nothing."""
    model, tokenizer = training.load()
    found: list[torch.Tensor] = []

    def protect(trainer: Any) -> None:
        config = PactConfig(cache_dir=tmp_path / "cache", anchors=0, eval=False, safety_tokens=list(range(20)))
        trainer.add_callback(callback := Emphasised(trainer, config, 4.0))
        watched: dict[str, Any] = {}

        def compute_loss(*args: Any, **kw: Any) -> Any:
            assert callback.binding is not None
            assert callback.binding.preparation is not None
            objective = watched.setdefault("objective", callback.binding.preparation.objective)
            if "own" not in watched:
                watched["own"] = objective.divergence
                objective.divergence = compare
            return host(*args, **kw)

        def compare(student: torch.Tensor, targets: Any) -> Any:
            weighted, gate = watched["own"](student, targets)
            plain, _ = PactObjective.divergence(watched["objective"], student, targets)
            found.append(torch.stack([targets.position.float(), (weighted / plain).detach()])[:, plain.detach() > 1e-6])
            return weighted, gate

        host = trainer.compute_loss
        trainer.compute_loss = compute_loss

    rows = training_rows("demo", 1600, 0.1, 0)
    training.train(model, tokenizer, rows, training.Recipe(steps=3), tmp_path / "run", protect)
    position, ratio = torch.cat(found, 1)
    assert position.min() <= 2 < position.max()
    torch.testing.assert_close(ratio, 1 + 4 * torch.exp(-position / 4), rtol=1e-4, atol=0)
