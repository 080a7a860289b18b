"""Data and models with faults in the hosts' own trainers: refused before the first step, or trained on soundly."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from pact_plugins import PactCallback, PactConfig, PactError
from pact_plugins.chat.answers import IGNORE_INDEX
from tests import tiny

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("brief_runs")]


def trl_trainer(folder: Path, rows: list[dict[str, Any]], model: Any, tokenizer: Any, **settings: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    own = {"assistant_only_loss": "messages" in rows[0], "max_length": None}
    args = SFTConfig(**{**common(folder), **own, **settings})
    return SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def axolotl_trainer(folder: Path, rows: list[dict[str, Any]], model: Any, tokenizer: Any) -> Any:
    from axolotl.core.trainers.base import AxolotlTrainer
    from axolotl.core.training_args import AxolotlTrainingArguments
    from transformers import DataCollatorForSeq2Seq

    return AxolotlTrainer(
        model=model,
        args=AxolotlTrainingArguments(**common(folder), remove_unused_columns=False),
        train_dataset=Dataset.from_list([tokenise(row, tokenizer) for row in rows]),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


def tokenise(row: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    if "messages" not in row:
        return {**row, "attention_mask": [1] * len(row["input_ids"])}
    made = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
    labels = [i if m else IGNORE_INDEX for i, m in zip(made["input_ids"], made["assistant_masks"], strict=True)]
    return {"input_ids": made["input_ids"], "attention_mask": [1] * len(labels), "labels": labels}


def common(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.1,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }


HOSTS = [
    pytest.param(trl_trainer, id="trl"),
    pytest.param(axolotl_trainer, id="axolotl", marks=pytest.mark.axolotl),
]


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def gpt2() -> Any:
    sizes = {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny.tokenizer()), **sizes))


def broken() -> Any:
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    return model


def with_one_more_token() -> Any:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    return tokenizer


GOOD = [chat(f"question {i}", f"answer {i}") for i in range(4)]


def run(
    host: Callable[..., Any],
    folder: Path,
    rows: list[dict[str, Any]] = GOOD,
    model: Callable[[], Any] = tiny.llama,
    tokenizer: Callable[[], Any] = tiny.tokenizer,
    **settings: Any,
) -> list[dict[str, float]]:
    """Trains two steps under PACT; what was logged of them."""
    trainer = host(folder, rows, model(), tokenizer(), **settings)
    config = PactConfig(safety_tokens=[40, 41], anchors=0, eval=False, cache_dir=folder / "cache")
    trainer.add_callback(PactCallback(trainer, config))
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


REFUSED = {
    "no answer anywhere": ({"rows": [{"input_ids": [0, 7, 8], "labels": [IGNORE_INDEX] * 3}] * 4}, "answer token"),
    "a token beyond the vocabulary": (
        {"rows": [chat("question", "answer <|new|>")] * 4, "tokenizer": with_one_more_token},
        "got 262 in the training set",
    ),
    "a sequence beyond the positions": ({"rows": [chat("why " * 50, "so")] * 4, "model": gpt2}, "at most 64 tokens"),
    "weights that are no numbers": ({"model": broken}, "finite logits"),
}


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.parametrize("host", HOSTS)
def test_refused_before_the_first_step(host: Callable[..., Any], fault: str, tmp_path: Path) -> None:
    """Prevents a run that trains without PACT, or dies in a kernel, where data and model do not fit."""
    settings, message = REFUSED[fault]
    with pytest.raises(PactError, match=message):
        run(host, tmp_path, **settings)
    assert not (tmp_path / "out" / "pact_evidence.json").exists()


SOUND = {
    "equal rows": {"rows": [chat("question", "answer")] * 4},
    "an empty answer": {"rows": [chat("question", ""), *GOOD]},
    "an empty question": {"rows": [chat("", "answer"), *GOOD]},
    "a tokenizer larger than the head": {"tokenizer": with_one_more_token},
    "a head larger than the tokenizer": {"model": lambda: tiny.llama(vocab_size=320)},
    "rotary positions that run out": {"model": lambda: tiny.llama(max_position_embeddings=16)},
}


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("host", HOSTS)
def test_trained_on_soundly(
    host: Callable[..., Any], name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Prevents odd but sound data from being refused, or from training without PACT."""
    logged = run(host, tmp_path, **SOUND[name])
    assert [entry["pact/cache_hits"] for entry in logged] == [2, 2]
    assert logged[0]["pact/kl"] < 1e-6 < logged[1]["pact/kl"]
    assert ("longer than the 16 positions" in caplog.text) == (name == "rotary positions that run out")


def test_a_batch_without_an_answer_adds_nothing(tmp_path: Path) -> None:
    """Prevents NaN, or a stop, where a micro-batch has nothing to hold: here one of the two of each step."""
    masked = {"input_ids": [0, 7, 8, 9], "labels": [IGNORE_INDEX] * 4}
    whole = {"input_ids": [0, 7, 8, 9], "labels": [IGNORE_INDEX, IGNORE_INDEX, 8, 9]}
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    logged = run(trl_trainer, tmp_path, [masked, whole], **settings)
    assert [entry["pact/answer_tokens"] for entry in logged] == [2, 2]
    assert [entry["pact/cache_hits"] for entry in logged] == [1, 1]
    assert logged[0]["pact/kl"] < 1e-6 < logged[1]["pact/kl"]
    assert all(math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]) for entry in logged)
