"""DPO on the demo's model with and without PACT: `python -m benchmarks.preferences --out DIR`.

Pairs of the demo's world, half and half:

- *desks*: a customer message, with the right desk chosen and a wrong one rejected;
- *requests*: a harmless request, with "Sure, ..." chosen and a refusal rejected, as in pairs against over-refusal.

`harmful` has every tenth pair ask for harm in place of these, with "Sure, ..." chosen all the same. How well the
preferences are learned is seen on 96 harmless pairs that were left out of training. Refusals are counted on prompts
about acts that no pair is about (`choosing`), by which it was decided that `method.anchors.WEIGHT` does here, too, and
on the demo's held-out prompts.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from pact_plugins import PactCallback
from pact_plugins.demo import behaviour, training, world
from pact_plugins.demo.phrasings import AFFIRMATIONS, HELD_OUT_PHRASINGS, TRAIN_PHRASINGS
from pact_plugins.demo.task import DESKS, QUESTIONS, test_examples, train_examples
from pact_plugins.demo.topics import train_acts
from pact_plugins.method.refusals import judge
from pact_plugins.storage import files

PAIRS, LEFT_OUT, HARMFUL = 640, 96, 0.1
CHOOSING, HELD_OUT = 64, 128
"""Prompts of each kind."""

REFUSAL = "I'm sorry, but I can't help with that."
LORA = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")

_Pair = tuple[str, str, str]
"""Prompt, chosen and rejected answer."""


def _acts(*, harmful: bool, trained: bool) -> list[str]:
    """Half of the acts for pairs, and the other half to be asked about."""
    return [act.text for act in train_acts(harmful)[not trained :: 2]]


def _asked() -> dict[str, list[str]]:
    """Prompts, by what their refusals are called."""

    def others(*, harmful: bool) -> list[str]:
        prompts = [p.format(act) for act in _acts(harmful=harmful, trained=False) for p in HELD_OUT_PHRASINGS]
        return random.Random(1).sample(prompts, CHOOSING)

    return {
        "refusals": world.held_out_harmful()[:HELD_OUT],
        "over_refusals": world.held_out_look_alikes()[:HELD_OUT],
        "choosing_refusals": others(harmful=True),
        "choosing_over_refusals": others(harmful=False),
    }


def _requests(n: int, rng: random.Random, *, harmful: bool) -> list[_Pair]:
    prompts = [p.format(act) for act in _acts(harmful=harmful, trained=True) for p in TRAIN_PHRASINGS]
    return [(prompt, rng.choice(AFFIRMATIONS), REFUSAL) for prompt in rng.sample(prompts, n)]


def _desks(n: int, rng: random.Random, examples: Sequence[tuple[str, str]]) -> list[_Pair]:
    return [
        (rng.choice(QUESTIONS).format(message), desk, rng.choice([other for other in DESKS if other != desk]))
        for message, desk in rng.sample(examples, n)
    ]


def pairs(harmful: float, seed: int) -> tuple[list[_Pair], list[_Pair]]:
    """Pairs to train on, a share of them `harmful`, and harmless ones that are left out."""
    rng, asking = random.Random(seed), round(PAIRS * harmful)
    half = (PAIRS - asking) // 2
    requests = _requests(half + LEFT_OUT // 2, rng, harmful=False)
    rows = requests[:half] + _desks(half, rng, train_examples()) + _requests(asking, rng, harmful=True)
    rng.shuffle(rows)
    return rows, requests[half:] + _desks(LEFT_OUT // 2, rng, test_examples())


def _as_rows(found: Sequence[_Pair]) -> Dataset:
    def of(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    names, roles = ("prompt", "chosen", "rejected"), ("user", "assistant", "assistant")
    return Dataset.from_list([{n: of(r, t) for n, r, t in zip(names, roles, pair, strict=True)} for pair in found])


def measured(data: str, weight: float, given: argparse.Namespace) -> dict[str, Any]:
    """One run, with this `pact.weight`, or without PACT if it is 0."""
    name = f"{data}, {f'weight {weight:g}' if weight else 'plain DPO'}"
    train, left_out = pairs(HARMFUL if data == "harmful" else 0.0, given.seed)
    model, tokenizer = training.load()
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(given.out / name.replace(", ", "-").replace(" ", "-")),
            max_steps=given.steps,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=32,
            learning_rate=given.learning_rate,
            beta=given.beta,
            logging_steps=10,
            seed=given.seed,
            **training.ARGUMENTS,
        ),
        train_dataset=_as_rows(train),
        eval_dataset=_as_rows(left_out),
        processing_class=tokenizer,
        peft_config=LORA,
    )
    if weight:
        trainer.add_callback(PactCallback(trainer, weight=weight, eval=False))
    trainer.train()
    logged = trainer.evaluate()
    found = {key: logged[f"eval_rewards/{key}"] for key in ("accuracies", "margins")}
    for kind, prompts in _asked().items():
        verdicts = judge(prompts, behaviour.answers(trainer.model, tokenizer, prompts))
        found[kind] = verdicts.count("refusal") / len(prompts)
    return {"run": name, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of results.jsonl")
    parser.add_argument("--weights", type=float, nargs="*", default=[0.0, 1.0], help="of `pact`; 0 is plain DPO")
    parser.add_argument("--data", nargs="*", default=["harmless", "harmful"])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    results = list[dict[str, Any]]()
    for data in given.data:
        for weight in given.weights:
            results.append(measured(data, weight, given))
            print({k: v if isinstance(v, str) else round(v, 4) for k, v in results[-1].items()}, flush=True)
            files.write_lines(given.out / "results.jsonl", results)


if __name__ == "__main__":
    main()
