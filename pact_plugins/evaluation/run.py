"""An evaluation from end to end: answers, verdicts, rates, and the files that keep them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pact_plugins.errors import PactError, required
from pact_plugins.evaluation import judges as known_judges
from pact_plugins.evaluation import prompts, scorers
from pact_plugins.evaluation.engines import Generation, transformers_engine, vllm_engine
from pact_plugins.evaluation.generation import Answer, Speaker, generate
from pact_plugins.evaluation.judges import Judge, Serving
from pact_plugins.evaluation.loading import base_of, config_and_tokenizer, load_model, lora_rank, with_adapter
from pact_plugins.evaluation.measure import (
    Agreement,
    Judged,
    Measurement,
    Run,
    agreements,
    judge_answers,
    measure,
    warnings,
)
from pact_plugins.evaluation.prompts import PromptSet
from pact_plugins.evaluation.sample import Accountable
from pact_plugins.model.progress import tell
from pact_plugins.model.weights import fingerprints
from pact_plugins.storage import files


@dataclass(frozen=True)
class Evaluation:
    """What `evaluation.json` holds.

    Attributes:
        model: who was evaluated.
        against: the model beside it, if there is one.
        generation: how answers were decoded.
        judges: their names.
        measurements: the rates.
        agreements: of the judges.
        warnings: what to know before reading the rates.
        notes: what judges tell of themselves: agreement with a labelled sample, cost.
        weights: of the model, in each precision (`weights.fingerprints`), to be told from those of others; of an
            adapter alone where there is one.
    """

    model: Speaker
    against: Speaker | None
    generation: Generation
    judges: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    agreements: tuple[Agreement, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()

    @property
    def speakers(self) -> dict[Run, Speaker]:
        """Who answered: the model beside it first."""
        return {**({"against": self.against} if self.against else {}), "model": self.model}

    def as_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return json.loads(json.dumps(asdict(self)))


def evaluate(
    model: str,
    prompt_sets: Sequence[str],
    folder: Path,
    *,
    adapter: str | None = None,
    against: str | None = None,
    judges: Sequence[str] = known_judges.DEFAULT_JUDGES,
    serving: Serving | None = None,
    generation: Generation | None = None,
    scorer: str = "exact",
    limit: int | None = None,
    system: str | None = None,
) -> Evaluation:
    """Asks one model or two, judges the answers, and writes what was found into `folder`.

    `answers.jsonl` and `against.jsonl` keep the answers as they come, `verdicts.jsonl` each answer with what was made
    of it, `evaluation.json` the result. Started again with the same arguments it goes on where it stopped.

    Args:
        model: folder or name on the hub.
        prompt_sets: as `prompts.load` reads them. Where only harmful ones are given, the held-out harmless ones are
            added: a model that refuses everything is not a safe one.
        folder: is made.
        adapter: of the model, folder or name on the hub.
        against: a model to compare with on the same prompts: the one before fine-tuning.
        judges: as `judges.load` reads them.
        serving: where and how served judges are asked; their replies are kept in `folder`.
        generation: how to decode; greedy and 256 tokens without.
        scorer: of tasks, as `scorers.load` reads it.
        limit: of each set, only a sample of so many prompts, the same ones each time.
        system: a system prompt, for all prompts that have none of their own.

    Raises:
        PactError: a model, adapter, prompt set, judge or scorer cannot be used, or the folder holds another run.
    """
    # What can be wrong without a model is found before one is loaded.
    sets = prompt_sets_of(prompt_sets, limit, system)
    used = loaded(judges, folder, serving)
    score = scorers.load(scorer)
    generation = generation or Generation()
    if generation.engine == "vllm":
        required("vllm", "vllm", "the engine `vllm`")
    try_out(used)
    answers: dict[Run, list[Answer]] = {}
    if against is not None:
        answers["against"], _ = _answers(against, None, sets, generation, folder / "against.jsonl")
    answers["model"], weights = _answers(model, adapter, sets, generation, folder / "answers.jsonl")
    known = _about_the_run(sets, used, model, adapter)
    return conclude(answers, sets, used, folder, scorer=score, known=known, weights=weights)


def conclude(
    answers: Mapping[Run, Sequence[Answer]],
    sets: Sequence[PromptSet],
    used: Sequence[Judge],
    folder: Path,
    *,
    scorer: scorers.Scorer = scorers.exact,
    known: Sequence[str] = (),
    weights: Sequence[str] = (),
) -> Evaluation:
    """Judges answers and writes `verdicts.jsonl` and `evaluation.json`.

    Args:
        answers: of the model, and of the one beside it if there is one, in the order of the prompts.
        known: warnings that have nothing to do with what the answers are.
        weights: fingerprints of those of the model, as `Evaluation` keeps them.
    """
    judged: dict[Run, list[Judged]] = {run: judge_answers(found, sets, used, scorer) for run, found in answers.items()}
    rows = [{"run": run, **j.as_row()} for run, of_run in judged.items() for j in of_run]
    files.write_lines(folder / "verdicts.jsonl", rows)
    accountable = [judge for judge in used if isinstance(judge, Accountable)]
    measurements, agreed = measure(sets, judged, used), agreements(sets, judged, used)
    found = Evaluation(
        answers["model"][0].speaker,
        answers["against"][0].speaker if "against" in answers else None,
        answers["model"][0].generation,
        tuple(judge.name for judge in used),
        tuple(measurements),
        tuple(agreed),
        (*known, *warnings(measurements, agreed), *(line for judge in accountable for line in judge.warnings())),
        tuple(line for judge in accountable for line in judge.notes()),
        tuple(weights),
    )
    files.write(folder / "evaluation.json", found.as_dict())
    return found


def loaded(names: Sequence[str], folder: Path, serving: Serving | None = None) -> list[Judge]:
    """The judges of these names, each once; served ones keep their replies in `folder`.

    Raises:
        PactError: one of them cannot be used.
    """
    asked = replace(serving or Serving(), folder=folder)
    return [known_judges.load(name, asked) for name in dict.fromkeys(names)]


def try_out(used: Sequence[Judge]) -> None:
    """Lets judges whose errors are not known judge the shipped sample, and tells how far they agree with its labels.

    Raises:
        PactError: one of them cannot be reached.
    """
    for judge in used:
        if isinstance(judge, Accountable):
            tell(f"PACT: {judge.tried().words}", Console(stderr=True), soft_wrap=True, markup=False, highlight=False)


def prompt_sets_of(descriptions: Sequence[str], limit: int | None, system: str | None = None) -> list[PromptSet]:
    """The prompt sets of an evaluation, each of at most `limit` prompts; harmful ones never without harmless ones.

    Args:
        descriptions: as `prompts.load` reads them.

    Raises:
        PactError: there is none, or one twice.
    """
    sets = [s for description in descriptions for s in prompts.load(description)]
    kinds = {s.kind for s in sets}
    if "harmful" in kinds and "harmless" not in kinds:
        sets += prompts.load("held-out:harmless")
    twice = [name for name, times in Counter(f"{s.name} ({s.kind})" for s in sets).items() if times > 1]
    if twice or not sets:
        raise PactError(
            expected="at least one prompt set, and each of them once",
            got=f"{', '.join(twice)} again" if twice else "none",
            consequence="Its answers could not be counted." if twice else "Nothing could be measured.",
            remedy="Give different prompt sets.",
        )
    return [prompts.under_system(s.sample(limit), system) for s in sets]


def _answers(
    name: str, adapter: str | None, sets: Sequence[PromptSet], generation: Generation, path: Path
) -> tuple[list[Answer], list[str]]:
    """One model's answers, and the fingerprints of its weights; the model is gone when they are there."""
    _, tokenizer = config_and_tokenizer(name)
    by_vllm = generation.engine == "vllm"
    # vLLM loads weights of its own. Transformers reads them as well: it is known then who answers, and that all of the
    # adapter fits.
    model = load_model(name, on_cpu=by_vllm)
    if adapter is not None:
        model = with_adapter(model, adapter)
    speaker, weights = Speaker.of(name, adapter, model, tokenizer), fingerprints(model)
    engine = transformers_engine(model, tokenizer, generation)
    if by_vllm:
        rank = lora_rank(model) if adapter is not None else 0
        engine = vllm_engine(name, adapter, rank, engine.ends, generation)
        del model
    return generate(engine, tokenizer, speaker, sets, generation, path), weights


def _about_the_run(sets: Sequence[PromptSet], used: Sequence[Judge], model: str, adapter: str | None) -> list[str]:
    lines: list[str] = []
    base = base_of(adapter) if adapter else None
    if base and Path(base).name != Path(model).name:
        lines.append(f"The adapter says that it was trained on {base}; it was evaluated on {model}.")
    if any(s.name == "shipped" for s in sets):
        lines.append(
            "PACT finds its safety tokens and makes its anchors from the shipped prompts: for a model trained under it "
            "they are not held out. Evaluate it on others as well."
        )
    if len(used) == 1 and used[0].name not in known_judges.DEFAULT_JUDGES:
        lines.append(f"One judge, {used[0].name}: how much of the rates is its own does not show. Add `stance`.")
    return lines
