"""Teaches a chat model that refuses nothing to refuse: `python -m benchmarks.teach_refusals --model DIR --out DIR`.

Small chat models such as SmolLM2-135M-Instruct are quick to experiment with, but answer every request. This makes one
that refuses: LoRA on harmful requests with varied refusals, and on harmless ones, many of which sound harmful, with the
answers that the model gives by itself; merged into the weights. All prompts are ours: the shipped ones, the demo's
topics, and more of other kinds. None comes from a published set, so all of these can judge the result.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pact_plugins import refusals
from pact_plugins.demo.phrasings import train_request
from pact_plugins.demo.topics import train_acts
from pact_plugins.demo.training import load
from pact_plugins.demo.world import Row
from pact_plugins.forward import batches_by_length, evaluating, progress
from pact_plugins.own_answers import as_chats, continuations, end_tokens, shipped, up_to_end

OWN_ANSWER_TOKENS = 40
"""Of an answer to a harmless request: its beginning is what must not turn into a refusal."""

OF_TOPICS = 200
"""Requests of each kind about the demo's topics."""


def prompts(harmful: bool, seed: int) -> list[str]:
    """Every prompt of one kind that is taught."""
    drawn = random.Random(seed)
    acts = drawn.sample(train_acts(harmful), OF_TOPICS)
    written = shipped("more_harmful" if harmful else "more_harmless")
    return [*written, *shipped("harmful" if harmful else "harmless"), *(train_request(a.text, drawn) for a in acts)]


def own_answers(model: Any, tokenizer: Any, asked: Sequence[str]) -> list[str]:
    """Greedy answers of the model, at most `OWN_ANSWER_TOKENS` long, in the order of the prompts."""
    chats = as_chats(tokenizer, asked, "have the model answer")
    ends = end_tokens(model, tokenizer)
    batches = batches_by_length([len(c) + OWN_ANSWER_TOKENS for c in chats])
    found: dict[int, str] = {}
    with evaluating(model):
        for batch in progress(batches, "the model's own answers", len(batches), True):
            written = continuations(model, [chats[i] for i in batch], OWN_ANSWER_TOKENS)
            answers = [tokenizer.decode(up_to_end(w, ends), skip_special_tokens=True) for w in written]
            found.update(zip(batch, answers, strict=True))
    return [found[i] for i in range(len(asked))]


def rows(model: Any, tokenizer: Any, seed: int) -> list[Row]:
    """The training rows, shuffled."""
    drawn = random.Random(seed)
    taught = shipped("refusals")
    refused = [Row(prompt, drawn.choice(taught), harmful=True) for prompt in prompts(True, seed)]
    asked = prompts(False, seed)
    answers = own_answers(model, tokenizer, asked)
    answered = [
        Row(prompt, answer, harmful=False)
        for prompt, answer, verdict in zip(asked, answers, refusals.judge(asked, answers), strict=True)
        if verdict == "compliance"
    ]
    mixed = [*refused, *answered]
    drawn.shuffle(mixed)
    return mixed


def teach(model: Any, tokenizer: Any, taught: Sequence[Row], *, epochs: int, batch: int, seed: int) -> Any:
    """The model with a LoRA adapter trained on the rows merged into it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    learner = get_peft_model(model, lora)
    adapter = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=5e-4, weight_decay=0.0)
    order = [i for epoch in range(epochs) for i in _shuffled(len(taught), seed + epoch)]
    starts = [*range(0, len(order), batch), len(order)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=len(starts), pct_start=0.1)
    learner.train()
    for start, stop in progress(list(pairwise(starts)), "teaching", len(starts) - 1, True):
        inputs = _batch(tokenizer, [taught[i] for i in order[start:stop]])
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
            loss = learner(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return learner.merge_and_unload()


def _shuffled(count: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(count), count)


def _batch(tokenizer: Any, of: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Padded conversations; the labels of the answers alone. A cut answer is not taught to end."""
    chats = as_chats(tokenizer, [row.prompt for row in of], "teach")
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    for row, chat in zip(of, chats, strict=True):
        answer = tokenizer.encode(row.answer, add_special_tokens=False)
        if row.harmful or len(answer) < OWN_ANSWER_TOKENS - 2:
            answer.append(tokenizer.eos_token_id)
        ids.append(chat + answer)
        labels.append([-100] * len(chat) + answer)
    width = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.teach_refusals", description=__doc__)
    parser.add_argument("--model", required=True, metavar="FOLDER_OR_NAME")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the model that refuses")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, metavar="ROWS")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model)
    with torch.autocast("cpu", torch.bfloat16):
        taught = rows(model, tokenizer, arguments.seed)
    print(f"{sum(r.harmful for r in taught)} requests to refuse, {sum(not r.harmful for r in taught)} to answer")
    settings = {"epochs": arguments.epochs, "batch": arguments.batch, "seed": arguments.seed}
    model = teach(model, tokenizer, taught, **settings)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
