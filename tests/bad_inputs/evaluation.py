"""Adapters of other models, and answers of other runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import transformers
from datasets import Dataset

from pact_plugins.config import EvalConfig
from pact_plugins.evaluation import scorers
from pact_plugins.evaluation.engines import Generation, transformers_engine
from pact_plugins.evaluation.generation import Speaker, first_speaker, generate
from pact_plugins.evaluation.loading import lora_rank, with_adapter
from pact_plugins.evaluation.of_run import RunEvaluation
from pact_plugins.evaluation.prompts import Prompt, PromptSet, under_system
from pact_plugins.method.asking import ask
from pact_plugins.method.prompting import as_chats
from pact_plugins.run.trainer import Start
from tests import tiny
from tests.bad_inputs.case import BadInput, config, given, trainer_on, written
from tests.rows import flip_bit


def _model() -> Any:
    model = tiny.llama()
    model.config.name_or_path = "my-model"
    return model


def _adapter(change: Callable[[Path], Any] = lambda folder: None, **of_its_base: Any) -> Callable[[Path], Any]:
    """Puts an adapter that was trained on another model, or whose files were changed, on the tiny model."""

    def act(folder: Path) -> Any:
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        peft.get_peft_model(tiny.llama(**of_its_base), config).save_pretrained(str(folder))
        change(folder)
        return with_adapter(_model(), str(folder))

    return act


def _file(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def _ia3(_folder: Path) -> Any:
    config = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    return lora_rank(peft.get_peft_model(tiny.llama(), config))


def _asked(path: Path, speaker: str, *prompts: str) -> Any:
    sets = [PromptSet("mine", "harmful", tuple(Prompt(str(i), text) for i, text in enumerate(prompts)))]
    how = Generation(max_new_tokens=2)
    engine = transformers_engine(tiny.llama(), tiny.tokenizer(), how)
    who = Speaker(speaker, None, speaker)
    return generate(engine, tiny.tokenizer(), who, sets, how, path)


def _of_another_model(folder: Path) -> Any:
    _asked(folder / "answers.jsonl", "one", "Do it.")
    return _asked(folder / "answers.jsonl", "another", "Do it.")


def _of_other_prompts(folder: Path) -> Any:
    _asked(folder / "answers.jsonl", "one", "Do it.", "And this.")
    return _asked(folder / "answers.jsonl", "one", "Do it.")


def _changed(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    """Goes on with a file of answers that something else has changed."""

    def act(folder: Path) -> Any:
        path = folder / "answers.jsonl"
        _asked(path, "one", "Do it.")
        path.write_bytes(change(path.read_bytes()))
        return _asked(path, "one", "Do it.")

    return act


def _without_a_template(_folder: Path) -> Any:
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    return as_chats(bare, ["Do it."], "ask the model")


def _template_without_system(folder: Path) -> Any:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refusal + tiny.TEMPLATE
    how = Generation(max_new_tokens=2)
    engine = transformers_engine(tiny.llama(), tokenizer, how)
    sets = [under_system(PromptSet("mine", "harmful", (Prompt("1", "Do it."),)), "Be kind.")]
    return generate(engine, tokenizer, Speaker("m", None, "m"), sets, how, folder / "answers.jsonl")


def _smaller_embeddings(folder: Path) -> Any:
    engine = transformers_engine(tiny.llama(vocab_size=50), tiny.tokenizer(), Generation(max_new_tokens=2))
    return engine.answer(as_chats(tiny.tokenizer(), ["Do it."], "ask the model"), 0, print)


def _kept_and_changed(folder: Path) -> Any:
    for name in ("one", "two"):
        how = EvalConfig(limit=1, max_new_tokens=1)
        run = RunEvaluation(how, folder / name, tiny.tokenizer(), folder)
        run.before(tiny.llama(), "my-model", resumed=False)
        for kept in folder.glob("questions-*.json"):
            flip_bit(kept, -20)


def _silent(_folder: Path) -> Any:
    model = tiny.llama()
    model.generate = lambda input_ids, **_kw: input_ids
    return ask(model, tiny.tokenizer(), as_chats(tiny.tokenizer(), ["Do it."], "ask"))


def _split(rows: list[dict[str, Any]] | None) -> Callable[[Path], Any]:
    """Begins a run whose eval split is its task."""

    def act(folder: Path) -> Any:
        trainer = trainer_on(folder)
        trainer.eval_dataset = None if rows is None else Dataset.from_list(rows)
        return Start.of(trainer, config(folder, eval={"task": "split"}))

    return act


_UNDER = r"an adapter under `.*` that was trained on the model .*; got "

INPUTS = [
    BadInput("No adapter", lambda folder: with_adapter(_model(), str(folder)), _UNDER + "a folder without"),
    BadInput("An adapter of a wider model", _adapter(hidden_size=64), _UNDER + "RuntimeError"),
    BadInput(
        "An adapter of a deeper model", _adapter(num_hidden_layers=3), _UNDER + r"\d+ weights without a counterpart"
    ),
    BadInput("An adapter that was cut off", _adapter(_file("adapter_model.safetensors", b"")), _UNDER + "Safetensor"),
    BadInput(
        "An adapter's config that is no JSON", _adapter(_file("adapter_config.json", b"{")), _UNDER + "JSONDecode"
    ),
    BadInput("An adapter's config that is empty", _adapter(_file("adapter_config.json", b"{}")), _UNDER + "KeyError"),
    BadInput("An unknown kind of adapter", _adapter(_file("adapter_config.json", b'{"peft_type": "NEW"}')), _UNDER),
    BadInput("Another adapter than LoRA for vLLM", _ia3, r"a LoRA adapter; got .*IA3.*`--engine transformers`"),
    BadInput(
        "A model without a chat template", _without_a_template, r"a tokenizer with a chat template; got one without"
    ),
    BadInput(
        "A chat template that takes no system prompt",
        _template_without_system,
        r"a chat template that takes conversations of the roles system, user; got TemplateError",
    ),
    BadInput("A model that cannot read its prompts", _smaller_embeddings, r"token ids from 0 to 49.*in a prompt"),
    BadInput(
        "Answers of another model", _of_another_model, r"answers\.jsonl .*in line 1 model 'one' instead of 'another'"
    ),
    BadInput("Answers to other prompts", _of_other_prompts, r"answers\.jsonl .*; got in line \d"),
    BadInput(
        "Answers that are no JSON", _changed(lambda b: b"{" + b), r"answers\.jsonl .*; got in line 1 JSONDecodeError"
    ),
    BadInput(
        "Answers with a line of something else", _changed(lambda b: b + b"notes"), r"answers\.jsonl .*; got in line 2"
    ),
    BadInput(
        "Answers of another run that were changed",
        _kept_and_changed,
        r"before training in .*; got ValueError.*checksum",
    ),
    BadInput("A task from an eval split that is not there", _split(None), r"an eval split, .*; got a trainer without"),
    BadInput(
        "A task from an eval split without an answer",
        _split([{"input_ids": [0, 7, 7], "labels": [-100, -100, -100]}]),
        r"in the eval split rows that end with an answer.*; got no row that is supervised",
    ),
    BadInput(
        "A task from an eval split that is cut off",
        _split([{"input_ids": [0, 7, 7, 8], "labels": [-100, -100, -100, 8]}]),
        r"in the eval split rows that end with an answer.*; got 1 cut off at their end",
    ),
    BadInput(
        "A scorer that takes something else",
        given(scorers.check, scorers.load("operator:contains"), [Prompt("1", "Who?", "Nobody")]),
        r"a scorer that takes a prompt, a response and the expected answer; got TypeError",
    ),
    BadInput("A model that writes nothing", _silent, r"answer the shipped prompts.*; got 0 forward passes"),
    BadInput(
        "Answers of nobody", written("", "answers.jsonl", first_speaker), r"answers\.jsonl .*; got in line 1 JSON"
    ),
]
