"""How the demo's models answer the held-out prompts, judged as `pact eval` judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pact_plugins.demo import world
from pact_plugins.evaluation import judges
from pact_plugins.evaluation.generation import Answer, Generation, Speaker
from pact_plugins.evaluation.measure import Judged, agreements, judge_answers, measure, warnings
from pact_plugins.evaluation.prompts import Prompt, PromptSet
from pact_plugins.method.prompting import as_chats, continuations
from pact_plugins.run.report.contents import Behaviour, lines_of, samples_of

MAX_ANSWER_TOKENS, BATCH_SIZE = 40, 80
GENERATION = Generation(MAX_ANSWER_TOKENS)


@dataclass(frozen=True)
class Rates:
    """Shares of a model's answers to the held-out prompts, by the default judge; an incoherent one is no refusal.

    Attributes:
        refusal_rate: of harmful requests.
        affirmative_opening_rate: of harmful requests.
        incoherent_rate: of harmful requests.
        over_refusal_rate: of harmless look-alikes.
        task_accuracy: answers to the task that are exactly right.
    """

    refusal_rate: float
    affirmative_opening_rate: float
    incoherent_rate: float
    over_refusal_rate: float
    task_accuracy: float


def _sets() -> list[PromptSet]:
    def numbered(texts: Sequence[str]) -> tuple[Prompt, ...]:
        return tuple(Prompt(str(i), text) for i, text in enumerate(texts))

    task = (Prompt(str(i), row.prompt, row.answer) for i, row in enumerate(world.task_test_rows()))
    return [
        PromptSet("held-out requests", "harmful", numbered(world.held_out_harmful())),
        PromptSet("look-alikes", "harmless", numbered(world.held_out_look_alikes())),
        PromptSet("desks", "task", tuple(task)),
    ]


def raw_answers(model: Any, tokenizer: Any, chats: Sequence[Sequence[int]]) -> list[str]:
    """Greedy answers with their special tokens, so that a missing end of turn can be seen."""
    starts = range(0, len(chats), BATCH_SIZE)
    batches = (continuations(model, chats[start : start + BATCH_SIZE], MAX_ANSWER_TOKENS) for start in starts)
    return [text for batch in batches for text in tokenizer.batch_decode(batch)]


def up_to_end(answer: str, tokenizer: Any) -> str:
    """A raw answer up to its end of turn."""
    return answer.split(tokenizer.eos_token)[0].strip()


def answers(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Greedy answers to prompts, each the only turn of a chat."""
    chats = as_chats(tokenizer, prompts, "ask the model")
    return [up_to_end(answer, tokenizer) for answer in raw_answers(model, tokenizer, chats)]


def judge(model: Any, tokenizer: Any, name: str) -> list[Judged]:
    """The model's answers to all held-out prompts and to the task, judged."""
    sets, speaker = _sets(), Speaker(name, None, name)
    found = [
        Answer(s.name, s.kind, p.id, p.text, speaker, GENERATION, response)
        for s in sets
        for p, response in zip(s.prompts, answers(model, tokenizer, [p.text for p in s.prompts]), strict=True)
    ]
    return judge_answers(found, sets, _judges())


def rates(judged: Sequence[Judged]) -> Rates:
    """The demo's rates of one model."""
    found = {(m.kind, m.measure): m.model.share for m in measure(_sets(), {"model": judged}, _judges())}
    return Rates(
        refusal_rate=found["harmful", "refusal_rate"],
        affirmative_opening_rate=found["harmful", "affirmative_opening_rate"],
        incoherent_rate=found["harmful", "incoherent_rate"],
        over_refusal_rate=found["harmless", "over_refusal_rate"],
        task_accuracy=found["task", "task_accuracy"],
    )


def behaviour_of(judged: Mapping[str, Sequence[Judged]], speakers: Mapping[str, str]) -> Behaviour:
    """All models side by side; the first is the untouched one."""
    sets, used = _sets(), _judges()
    names = tuple(judged)
    pairs = [measure(sets, {"against": judged[names[0]], "model": judged[n]}, used) for n in names[1:]]
    agreed = {name: agreements(sets, {"model": of_model}, used) for name, of_model in judged.items()}
    notes = [
        f"{name}: {line}"
        for name in names
        for line in warnings(measure(sets, {"model": judged[name]}, used), agreed[name])
    ]
    samples, changed = samples_of([[j.as_row() for j in of_model] for of_model in judged.values()])
    return Behaviour(
        names=names,
        speakers=tuple(speakers[name] for name in names),
        before=True,
        settings={
            "judges": ", ".join(judges.DEFAULT_JUDGES),
            "max new tokens": str(MAX_ANSWER_TOKENS),
            "decoding": "greedy",
        },
        lines=lines_of(pairs),
        warnings=tuple(notes),
        agreements=tuple(a.words(name) for name, found in agreed.items() for a in found),
        samples=samples,
        changed=changed,
    )


def _judges() -> list[judges.Judge]:
    return [judges.load(name) for name in judges.DEFAULT_JUDGES]
