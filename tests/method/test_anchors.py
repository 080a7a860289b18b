"""Anchors: which rows join a step, and what they add."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pact_plugins.chat.answers import IGNORE_INDEX, Document
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.method import asking, prompting
from pact_plugins.method.anchors import Anchors
from pact_plugins.method.asking import Asked
from pact_plugins.method.prompting import answered
from pact_plugins.run.preparation import Preparation, evidence_of, prepare
from pact_plugins.run.trainer import Start
from tests import tiny
from tests.rows import documents, few

CPU = torch.device("cpu")
ROWS = [answered([10, 11], [12]), answered([20], [21, 22, 23]), answered([30, 31, 32], [33])]


def asked(rows: Sequence[Document], candidates: int = 2) -> Asked:
    """These answers, with values that tell each answer token from the others."""
    seen = torch.arange(candidates * sum(int(d.supervised.sum()) for d in rows)).view(-1, candidates)
    return Asked(list(rows), torch.zeros(len(rows), 1).int(), torch.ones(len(rows), 1), seen.int(), -seen.float())


@pytest.fixture(autouse=True)
def short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few prompts and short answers, so that writing the anchors takes no time."""
    monkeypatch.setattr(prompting, "shipped", lambda name, _language="en": [f"{name} {i}" for i in range(3)])
    monkeypatch.setattr(prompting, "MAX_ANSWER_TOKENS", 6)


def ready(
    tmp_path: Path,
    model: torch.nn.Module,
    number: int = 2,
    tokenizer: Any = None,
    rows: Sequence[Document] = (),
    resumed_from: Path | None = None,
    **settings: object,
) -> Preparation:
    config = PactConfig.model_validate(
        {"anchors": number, "safety_tokens": [40, 41, 42], "cache_dir": tmp_path, "conflict": "keep", **settings}
    )
    return prepare(
        Start(
            model,
            tokenizer or tiny.tokenizer(),
            rows or documents(few()),
            config,
            resumed_from=resumed_from,
            show_progress=False,
        )
    )


def test_turns_go_round() -> None:
    """Prevents: the same few anchors in every step, or different ones after a resume."""
    cycle = Anchors.of(asked(ROWS), 2)
    assert [cycle.rows(turn) for turn in range(3)] == [[0, 1], [2, 0], [1, 2]]
    assert [cycle.tokens(cycle.rows(turn)) for turn in range(3)] == [4, 2, 4]


def test_a_batch_is_padded_and_supervised() -> None:
    """Prevents: padding or prompts that are constrained."""
    batch = Anchors.of(asked(ROWS), 3).batch([0, 1, 2])
    assert batch["input_ids"].tolist() == [[10, 11, 12, 0], [20, 21, 22, 23], [30, 31, 32, 33]]
    ignored = IGNORE_INDEX
    assert batch["labels"].tolist() == [
        [ignored, ignored, 12, ignored],
        [ignored, 21, 22, 23],
        [ignored, ignored, ignored, 33],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_what_was_seen_stays_with_its_answer() -> None:
    """Prevents: anchors held to what was seen at another answer."""
    cycle = Anchors.of(asked(ROWS), 1)
    position, candidates, values = cycle.reference([1, 2])
    assert position.tolist() == [0, 1, 2, 0]
    assert candidates.tolist() == [[2, 3], [4, 5], [6, 7], [8, 9]]
    assert torch.equal(values, -candidates.float())


def test_unchanged_models_have_nothing_to_hold(tmp_path: Path) -> None:
    """Prevents: anchors whose reference was computed for another view, position or answer."""
    model = tiny.llama().eval()
    objective = ready(tmp_path, model).objective
    assert objective.anchors is not None
    rows = range(len(objective.anchors.documents))
    terms = objective.anchor_terms(objective.anchors, rows, CPU)
    assert terms.count == objective.anchors.tokens(rows) > 0
    assert abs(terms.kl.item() / terms.count) < 1e-6


def test_equals_the_formula_on_full_logits(tmp_path: Path) -> None:
    """Prevents: a divergence at another token than the answer's, or of other words than the reference's likeliest."""
    before, model = tiny.llama().eval(), tiny.llama().eval()
    objective = ready(tmp_path, model).objective
    assert objective.anchors is not None
    with torch.no_grad():
        model.model.embed_tokens.weight += 0.02 * torch.randn_like(model.model.embed_tokens.weight)
    expected, count = 0.0, 0
    for document in objective.anchors.documents:
        ids = torch.from_numpy(document.input_ids)[None]
        answer = torch.from_numpy(document.supervised)[1:]
        with torch.no_grad():
            p, s = (m(ids).logits[0, :-1][answer].softmax(-1) for m in (before, model))
        likely = p.topk(asking.CANDIDATES).indices
        p, s = (torch.cat([q.gather(1, likely), 1 - q.gather(1, likely).sum(1, keepdim=True)], 1) for q in (p, s))
        expected, count = expected + float((p * (p / s).log()).sum()), count + len(p)
    terms = objective.anchor_terms(objective.anchors, range(len(objective.anchors.documents)), CPU)
    assert (terms.count, terms.kl.item()) == (count, pytest.approx(expected, rel=1e-3))
    assert expected > 1e-3


def test_drift_on_anchors_costs(tmp_path: Path) -> None:
    """Prevents: anchors without a gradient, or with cross-entropy."""
    model = tiny.llama()
    objective = ready(tmp_path, model, conflict="damp", conflict_threshold=0).objective
    assert objective.anchors is not None
    with torch.no_grad():
        model.lm_head.weight[40] += 1.0
    terms = objective.anchor_terms(objective.anchors, [0], CPU)
    terms.kl.backward()
    assert terms.kl.item() > 1e-3
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None


def test_anchors_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a second run that pays for generation again, or gets other anchors."""
    first = ready(tmp_path, tiny.llama()).objective.anchors
    monkeypatch.setattr(asking, "ask", lambda *_a, **_k: pytest.fail("asked again"))
    second = ready(tmp_path, tiny.llama(), number=1).objective.anchors
    assert first is not None
    assert second is not None
    assert [d.key for d in first.documents] == [d.key for d in second.documents]
    assert ready(tmp_path, tiny.llama(), number=0).objective.anchors is None


def test_another_day_finds_the_anchors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a template that writes the date making each day's run answer anew, and a resumed one fail."""
    today = copy.deepcopy(tiny.tokenizer())
    dated = "{{ bos_token }}<|system|>\n{{ strftime_now('%d %b') }}{{ eos_token }}"
    today.chat_template = tiny.TEMPLATE.replace("{{ bos_token }}", dated)
    first = ready(tmp_path, tiny.llama(), tokenizer=today)
    evidence_of(first).save(tmp_path / "run")
    monkeypatch.setattr(
        "transformers.utils.chat_template_utils.datetime", SimpleNamespace(now=lambda: date(2001, 2, 3))
    )
    assert "03 Feb" in today.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert not ready(tmp_path, tiny.llama(), tokenizer=today).computed.rows
    resumed = ready(tmp_path, tiny.llama(seed=1), tokenizer=today, resumed_from=tmp_path / "run")
    for later in (resumed.objective.anchors, first.objective.anchors):
        assert later is not None
        answers = Asked.load(tmp_path / str(first.anchors))
        assert {d.key for d in later.documents} <= {d.key for d in answers.documents}
        assert [d.key for d in later.documents] == [d.key for d in first.objective.anchors.documents]
    with pytest.raises(PactError, match=f"began, {date.today()}, in place of its `strftime_now"):
        ready(tmp_path, tiny.llama(), tokenizer=today, rows=documents(few(3)), resumed_from=tmp_path / "run")


def test_a_resumed_run_keeps_its_anchors(tmp_path: Path) -> None:
    """Prevents: a run that is resumed with anchors and goes on without, and advice to remove a file that is gone."""
    evidence_of(ready(tmp_path, tiny.llama(), number=0)).save(tmp_path / "without")
    with pytest.raises(PactError, match="anchors = False, as in the run being resumed"):
        ready(tmp_path, tiny.llama(), resumed_from=tmp_path / "without")
    first = ready(tmp_path, tiny.llama())
    evidence_of(first).save(tmp_path / "with")
    with pytest.raises(PactError, match="anchors = True, as in the run being resumed"):
        ready(tmp_path, tiny.llama(), number=0, resumed_from=tmp_path / "with")
    (tmp_path / str(first.anchors)).unlink()
    with pytest.raises(PactError, match=r"FileNotFoundError.*`pact\.cache_dir` to where the run began"):
        ready(tmp_path, tiny.llama(), resumed_from=tmp_path / "with")
