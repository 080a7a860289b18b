"""Judges against people: recall and false refusals on each model's labelled answers.

    python -m benchmarks.judges LABELS [--json FILE] [--record]

LABELS is a folder with a JSONL file a model, as `benchmarks.judges.training` reads it. For each model, the classifier
of `stance` is trained again on the others alone; and once more, without the topics that it is then judged on. Prints
the tables of `docs/judges.md`; `--json` keeps every figure, `--record` writes what stands beside the rates of a report.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.judges.training import Labelled, cut_at, labelled, train
from pact_plugins.evaluation import judges, records
from pact_plugins.evaluation.records import OnModel
from pact_plugins.evaluation.statistics import wilson_interval
from pact_plugins.method.refusals.judging import read, verdict
from pact_plugins.method.refusals.stances import COMPILED
from pact_plugins.storage import files

CUTS = {"20": 80, "48": 192, "512": 2048}
"""Tokens after which answers are cut, and the same in characters: four to a token, as in English prose."""
MISTAKES = Path(__file__).with_name("mistakes.jsonl")
"""Answers of our own, each of a kind that judges err on, and their verdicts."""
NO_KIND = "nothing of these"
FOLDS = 6
"""Parts into which topics are divided; the classifier is trained on five, and judged on the sixth."""

Judge = Callable[[Sequence[Labelled]], list[str]]


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judges", description=__doc__.partition("\n")[0])
    parser.add_argument("labels", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    models = {path.stem: labelled(path) for path in sorted(options.labels.glob("*.jsonl"))}
    found = measured(models)
    print(table(found), errors_table(found), sep="\n\n")
    if options.json:
        files.write(options.json, found)
    if options.record:
        kept = {
            name: {model: {key: of[key] for key in OnModel.__dataclass_fields__} for model, of in on.items()}
            for name, on in found["judges"].items()
            if name in (*judges.DEFAULT_JUDGES, *judges.FOR_COMPARISON)
        }
        files.write_text(records.FILE, json.dumps(kept, indent=1) + "\n")


def measured(models: Mapping[str, Sequence[Labelled]]) -> dict[str, Any]:
    """Every judge on every model; `stance` trained without that model."""
    on: dict[str, dict[str, Any]] = {
        name: {model: on_model(rows, _known(name)) for model, rows in models.items()} for name in judges.FOR_COMPARISON
    }
    on["stance"] = {model: on_model(rows, _without(models, model)) for model, rows in models.items()}
    on["stance, other topics"] = {model: _other_topics(models, model) for model in models}
    on["stance, as shipped"] = {model: on_model(rows, _known("stance")) for model, rows in models.items()}
    rows = [row for of in models.values() for row in of]
    started = time.process_time()
    _known("stance")(rows)
    return {"judges": on, "answers_a_second": round(len(rows) / (time.process_time() - started))}


def _known(name: str) -> Judge:
    judge = judges.load(name)
    return lambda rows: list(judge([row.prompt for row in rows], [row.answer for row in rows]))


def _without(models: Mapping[str, Sequence[Labelled]], left_out: str, topics: frozenset[str] = frozenset()) -> Judge:
    """The judge whose classifier has seen neither that model nor any answer about these topics."""
    others = [[row for row in rows if row.topic not in topics] for model, rows in models.items() if model != left_out]
    classifier = train(others)
    return lambda rows: [verdict(row.prompt, row.answer, classifier) for row in rows]


def _other_topics(models: Mapping[str, Sequence[Labelled]], model: str) -> dict[str, int]:
    topics = sorted({row.topic for row in models[model]})
    total: Counter[str] = Counter()
    for fold in range(FOLDS):
        left_out = frozenset(topics[fold::FOLDS])
        rows = [row for row in models[model] if row.topic in left_out]
        total.update(counts(rows, _without(models, model, left_out)(rows)))
    return dict(total)


def on_model(rows: Sequence[Labelled], judge: Judge) -> dict[str, Any]:
    """Counts, kinds of errors, and how often an answer that is cut off is judged as the whole one is."""
    said = judge(rows)
    cut = {
        tokens: judge([Labelled(row.topic, row.prompt, cut_at(row.answer, length), row.label) for row in rows])
        for tokens, length in CUTS.items()
    }
    agreement = {
        tokens: sum((a == "refusal") == (b == "refusal") for a, b in zip(said, of_cut, strict=True)) / len(rows)
        for tokens, of_cut in cut.items()
    }
    return {**counts(rows, said), "agreement_of_cut": agreement, "errors": errors(rows, said)}


def counts(rows: Sequence[Labelled], said: Sequence[str]) -> dict[str, int]:
    """Of `OnModel`, and of the answers that people called partial."""
    pairs = Counter((row.label, word) for row, word in zip(rows, said, strict=True))
    labels = Counter(row.label for row in rows)
    on = OnModel(pairs["refusal", "refusal"], labels["refusal"], pairs["compliance", "refusal"], labels["compliance"])
    of_partial = {f"partial_called_{word}": pairs["partial", word] for word in ("refusal", "partial", "compliance")}
    return {**asdict(on), **of_partial}


def errors(rows: Sequence[Labelled], said: Sequence[str]) -> dict[str, dict[str, int]]:
    """Missed and false refusals, by the kind of sentence that the answer begins with."""
    missed: Counter[str] = Counter()
    false: Counter[str] = Counter()
    for row, word in zip(rows, said, strict=True):
        if (row.label == "refusal") != (word == "refusal") and row.label != "partial":
            (missed if row.label == "refusal" else false)[kind_of(row)] += 1
    return {"missed": dict(missed), "false": dict(false)}


def kind_of(row: Labelled) -> str:
    """Of sentence, with which an answer begins: the first that its first two are of."""
    reading = read(row.prompt, row.answer)
    first = " ".join(reading.sentences[:2]) if reading is not None else ""
    return next((group for (group, _), kind in COMPILED.items() if kind.search(first)), NO_KIND)


def table(found: Mapping[str, Any]) -> str:
    """The table of the page, in Markdown."""
    lines = [
        "| judge | model | refusals found | false refusals | partial called refusal, partial, compliance "
        "| 20, 48, 512 tokens as the whole |",
        "|---|---|---|---|---|---|",
    ]
    for judge, of_judge in found["judges"].items():
        for model, c in of_judge.items():
            recall, false = _share(c["found"], c["refusals"]), _share(c["false"], c["compliances"])
            partial = ", ".join(str(c[f"partial_called_{word}"]) for word in ("refusal", "partial", "compliance"))
            cut = ", ".join(f"{share:.1%}" for share in c.get("agreement_of_cut", {}).values())
            lines.append(f"| {judge} | {model} | {recall} | {false} | {partial} | {cut} |")
    return "\n".join([*lines, "", f"{found['answers_a_second']:,} answers a second on one core."])


def errors_table(found: Mapping[str, Any]) -> str:
    """Errors of each judge on every model by kind, with examples of our own (`mistakes.jsonl`), in Markdown."""
    examples: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in MISTAKES.read_text(encoding="utf-8").splitlines():
        m = json.loads(line)
        answer = " ".join(m["answer"].split())
        examples[m["kind"], m["label"]].append(f"{m['prompt']} \u201c{answer}\u201d")
    names = (*judges.FOR_COMPARISON, *judges.DEFAULT_JUDGES)
    lines = [f"| kind | error | {' | '.join(names)} | examples |", f"|---|---|{'---|' * len(names)}---|"]
    for kind in (*dict.fromkeys(group for group, _ in COMPILED), NO_KIND):
        for error, label in (("missed", "refusal"), ("false", "compliance")):
            numbers = [[of["errors"][error].get(kind, 0) for of in found["judges"][name].values()] for name in names]
            if any(map(any, numbers)):
                cells = (", ".join(map(str, of_judge)) for of_judge in numbers)
                lines.append(f"| {kind} | {error} | {' | '.join(cells)} | {'<br>'.join(examples[kind, label])} |")
    return "\n".join(lines)


def _share(count: int, total: int) -> str:
    low, high = wilson_interval(count, total)
    return f"{count / total:.1%} of {total} ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    main()
