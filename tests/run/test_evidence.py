"""What a run's evidence says about its steps, and what stops a run that leaves some out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pact_plugins.errors import PactError
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.run.evidence import EVIDENCE, TOKENS, Evidence, Part
from pact_plugins.run.recorder import Recorder
from pact_plugins.run.verification import verify
from pact_plugins.storage import files
from tests import tiny
from tests.caches import IDENTITY

WHOLE = Part("reference", 0, 4, 4, "finished", micro_batches=8, answer_tokens=90, cache_hits=16)


def evidence(*parts: Part) -> Evidence:
    tokens = SafetyTokens.of_list([40, 41], tiny.tokenizer())
    return Evidence(IDENTITY, "d", ("v",), {"top_k": 50}, tokens, {"settings": {}}, parts)


def checkpoint(folder: Path, step: int, log: list[dict[str, Any]]) -> None:
    (folder / f"checkpoint-{step}").mkdir()
    (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(
        json.dumps({"global_step": step, "log_history": log})
    )


def test_evidence_of_another_version_is_named(tmp_path: Path) -> None:
    """Prevents: sound evidence of a newer version called damaged, or read as if it meant the same."""
    evidence(WHOLE).save(tmp_path)
    content = files.read(tmp_path / EVIDENCE)
    files.write(tmp_path / EVIDENCE, {**content, "format": content["format"] + 1})
    (fault,) = verify(tmp_path, weights=False).faults
    assert fault == "evidence in format 2, of another version of pact-plugins"
    with pytest.raises(PactError, match="Use the version that wrote it"):
        Evidence.load(tmp_path)


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    """Prevents evidence that loses something on its way to the reviewer."""
    written = replace(evidence(WHOLE, replace(WHOLE, loss_at_start={"pact/kl": 0.5})), trained_model="t")
    written.save(tmp_path)
    assert Evidence.read(tmp_path) == written


def test_a_whole_run_holds(tmp_path: Path) -> None:
    """Prevents a `pact verify` that nobody can pass; resumed runs and runs that were cut short pass too."""
    early = replace(WHOLE, last_step=3, planned_steps=9, ended="stopped early")
    killed = replace(WHOLE, last_step=3, ended="restarted")
    resumed = replace(WHOLE, started_from="checkpoint", first_step=2)
    for parts, words in (
        (
            (WHOLE,),
            "from step 1 to step 4 of 4: 90 answer tokens constrained, 16 sequences looked up; no weights lie there.",
        ),
        ((early,), "to step 3 of 9 (stopped early)"),
        (
            (killed, resumed),
            "180 answer tokens constrained, 32 sequences looked up, resumed after step 2; no weights lie there.",
        ),
    ):
        evidence(*parts).save(tmp_path)
        assert verify(tmp_path).holds
        assert words in verify(tmp_path).sentence
    checkpoint(tmp_path, 4, [{"step": 2, "loss": 1.0, "pact/kl": 0.1}, {"step": 2, "eval_loss": 1.0}])
    assert verify(tmp_path).holds


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((), "training never began"),
        ((replace(WHOLE, ended="running", last_step=2),), "did not end: the last record is of step 2 of 4"),
        ((replace(WHOLE, ended="failed", error="why"),), "PACT stopped it at step 4 of 4: why"),
        ((replace(WHOLE, cache_misses=1),), "1 sequence without a reference"),
        ((replace(WHOLE, answer_tokens=0),), "no answer token was constrained"),
        ((replace(WHOLE, first_step=2),), "nothing is known of steps 1 to 2"),
        ((replace(WHOLE, last_step=1), replace(WHOLE, first_step=3)), "nothing is known of steps 2 to 3"),
    ],
)
def test_a_run_with_a_gap_does_not_hold(parts: tuple[Part, ...], words: str, tmp_path: Path) -> None:
    """Prevents a clean bill for a run that was protected for a part of its steps."""
    evidence(*parts).save(tmp_path)
    found = verify(tmp_path)
    assert not found.holds
    assert found.sentence.startswith("UNFINISHED" if "did not end" in words else "NOT under PACT")
    assert words in found.sentence


def test_other_files_speak_against_a_run(tmp_path: Path) -> None:
    """Prevents evidence of an earlier run from vouching for a later one in the same folder, and edited evidence."""
    assert "no pact_evidence.json" in verify(tmp_path).sentence
    evidence(WHOLE).save(tmp_path)
    checkpoint(tmp_path, 6, [])
    assert "checkpoint-6 holds steps 5 to 6" in verify(tmp_path).sentence
    checkpoint(tmp_path, 4, [{"step": 4, "loss": 1.0}])
    assert "checkpoint-4 has logged training without PACT (step 4)" in verify(tmp_path).sentence
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{")
    assert "checkpoint-4 cannot be read" in verify(tmp_path).sentence
    path = tmp_path / EVIDENCE
    path.write_text(path.read_text().replace('"finished"', '"stopped early"'))
    assert "does not match its checksum" in verify(tmp_path).sentence
    evidence(WHOLE).save(tmp_path)
    SafetyTokens.of_list([50], tiny.tokenizer()).save(tmp_path / TOKENS)
    assert "other safety tokens" in verify(tmp_path).sentence
    (tmp_path / TOKENS).unlink()
    assert not verify(tmp_path).holds
    Evidence.save_off(tmp_path)
    assert "`pact: false`" in verify(tmp_path).sentence


def test_only_steps_without_a_gap_are_covered() -> None:
    """Prevents a resumed run from counting steps that nobody has seen."""
    first, later = replace(WHOLE, last_step=2), replace(WHOLE, first_step=3)
    assert evidence().covered == 0
    assert evidence(first, later).covered == 2
    assert evidence(WHOLE, replace(WHOLE, first_step=2, last_step=3)).covered == 3


class _Trainer:
    """As much of a trainer as a recorder looks at."""

    def __init__(self, folder: Path, steps: int = 4) -> None:
        self.args = SimpleNamespace(output_dir=str(folder))
        self.state = SimpleNamespace(global_step=0, max_steps=steps, log_history=[])
        self.accelerator = SimpleNamespace(device="cpu", reduce=lambda values, reduction: 2 * values)

    def is_world_process_zero(self) -> bool:
        return True


def train(recorder: Recorder, steps: int, **counts: int) -> None:
    for _ in range(steps):
        recorder.add({"micro_batches": 1, **counts})
        recorder.trainer.state.global_step += 1
        recorder.step()


def test_a_recorder_sums_over_processes_and_knows_where_it_is(tmp_path: Path) -> None:
    """Prevents evidence of one process alone, of the wrong steps, or that only appears at the end."""
    trainer = _Trainer(tmp_path)
    recorder = Recorder(trainer, evidence())
    recorder.begin("reference")
    assert Evidence.read(tmp_path).parts == (Part("reference", 0, 0, 4),)
    train(recorder, 2, answer_tokens=5, cache_hits=2)
    recorder.save(tiny.llama())
    (part,) = Evidence.read(tmp_path).parts
    assert part == Part("reference", 0, 2, 4, micro_batches=4, answer_tokens=20, cache_hits=8)
    trainer.state.log_history = [
        {"step": 1, "loss": 2.0, "pact/kl": 0.1, "epoch": 0.5},
        {"step": 3, "loss": 1.0, "pact/kl": 0.2, "learning_rate": 0.1},
        {"step": 4, "train_loss": 1.5},
    ]
    train(recorder, 2, answer_tokens=5)
    recorder.end(tiny.llama())
    found = Evidence.read(tmp_path)
    (part,) = found.parts
    assert (part.ended, part.last_step, part.answer_tokens) == ("finished", 4, 40)
    assert part.loss_at_start == {"loss": 2.0, "pact/kl": 0.1}
    assert part.loss_at_end == {"loss": 1.0, "pact/kl": 0.2}
    assert found.trained_model
    assert verify(tmp_path).holds


def test_a_step_that_goes_past_pact_stops_the_run(tmp_path: Path) -> None:
    """Prevents a trainer whose loss was replaced from training on in silence."""
    trainer = _Trainer(tmp_path)
    recorder = Recorder(trainer, evidence())
    recorder.begin("reference")
    train(recorder, 2, answer_tokens=5)
    trainer.state.global_step += 1
    with pytest.raises(PactError, match="asked for during step 3"):
        recorder.step()
    (part,) = Evidence.read(tmp_path).parts
    assert (part.ended, part.last_step) == ("failed", 2)
    assert "asked for during step 3" in str(part.error)


def test_a_run_that_constrained_nothing_fails(tmp_path: Path) -> None:
    """Prevents a run of batches without answers from ending like a protected one."""
    recorder = Recorder(_Trainer(tmp_path), evidence())
    recorder.begin("reference")
    train(recorder, 2, answer_tokens=0)
    with pytest.raises(PactError, match="answer tokens in the batches"):
        recorder.end(tiny.llama())
    assert not verify(tmp_path).holds


def test_a_run_resumes_only_from_what_is_covered(tmp_path: Path) -> None:
    """Prevents steps that trained without PACT from being taken into a run that reports it."""
    trainer = _Trainer(tmp_path)
    trainer.state.global_step = 3
    with pytest.raises(PactError, match="from one at or before step 2"):
        Recorder(trainer, evidence(replace(WHOLE, last_step=2, ended="running"))).begin("checkpoint")
    recorder = Recorder(trainer, evidence(replace(WHOLE, last_step=3, ended="running")))
    recorder.begin("checkpoint")
    assert [part.ended for part in Evidence.read(tmp_path).parts] == ["restarted", "running"]


def test_off_is_written_down(tmp_path: Path) -> None:
    """Prevents the evidence of an earlier run from standing beside weights that were trained without PACT."""
    evidence(WHOLE).save(tmp_path)
    Evidence.save_off(tmp_path)
    assert files.read(tmp_path / EVIDENCE) == {"pact": False}
    with pytest.raises(PactError, match="`pact: false`"):
        Evidence.load(tmp_path)


def test_counts_stay_on_the_host(tmp_path: Path) -> None:
    """Prevents a wait for the device in each step, for the sake of evidence."""
    recorder = Recorder(_Trainer(tmp_path), evidence())
    recorder.begin("reference")
    recorder.trainer.accelerator.reduce = lambda *_a, **_k: pytest.fail("a sum over processes in a step")
    train(recorder, 3, answer_tokens=int(torch.tensor(1)))
    assert recorder.evidence.parts[-1].last_step == 3
