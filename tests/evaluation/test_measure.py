"""Rates, changes and agreements, counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import pytest

from pact_plugins.evaluation import judges
from pact_plugins.evaluation.engines import Generation
from pact_plugins.evaluation.generation import Answer, Speaker
from pact_plugins.evaluation.judges import RuleJudge, Verdict
from pact_plugins.evaluation.measure import Judged, Run, agreements, judge_answers, measure, warnings
from pact_plugins.evaluation.prompts import Prompt, PromptSet
from pact_plugins.evaluation.scorers import Scorer, exact
from pact_plugins.evaluation.statistics import wilson_interval

HARMFUL = PromptSet("h", "harmful", tuple(Prompt(str(i), f"bad {i}") for i in range(4)))
HARMLESS = PromptSet("g", "harmless", tuple(Prompt(str(i), f"good {i}") for i in range(2)))
TASK = PromptSet("t", "task", (Prompt("1", "2 + 2?", "4"), Prompt("2", "3 + 3?", "6")))
SETS = [HARMFUL, HARMLESS, TASK]

REFUSED, AFFIRMED, NOISE = "I can't help with that.", "Sure, like this.", "I'm sorry I'm sorry I'm sorry"
BEFORE = [REFUSED, REFUSED, REFUSED, AFFIRMED, "Row.", "Row.", "five", "7"]
AFTER = [REFUSED, AFFIRMED, NOISE, "Well, I can't help with that.", REFUSED, "Row.", " 4\n", "7"]
RULES = [judges.load("opening"), judges.load("phrases")]


def judged(texts: Sequence[str], used: Sequence[judges.Judge] = RULES, scorer: Scorer = exact) -> list[Judged]:
    speaker = Speaker("m", None, "f")
    prompts = [(s, p) for s in SETS for p in s.prompts]
    answers = [
        Answer(s.name, s.kind, p.id, p.text, speaker, Generation(), text)
        for (s, p), text in zip(prompts, texts, strict=True)
    ]
    return judge_answers(answers, SETS, used, scorer)


def test_rates_and_changes() -> None:
    """Prevents a rate of another set, judge or model; a degenerate answer as a refusal; or a change the wrong way."""
    runs: dict[Run, list[Judged]] = {"against": judged(BEFORE), "model": judged(AFTER)}
    found = {
        (m.prompt_set, m.measure, m.judge): (m.against.count, m.model.count, m.model.total, *astuple(m.change)[:2])
        for m in measure(SETS, runs, RULES)
        if m.against is not None and m.change is not None
    }
    assert found == {
        ("h", "refusal_rate", "opening"): (3, 1, 4, 2, 0),
        ("h", "affirmative_opening_rate", None): (1, 1, 4, 1, 1),
        ("h", "refusal_rate", "phrases"): (3, 2, 4, 2, 1),
        ("h", "compliance_rate", "phrases"): (1, 1, 4, 1, 1),
        ("h", "incoherent_rate", None): (0, 1, 4, 0, 1),
        ("g", "over_refusal_rate", "opening"): (0, 1, 2, 0, 1),
        ("g", "over_refusal_rate", "phrases"): (0, 1, 2, 0, 1),
        ("g", "incoherent_rate", None): (0, 0, 2, 0, 0),
        ("t", "over_refusal_rate", "opening"): (0, 0, 2, 0, 0),
        ("t", "over_refusal_rate", "phrases"): (0, 0, 2, 0, 0),
        ("t", "incoherent_rate", None): (0, 0, 2, 0, 0),
        ("t", "task_accuracy", None): (0, 1, 2, 0, 1),
    }


def test_one_model_alone() -> None:
    """Prevents a change from nothing, and intervals that belong to another share."""
    found = measure(SETS, {"model": judged(AFTER)}, RULES)
    assert all(m.against is None and m.change is None for m in found)
    for m in found:
        assert m.model.share == m.model.count / m.model.total
        assert (m.model.low, m.model.high) == wilson_interval(m.model.count, m.model.total)


def test_a_judge_is_not_asked_what_it_cannot_see() -> None:
    """Prevents a refusal rate of 0% from a judge that only knows safe and unsafe."""
    guard = RuleJudge("guard", frozenset(("compliance",)), lambda _p, a: "compliance" if a == AFFIRMED else "other")
    found = measure(SETS, {"model": judged(AFTER, [guard])}, [guard])
    assert [(m.prompt_set, m.measure) for m in found if m.judge] == [("h", "compliance_rate")]


def test_agreement() -> None:
    """Prevents agreement over a mixture of sets, or over answers of the other model."""
    runs: dict[Run, list[Judged]] = {"against": judged(BEFORE), "model": judged(AFTER)}
    found = {(a.run, a.prompt_set): (a.judges, a.verdict, a.share, a.kappa) for a in agreements(SETS, runs, RULES)}
    names = ("opening", "phrases")
    assert set(found) == {(run, s.name) for run in runs for s in SETS}
    assert found["against", "h"] == (names, "refusal", 1.0, 1.0)
    # one refusal of four against two, one of them shared: p_o = 3/4, p_e = 1/4 2/4 + 3/4 2/4
    assert found["model", "h"] == (names, "refusal", 0.75, pytest.approx(0.5))
    assert found["model", "t"] == (names, "refusal", 1.0, None)


def constant(name: str, verdict: Verdict, tells: Verdict) -> RuleJudge:
    return RuleJudge(name, frozenset((tells,)), lambda _p, _a: verdict)


def test_judges_that_disagree_on_everything_are_seen() -> None:
    """Prevents a rate that is the judge's alone from standing there like a measured one."""
    used = [constant("yes", "refusal", "refusal"), constant("no", "other", "refusal")]
    runs: dict[Run, list[Judged]] = {"model": judged(BEFORE, used)}
    lines = warnings(measure(SETS, runs, used), agreements(SETS, runs, used))
    assert len(lines) == 3
    assert "yes and no disagree on 100% of the answers to h (harmful, model)" in lines[0]
    assert agreements(SETS, runs, [used[0], constant("guard", "other", "compliance")]) == []


def test_a_little_disagreement_and_noise_are_no_warning() -> None:
    """Prevents warnings that everyone learns to ignore."""
    runs: dict[Run, list[Judged]] = {"model": judged(BEFORE)}
    assert warnings(measure(SETS, runs, RULES), agreements(SETS, runs, RULES)) == []


def test_incoherent_models_are_seen() -> None:
    """Prevents the 0% compliance of a collapsed model from being read as safety."""
    runs: dict[Run, list[Judged]] = {"against": judged([NOISE] * 8), "model": judged(BEFORE)}
    lines = warnings(measure(SETS, runs, RULES), agreements(SETS, runs, RULES))
    assert [line for line in lines if "100% of the answers to h (harmful, against) are incoherent" in line]
    assert not [line for line in lines if ", model)" in line]


def test_a_scorer_of_the_users() -> None:
    """Prevents a scorer that is loaded and not used, or whose arguments are swapped."""
    answer = Answer("t", "task", "1", "2 + 2?", Speaker("m", None, "f"), Generation(), "It is 4.")
    of_task = PromptSet("t", "task", TASK.prompts[:1])
    assert judge_answers([answer], [of_task], [], lambda p, r, e: p == "2 + 2?" and e in r)[0].score == 1
    assert judge_answers([answer], [of_task], [])[0].score == 0
    assert judge_answers([answer], [HARMFUL.sample(1)], [])[0].score is None


def test_scores_by_degrees() -> None:
    """Prevents an answer that is half right from counting as right, and a change of the mean that is one of chance."""

    def score(_prompt: str, response: str, _expected: str) -> float:
        return {"five": 0.5, "7": 0.0, " 4\n": 1.0}[response]

    runs: dict[Run, list[Judged]] = {"against": judged(BEFORE, scorer=score), "model": judged(AFTER, scorer=score)}
    (found,) = [m for m in measure(SETS, runs, RULES) if m.measure.startswith("task")]
    assert found.against is not None
    assert found.change is not None
    assert (found.measure, found.against.share, found.model.share) == ("task_score", 0.25, 0.5)
    assert (found.change.lost, found.change.gained) == (0, 1)
    assert 0 <= found.model.low <= found.model.share <= found.model.high <= 1
