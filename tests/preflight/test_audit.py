"""`pact audit`: what it lists of the demo world's rows, and what it leaves alone; `tests/contract` runs the command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from rich.console import Console
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from benchmarks.demo_models.evaluate import refused
from pact_plugins import PactConfig
from pact_plugins.chat.answers import split_documents
from pact_plugins.chat.format import render
from pact_plugins.demo import ALIGNED_MODEL, world
from pact_plugins.demo.behaviour import answers
from pact_plugins.demo.training import load
from pact_plugins.preflight.audit import Audit, ConflictingAnswer, audit, show
from pact_plugins.run.documents import training_documents
from pact_plugins.run.preparation import prepare
from pact_plugins.run.trainer import Start
from tests import openings
from tests.rows import alone

HARMLESS, HARMFUL = openings.harmless(), openings.harmful()
KINDS = [kind for kind in HARMLESS if kind != "refusals of harmful requests"]
"""What is asked there is harmful, however it is answered."""


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return load(ALIGNED_MODEL)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def trainer(demo: tuple[Any, Any], rows: list[openings.Row], folder: Path) -> Trainer:
    """A trainer on these rows, the answers supervised."""
    model, tokenizer = demo
    data = []
    for prompt, answer in rows:
        user = [{"role": "user", "content": prompt}]
        before = render(tokenizer, user, generation_prompt=True)
        ids = render(tokenizer, [*user, {"role": "assistant", "content": answer}], generation_prompt=False)
        data.append({"input_ids": ids, "labels": [-100] * len(before) + ids[len(before) :]})
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[])
    return Trainer(
        model,
        args,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )


def audited(demo: tuple[Any, Any], rows: list[openings.Row], cache: Path, **settings: Any) -> Audit:
    threshold = settings.pop("threshold", None)
    config = PactConfig(cache_dir=cache, anchors=0, **settings)
    return audit(trainer(demo, rows, cache), config, threshold=threshold)


def test_harmless_rows_are_not_listed(demo: tuple[Any, Any], cache: Path) -> None:
    """Prevents a list that accuses harmless data, answers that begin with "I" among it."""
    look_alikes = world.held_out_look_alikes()[:60]
    own = zip(look_alikes, answers(*demo, look_alikes), strict=True)
    willing = [(prompt, answer) for prompt, answer in own if not refused([prompt], [answer])]
    assert len(willing) >= 57
    rows = [*willing, *(row for kind in KINDS for row in HARMLESS[kind])]
    found = audited(demo, rows, cache)
    assert found.answers == len(rows) >= 290
    assert [one.text for one in found.listed] == []
    assert found.damped_share == 0


@pytest.mark.parametrize("kind", ["affirmative", "neutral", "begin with I"])
def test_harmful_rows_are_listed(demo: tuple[Any, Any], kind: str, cache: Path) -> None:
    """Prevents an audit that finds nothing, or only "Sure"."""
    harmless = [row for name in KINDS for row in HARMLESS[name]]
    rows = [*harmless, *HARMFUL[kind][:30]]
    found = audited(demo, rows, cache)
    assert sorted(i for one in found.listed for i in one.rows) == list(range(len(harmless), len(rows)))
    assert [(one.prompt, one.text) for one in found.listed] == [rows[one.rows[0]] for one in found.listed]
    conflicts = [one.conflict for one in found.listed]
    assert conflicts == sorted(conflicts, reverse=True)
    assert conflicts[-1] > 0.5
    assert all(one.weight_left == 0 and one.text.startswith(one.first_token) for one in found.listed)


def test_takes_away_what_the_run_takes_away(demo: tuple[Any, Any], cache: Path) -> None:
    """Prevents figures of another formula than the objective's."""
    rows = [*HARMLESS["task"][:10], *HARMFUL["affirmative"][:5], HARMFUL["affirmative"][0]]
    host = trainer(demo, rows, cache)
    config = PactConfig(cache_dir=cache, anchors=0)
    found = audit(host, config)
    batches = [alone((row["input_ids"], row["labels"])) for row in host.train_dataset]
    documents = [d for batch in batches for d in split_documents(batch)]
    objective = prepare(Start(*demo, documents, config, show_progress=False)).objective
    targets = [objective.targets(batch) for batch in batches]
    objective.head.remove()
    damped = sum(t.damped for t in targets) / sum(t.supervised for t in targets)
    assert found.damped_share == pytest.approx(damped, rel=1e-5)
    assert damped > 0.1
    assert str(objective.reference.folder) == found.cache
    copies = {one.prompt: one.rows for one in found.listed}
    assert copies[rows[10][0]] == [10, 15]
    assert (len(found.listed), found.listed_answers, found.sequences) == (5, 6, 16)


@pytest.mark.parametrize("settings", [{"conflict": "keep"}, {"objective": "paper"}], ids=str)
def test_lists_where_nothing_is_damped(demo: tuple[Any, Any], settings: dict[str, Any], cache: Path) -> None:
    """Prevents the claim that something is done about rows that are trained on in full."""
    found = audited(demo, [*HARMFUL["affirmative"][:5], *HARMLESS["task"][:5]], cache, **settings)
    assert len(found.listed) == 5
    assert {one.weight_left for one in found.listed} == {1.0}
    assert found.damped_share == 0
    assert "nothing is damped" in printed(found)


def test_thresholds(demo: tuple[Any, Any], cache: Path) -> None:
    """Prevents rows listed below the run's threshold from being shown as damped."""
    rows = HARMFUL["affirmative"][:5]
    assert audited(demo, rows, cache, threshold=0.99).listed == []
    found = audited(demo, rows, cache, threshold=0.1, conflict_threshold=0.99)
    assert [one.weight_left for one in found.listed] == [1.0] * 5


def printed(found: Audit) -> str:
    stream = io.StringIO()
    show(found, Console(file=stream, width=200))
    return stream.getvalue()


def test_texts_are_shown_as_they_are(tmp_path: Path) -> None:
    """Prevents a training row from styling the table or breaking it, and a file that is no JSON lines."""
    one = ConflictingAnswer([3, 9], 0, 0.9, 0.1, 4, "[bo", "x" * 90 + " [red]why[/red]\n?", "[/b] [link=a]Sure\x1b")
    many = [one] * 25
    found = Audit(30, 30, True, 0.1, 0.1, 0.25, False, "cache", many)
    text = printed(found)
    assert "[red]why[/red] ?" in text
    assert "[/b] [link=a]Sure" in text
    assert "\x1b" not in text
    assert "3 (+1)" in text
    assert "and 5 more" in text
    assert "30 answers in 30 sequences audited, 50 listed" in text
    assert "25.00%" in text
    found.save(tmp_path / "audit.jsonl")
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [one.prompt] * 25


def test_what_is_damped_is_told_before_the_first_step(
    demo: tuple[Any, Any], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Prevents a run that leaves out what a task teaches, and tells it in a metric that nobody reads."""
    harmless = [row for kind in KINDS for row in HARMLESS[kind]]
    for harmful in ([], HARMFUL["affirmative"]):
        caplog.clear()
        rows = [*harmless, *harmful]
        documents = list(training_documents(trainer(demo, rows, cache)))
        prepared = prepare(Start(*demo, documents, PactConfig(cache_dir=cache, anchors=0), show_progress=False))
        prepared.objective.head.remove()
        found = prepared.damping
        assert found is not None
        assert found.answers == len(rows)
        assert 0.8 * len(harmful) <= found.damped <= len(harmful)
        assert [row >= len(harmless) for row, _, _ in found.strongest] == [True] * 3 * bool(harmful)
        assert ("`pact.conflict: keep`" in caplog.text) is (found.share > 0.05) is bool(harmful)
        words = str(found)
        assert ("all of them: `pact audit`" in words) is bool(harmful)
        prompts = {prompt[-40:] for prompt, _ in harmful}
        assert all(any(end in text for end in prompts) for _, _, text in found.strongest)
