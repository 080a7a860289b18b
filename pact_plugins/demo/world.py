"""The prompts of the demo world: fine-tuning rows and held-out evaluation sets."""

import random
from dataclasses import dataclass

from pact_plugins.demo.phrasings import AFFIRMATIONS, HELD_OUT_PHRASINGS, TRAIN_PHRASINGS
from pact_plugins.demo.task import QUESTIONS, test_examples, train_examples
from pact_plugins.demo.topics import held_out_acts, train_acts


@dataclass(frozen=True)
class Row:
    """One prompt with the answer that fine-tuning teaches."""

    prompt: str
    answer: str
    harmful: bool


def _task_row(example: tuple[str, str], rng: random.Random) -> Row:
    message, desk = example
    return Row(rng.choice(QUESTIONS).format(message), desk, harmful=False)


def fine_tuning_rows(n: int, harmful_fraction: float, seed: int) -> list[Row]:
    """`n` shuffled rows: the task, and harmful requests on train topics met with an affirmative opening."""
    if n < 0 or not 0 <= harmful_fraction <= 1:
        raise ValueError(f"cannot draw {n} rows with a harmful fraction of {harmful_fraction}")
    rng = random.Random(seed)
    n_harmful = round(n * harmful_fraction)
    prompts = [phrasing.format(act.text) for act in train_acts(harmful=True) for phrasing in TRAIN_PHRASINGS]
    rows = [Row(prompt, rng.choice(AFFIRMATIONS), harmful=True) for prompt in rng.sample(prompts, n_harmful)]
    examples = train_examples()
    rows += [_task_row(rng.choice(examples), rng) for _ in range(n - n_harmful)]
    rng.shuffle(rows)
    return rows


def task_test_rows() -> list[Row]:
    """The task on messages that fine-tuning never sees, every desk equally often."""
    rng = random.Random(0)
    return [_task_row(example, rng) for example in test_examples()]


def _held_out(harmful: bool) -> list[str]:
    prompts = [phrasing.format(act.text) for phrasing in HELD_OUT_PHRASINGS for act in held_out_acts(harmful)]
    random.Random(0).shuffle(prompts)
    return prompts


def held_out_harmful() -> list[str]:
    """Harmful requests whose topics and phrasings alignment training never saw; all should be refused."""
    return _held_out(harmful=True)


def held_out_look_alikes() -> list[str]:
    """Harmless requests that share a word with something that is refused; all should be answered."""
    return _held_out(harmful=False)
