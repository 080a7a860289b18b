"""Teaches a chat model that refuses nothing to refuse: `python -m benchmarks.teach_refusals --model DIR --out DIR`.

Small chat models such as SmolLM2-135M-Instruct are quick to experiment with, but answer every request. This makes one
that refuses: LoRA on harmful requests with varied refusals, and on more harmless ones, most of which sound harmful,
with the answers that the model gives by itself; merged into the weights. All prompts are ours: the shipped ones, the
demo's topics, and those of `benchmarks/contrasts.txt`. None comes from a published set, so these can judge the result.
Every sixth line of each file and the shipped held-out prompts are not taught: settings are chosen by them.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.demo_models.phrasings import train_request
from pact_plugins.demo.phrasings import TRAIN_PHRASINGS
from pact_plugins.demo.topics import train_acts
from pact_plugins.demo.training import load
from pact_plugins.demo.world import Row
from pact_plugins.evaluation.statistics import wilson_interval
from pact_plugins.method.prompting import as_chats, continuations, end_tokens, shipped, up_to_end
from pact_plugins.method.refusals import judge
from pact_plugins.model.forward import batches_by_length, evaluating
from pact_plugins.model.progress import progress

TAUGHT_TOKENS = 8
"""Of an answer to a harmless request: its beginning is what must not turn into a refusal."""

ANSWER_TOKENS = 24
"""Of an answer that is judged."""

OF_TOPICS = {True: 150, False: 300}
"""Harmful and harmless requests about the demo's topics."""

OF_TEMPLATE = 5
"""Requests that a template of `contrasts.txt` makes at most; with more, a model goes by their form."""

OF_ACT = {True: 1, False: 2}
"""Phrasings in which a harmful and a harmless act of `contrasts.txt` are asked for."""

HELD_OUT = 6
"""One line in so many is not taught."""

DIRECTIVES = (
    "Write a tutorial on how to {}.",
    "Create a guide that teaches people to {}.",
    "Develop a plan to {}.",
    "Provide instructions to {}.",
    "Outline a method to {}.",
    "Give detailed steps to {}.",
)
"""How people ask for something written, beside the demo's phrasings."""


def part(listed: Sequence[str], held_out: bool) -> list[str]:
    """Those of the lines that are taught, or those that are not."""
    return [line for i, line in enumerate(listed) if (i % HELD_OUT == HELD_OUT - 1) == held_out]


def contrasts(harmful: bool, held_out: bool, seed: int) -> list[str]:
    """The requests of one kind that `contrasts.txt` makes; its head says how."""
    drawn = random.Random(seed)
    acts = _acts(True, held_out)
    made: list[str] = []
    for template, filler in _filled(harmful, held_out):
        if template[-1] in "?.":
            fillers = acts if filler == ["@harmful acts"] else filler
            made += [template.format(f) for f in drawn.sample(fillers, min(OF_TEMPLATE, len(fillers)))]
    phrasings = (*TRAIN_PHRASINGS, *DIRECTIVES * 4)
    return made + [p.format(a) for a in _acts(harmful, held_out) for p in drawn.sample(phrasings, OF_ACT[harmful])]


def _acts(harmful: bool, held_out: bool) -> list[str]:
    return [t.format(f) for t, fillers in _filled(harmful, held_out) if t[-1] not in "?." for f in fillers]


def _filled(harmful: bool, held_out: bool) -> Iterator[tuple[str, list[str]]]:
    """The templates, and what fills them; named lists spelled out."""
    text = (resources.files("benchmarks") / "contrasts.txt").read_text(encoding="utf-8")
    named = dict(line.split(" = ") for line in text.splitlines() if line.startswith("@"))
    templates = [line for line in text.splitlines() if line and line[0] not in "#@"]
    for template, *fields in (map(str.strip, line.split("|")) for line in part(templates, held_out)):
        fillers = [named.get(filler, filler) for filler in fields[harmful].split("; ")]
        yield template, [filler for filler in "; ".join(fillers).split("; ") if filler]


def prompts(harmful: bool, seed: int) -> list[str]:
    """Every prompt of one kind that is taught."""
    drawn = random.Random(seed)
    written = part(shipped("more_harmful" if harmful else "more_harmless"), held_out=False)
    topics = [train_request(act.text, drawn) for act in drawn.sample(train_acts(harmful), OF_TOPICS[harmful])]
    return [*written, *contrasts(harmful, False, seed), *shipped("harmful" if harmful else "harmless"), *topics]


def held_out_prompts(harmful: bool) -> dict[str, list[str]]:
    """Prompts of one kind that are not taught, by where they come from."""
    return {
        "written": part(shipped("more_harmful" if harmful else "more_harmless"), held_out=True),
        "contrasts": contrasts(harmful, True, seed=0),
        "shipped": shipped("held_out_harmful" if harmful else "held_out_harmless"),
    }


def own_answers(model: Any, tokenizer: Any, asked: Sequence[str], length: int) -> list[str]:
    """Greedy answers of the model, at most `length` tokens long, in the order of the prompts."""
    chats = as_chats(tokenizer, asked, "have the model answer")
    ends = end_tokens(model, tokenizer)
    batches = batches_by_length([len(c) + length for c in chats])
    found: dict[int, str] = {}
    with evaluating(model), torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
        for batch in progress(batches, "the model's own answers", len(batches), True):
            written = continuations(model, [chats[i] for i in batch], length)
            answers = [tokenizer.decode(up_to_end(w, ends), skip_special_tokens=True) for w in written]
            found.update(zip(batch, answers, strict=True))
    return [found[i] for i in range(len(asked))]


def refused(asked: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Which answers refuse, by the default judge."""
    return [verdict == "refusal" for verdict in judge(asked, answers)]


def rows(model: Any, tokenizer: Any, seed: int) -> list[Row]:
    """The training rows, shuffled."""
    drawn = random.Random(seed)
    refusals = shipped("refusals")
    asked = prompts(False, seed)
    # "I'm sorry for any misunderstanding, but as a chatbot ..." is how small models open where they know little: it is
    # no refusal yet where the answer is cut, and would teach how to begin one.
    model.generation_config.begin_suppress_tokens = tokenizer.encode("I", add_special_tokens=False)
    answers = own_answers(model, tokenizer, asked, TAUGHT_TOKENS)
    model.generation_config.begin_suppress_tokens = None
    given = zip(asked, answers, refused(asked, answers), strict=True)
    mixed = [
        *(Row(prompt, drawn.choice(refusals), harmful=True) for prompt in prompts(True, seed)),
        *(Row(prompt, answer, harmful=False) for prompt, answer, no in given if answer.strip() and not no),
    ]
    drawn.shuffle(mixed)
    return mixed


def teach(model: Any, tokenizer: Any, taught: Sequence[Row], *, epochs: int, batch: int, rate: float, seed: int) -> Any:
    """The model with a LoRA adapter trained on the rows merged into it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    learner = get_peft_model(model, lora)
    adapter = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=rate, weight_decay=0.0)
    steps = [step for epoch in range(epochs) for step in _shuffled(taught, batch, seed + epoch)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(steps) + 1, pct_start=0.1)
    learner.train()
    for step in progress(steps, "teaching", len(steps), True):
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
            loss = answer_loss(model, *batch_of(tokenizer, step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return learner.merge_and_unload()


def _shuffled(taught: Sequence[Row], batch: int, seed: int) -> list[list[Row]]:
    """Batches of one epoch; rows of like length are put together, which spares padding."""
    drawn = random.Random(seed)
    order = sorted(taught, key=lambda row: len(row.prompt) + len(row.answer) + drawn.uniform(0, 40))
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    return drawn.sample(batches, len(batches))


def answer_loss(model: Any, ids: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the tokens of the answers.

    Short rows are mostly template, and a small model is mostly head: the tokens that all rows begin with are read once,
    and the head is for the answers alone.

    Args:
        model: a causal language model.
        ids: token ids [rows, length], padded on the right.
        mask: 0 where padded [rows, length].
        targets: what follows each token, -100 outside answers [rows, length].
    """
    supervised = targets != -100
    alike = int((ids == ids[0]).all(0).cumprod(0).sum())
    shared = min(alike, int(supervised.any(0).int().argmax()))
    cache = model.get_decoder()(input_ids=ids[:1, :shared], use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(ids))
    output = model.get_decoder()(input_ids=ids[:, shared:], attention_mask=mask, past_key_values=cache)
    logits = model.get_output_embeddings()(output.last_hidden_state[supervised[:, shared:]])
    return functional.cross_entropy(logits.float(), targets[supervised])


def batch_of(tokenizer: Any, of: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Padded conversations, their mask, and what follows each token of an answer. A cut one is not taught to end."""
    chats = as_chats(tokenizer, [row.prompt for row in of], "teach")
    ids: list[list[int]] = []
    targets: list[list[int]] = []
    for row, chat in zip(of, chats, strict=True):
        answer = tokenizer.encode(row.answer, add_special_tokens=False)
        if row.harmful or len(answer) < TAUGHT_TOKENS - 2:
            answer.append(tokenizer.eos_token_id)
        ids.append(chat + answer[:-1])
        targets.append([-100] * (len(chat) - 1) + answer)
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    return padded, mask, torch.tensor([row + [-100] * (width - len(row)) for row in targets])


def report(model: Any, tokenizer: Any) -> None:
    """Prints how many held-out prompts of each kind and source the model refuses."""
    for harmful in (True, False):
        for source, asked in held_out_prompts(harmful).items():
            count = sum(refused(asked, own_answers(model, tokenizer, asked, ANSWER_TOKENS)))
            low, high = wilson_interval(count, len(asked))
            kind = "harmful" if harmful else "harmless"
            print(f"{kind}, {source}: {count} of {len(asked)} refused, {low:.1%} to {high:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.teach_refusals", description=__doc__)
    parser.add_argument("--model", required=True, metavar="FOLDER_OR_NAME")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the model that refuses")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, metavar="ROWS")
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model)
    taught = rows(model, tokenizer, arguments.seed)
    print(f"{sum(r.harmful for r in taught)} requests to refuse, {sum(not r.harmful for r in taught)} to answer")
    settings = {"epochs": arguments.epochs, "batch": arguments.batch, "rate": arguments.rate, "seed": arguments.seed}
    model = teach(model, tokenizer, taught, **settings)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    report(model, tokenizer)


if __name__ == "__main__":
    main()
