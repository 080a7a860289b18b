"""A run's own evaluation: the model is asked before its first step and after its last, in the run's own process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from pact_plugins.chat.fingerprints import digest
from pact_plugins.config import SPLIT, EvalConfig
from pact_plugins.errors import PactError
from pact_plugins.evaluation import scorers
from pact_plugins.evaluation.engines import EachStep, Engine, Generation, transformers_engine
from pact_plugins.evaluation.generation import Answer, Speaker, first_speaker, generate
from pact_plugins.evaluation.judges import Serving
from pact_plugins.evaluation.measure import Run
from pact_plugins.evaluation.prompts import PromptSet
from pact_plugins.evaluation.run import Evaluation, conclude, loaded, prompt_sets_of, try_out
from pact_plugins.model.forward import precision
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.storage import files

FOLDER = "_pact_evaluation"
"""In a run's output folder. `Trainer.push_to_hub` leaves out what begins with an underscore: no answer is published."""
PAGE = "report.html"
"""The report with answers in it, which stays with them."""

_WHAT = "asking the model"


def descriptions(config: EvalConfig) -> list[str]:
    """What is asked, as `prompts.load` reads it; not the run's own eval split."""
    if config.task in (None, SPLIT):
        return [*config.prompts]
    return [*config.prompts, config.task if ":task" in config.task else f"{config.task}:task"]


class RunEvaluation:
    """Asks the model of one run twice; each process of the run asks it a part of the prompts.

    Its files are those of `pact eval --out OUTPUT_DIR/_pact_evaluation`.

    Args:
        kept_in: folder in which the answers of the model before its first step are kept for other runs that begin with
            it.
        ranks: the processes of the run, of which the first one judges and writes.
        split: prompts of the run's own eval split, asked besides.

    Raises:
        PactError: a prompt set, judge or scorer cannot be used.
    """

    def __init__(
        self,
        config: EvalConfig,
        output_dir: Path,
        tokenizer: Any,
        kept_in: Path,
        ranks: Ranks = ALONE,
        split: Sequence[PromptSet] = (),
    ) -> None:
        self.ranks, self.kept_in = ranks, kept_in
        self.sets = [*prompt_sets_of(descriptions(config), config.limit, config.system), *split]
        self.scorer = scorers.load(config.scorer)
        if "scorer" in config.model_fields_set and all(s.kind != "task" for s in self.sets):
            raise PactError(
                expected=f"a task beside `pact.eval.scorer: {config.scorer}`",
                got=f"no task among {', '.join(s.name for s in self.sets)}",
                consequence="Nothing would be scored.",
                remedy="Name one (`pact.eval.task`), or remove the scorer.",
            )
        scorers.check(self.scorer, [p for s in self.sets for p in s.prompts])
        self.generation = Generation(config.max_new_tokens)
        self.output_dir, self.folder, self.tokenizer = output_dir, output_dir / FOLDER, tokenizer
        serving = Serving(prompt=config.judge_prompt)
        self.judges = loaded(config.judges, self.folder, serving) if ranks.is_first else []
        self._before: list[Answer] | None = None

    def before(self, model: nn.Module, name: str, *, resumed: bool, fingerprint: str | None = None) -> None:
        """Asks the model as it is now. The answers of a run that is being resumed are read: its weights have moved.

        Args:
            model: before its first step, unless `resumed`.
            resumed: whether the run goes on from a checkpoint.
        """
        path = self.folder / "against.jsonl"
        self.ranks.first(lambda: try_out(self.judges), "trying out the judges")
        if resumed:
            if self.ranks.first(path.exists, _WHAT):
                speaker = self.ranks.first(lambda: first_speaker(path), _WHAT)
                self._before = self._ask(Engine(_too_late, set()), speaker, path)
            return
        if self.ranks.is_first:
            for name_of_file in ("against.jsonl", "answers.jsonl", "verdicts.jsonl", "evaluation.json", PAGE):
                (self.folder / name_of_file).unlink(missing_ok=True)
        speaker = Speaker.of(name, None, model, self.tokenizer, fingerprint=fingerprint)
        engine = transformers_engine(model, self.tokenizer, self.generation)
        how = [asdict(speaker), asdict(self.generation), precision(model), [asdict(s) for s in self.sets]]
        kept = self.kept_in / f"questions-{digest(how)}.json"
        with files.locked(kept, _WHAT, self.ranks, holds=self.ranks.is_first):
            known = self.ranks.first(lambda: kept.exists() and _copied(kept, path), _WHAT)
            self._before = self._ask(engine, speaker, path)
            if self.ranks.is_first and not known:
                with files.storing(kept.parent):
                    files.write(kept, {"name": kept.stem, "lines": path.read_text(encoding="utf-8")})

    def after(
        self, model: nn.Module, name: str, *, adapter: bool, fingerprint: str | None = None, weights: Sequence[str] = ()
    ) -> Evaluation | None:
        """Asks the trained model; the first process writes what has changed, and is given it.

        Args:
            name: of the model before, for people.
            adapter: whether an adapter was trained, rather than the model itself.
            weights: theirs in each precision, for the evaluation to keep.
        """
        place = str(self.output_dir)
        who = (name, place) if adapter else (place, None)
        speaker = Speaker.of(*who, model, self.tokenizer, fingerprint=fingerprint)
        path = self.folder / "answers.jsonl"
        if self.ranks.is_first:
            path.unlink(missing_ok=True)
        engine = transformers_engine(model, self.tokenizer, self.generation)
        answers: dict[Run, list[Answer]] = {"against": self._before} if self._before is not None else {}
        answers["model"] = self._ask(engine, speaker, path)
        if not self.ranks.is_first:
            return None
        return conclude(answers, self.sets, self.judges, self.folder, scorer=self.scorer, weights=weights)

    def _ask(self, engine: Engine, speaker: Speaker, path: Path) -> list[Answer]:
        return generate(engine, self.tokenizer, speaker, self.sets, self.generation, path, ranks=self.ranks)


def _copied(kept: Path, path: Path) -> bool:
    """Writes the answers that another run has kept to the run's own file."""
    try:
        content = files.read(kept)
        if content["name"] != kept.stem:
            raise ValueError(f"these are {content['name']}")
    except (OSError, ValueError, KeyError) as error:
        raise PactError(
            expected=f"the answers of this model before training in {kept}",
            got=f"{type(error).__name__}: {error}",
            consequence="The trained model would be compared with another one.",
            remedy=f"Remove {kept.name}; the next run asks again.",
        ) from error
    files.write_text(path, str(content["lines"]))
    return True


def _too_late(chats: list[list[int]], _seed: int, _each_step: EachStep) -> NoReturn:
    raise PactError(
        expected="the answers of the model before training in the run's `_pact_evaluation/against.jsonl`",
        got=f"a file that lacks at least {len(chats)} of them",
        consequence="The trained model would have answered in its place.",
        remedy="Resume with the `pact.eval` block that the run began with, or set `pact.eval: false`.",
    )
