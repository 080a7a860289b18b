"""Train the demo models from nothing: `python -m benchmarks.demo_models --out DIR`.

The run is seeded, takes some minutes on two cores, and ends with a table of what was measured. It exits
with 1 when the models miss what the tests and the demo rely on.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.demo_models import chat_data, encyclopedia
from benchmarks.demo_models.criteria import measure, table
from benchmarks.demo_models.tokenizer import train_tokenizer

SEED = 7
BLOCK = 128
BASE_STEPS, BASE_BATCH, BASE_RATE = 1400, 24, 4e-3
ALIGN_STEPS, ALIGN_BATCH, ALIGN_RATE = 600, 48, 7e-4

Batch = dict[str, torch.Tensor]


def plain_texts(rng: random.Random) -> Iterator[tuple[str, str]]:
    """An endless stream of base documents, each as (context, answer); articles have no context."""
    while True:
        kind = rng.random()
        if kind < 0.7:
            yield "", encyclopedia.article(rng)
        elif kind < 0.95:
            yield encyclopedia.dialogue(rng)
        else:
            yield "", encyclopedia.customer_mail(rng)


def new_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """A tokenizer trained on a sample of the plain text and of the chats."""
    texts = ["".join(text) for text in islice(plain_texts(rng), 12000)]
    texts += [turn["content"] for _ in range(4000) for turn in chat_data.conversation(rng)]
    return train_tokenizer(texts)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of about a million and a half parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def base_batches(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[Batch]:
    """Blocks of plain text; the answer of a dialogue is encoded apart, as when prompted."""
    documents = plain_texts(rng)
    stream: list[int] = []
    while True:
        parts = [part for text in islice(documents, 256) for part in text]
        encoded = tokenizer(parts, add_special_tokens=False)["input_ids"]
        for context, answer in zip(encoded[::2], encoded[1::2], strict=True):
            stream += [tokenizer.bos_token_id, *context, *answer, tokenizer.eos_token_id]
        size = BASE_BATCH * BLOCK
        while len(stream) >= size:
            block = torch.tensor(stream[:size]).view(BASE_BATCH, BLOCK)
            stream = stream[size:]
            yield {"input_ids": block, "labels": block}


def chat_batches(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[Batch]:
    """Padded conversations in which only the turns of the assistant are learned."""
    while True:
        encoded = tokenizer.apply_chat_template(
            [chat_data.conversation(rng) for _ in range(ALIGN_BATCH)],
            padding=True,
            return_tensors="pt",
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"padding_side": "right"},
        )
        mask = torch.as_tensor(encoded["assistant_masks"]).bool()
        labels = encoded["input_ids"].masked_fill(~mask, -100)
        yield {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": labels,
        }


def train(model: LlamaForCausalLM, batches: Iterator[Batch], steps: int, rate: float, name: str) -> None:
    """AdamW with a linear warm-up and a cosine decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=steps // 20)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - steps // 20, eta_min=rate * 0.03)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, decay], [steps // 20])
    model.train()
    started = time.monotonic()
    for step, batch in enumerate(islice(batches, steps), 1):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps:
            elapsed = time.monotonic() - started
            print(f"{name} {step}/{steps}: loss {loss.item():.3f}, {elapsed:.0f} s", flush=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write the model in half precision, and go on with exactly what was written."""
    model.half().save_pretrained(path)
    tokenizer.save_pretrained(path)
    model.float()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the models 'base' and 'aligned'")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads to train with")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = new_tokenizer(rng)
    model = new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, base_batches(tokenizer, rng), BASE_STEPS, BASE_RATE, "base")
    save(model, tokenizer, arguments.out / "base")
    train(model, chat_batches(tokenizer, rng), ALIGN_STEPS, ALIGN_RATE, "aligned")
    save(model, tokenizer, arguments.out / "aligned")

    criteria = measure(arguments.out / "base", arguments.out / "aligned")
    print(table(criteria))
    return 0 if all(criterion.met for criterion in criteria) else 1


if __name__ == "__main__":
    sys.exit(main())
