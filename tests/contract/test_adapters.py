"""Every adapter: the loss is that of the full logits, and the reference is the model as it is before the first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    TrainingArguments,
)

from benchmarks.compatibility import PAGE, differences
from benchmarks.tiny_models import tiny_model
from pact_plugins import PactCallback, PactError
from pact_plugins.chat.answers import AnswerTokens
from pact_plugins.method import prompting
from pact_plugins.model.forward import evaluating
from pact_plugins.model.parity import check_parity
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.run.documents import training_documents
from tests import tiny
from tests.contract.hosts import TOKENS, common, config, trl_trainer

pytestmark = pytest.mark.usefixtures("brief_runs")

LINEAR = ["q_proj", "v_proj", "up_proj"]
Make = Callable[[], Any]


def lora(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "target_modules": LINEAR, **settings})


def adapted(settings: peft.PeftConfig, base: Make = tiny.llama) -> Make:
    def make() -> Any:
        model = base()
        torch.manual_seed(1)
        return peft.get_peft_model(model, settings)

    return make


def moved(make: Make) -> Make:
    """An adapter that has been trained before."""

    def again() -> Any:
        model = make()
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model

    return again


def continued() -> Any:
    """A trained adapter, loaded to be trained further."""
    with TemporaryDirectory() as folder:
        moved(adapted(lora()))().save_pretrained(folder)
        return peft.PeftModel.from_pretrained(tiny.llama(), folder, is_trainable=True)


def several(active: str | list[str]) -> Make:
    def make() -> Any:
        model = adapted(lora())()
        model.add_adapter("second", lora(r=2, target_modules=["k_proj", "v_proj"], modules_to_save=["lm_head"]))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        model = moved(lambda: model)()
        model.base_model.set_adapter(active)
        return model

    return make


def quantised(**settings: Any) -> Make:
    def make() -> Any:
        with TemporaryDirectory() as folder:
            chosen = BitsAndBytesConfig(**settings)
            return LlamaForCausalLM.from_pretrained(tiny.save(folder), quantization_config=chosen)

    return make


def mixtral() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tiny.tokenizer()), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "initializer_range": 0.2}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads, bos_token_id=0, eos_token_id=1, pad_token_id=2))


def sees_images() -> Any:
    """A vision-language model, which is trained on text here."""
    model: Any = tiny_model("llava", transformers.AutoModelForImageTextToText)
    model.resize_token_embeddings(len(tiny.tokenizer()))
    return model


def torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    with TemporaryDirectory() as folder:
        chosen = transformers.TorchAoConfig(Int8WeightOnlyConfig())
        return LlamaForCausalLM.from_pretrained(tiny.save(folder), quantization_config=chosen)


def tied() -> Any:
    return tiny.llama(tie_word_embeddings=True)


EIGHT_BIT = "QLoRA, 8 bit"
ROUNDED = 0.05
"""Relative to the largest: 8-bit layers round a row in another way if another one of its batch holds large numbers."""
FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

ASSISTANT = tiny.tokenizer().convert_tokens_to_ids("<|assistant|>")
"""Wakes an aLoRA: the header of every answer."""

SETTINGS: dict[str, dict[str, Any]] = {"aLoRA": {"gradient_checkpointing": False}}
"""Of TRL, for those that need them."""

TIED_TOKENS = "some tokens of a tied model"
"""TRL's fused loss asks PEFT's wrapper of the head for a bias, and stops: transformers' own trainer trains it."""

SERVED: dict[str, Make] = {
    "full": tiny.llama,
    "full, tied": tied,
    "full, mixture of experts": mixtral,
    "LoRA": adapted(lora()),
    "LoRA on a vision-language model": adapted(lora(), sees_images),
    "LoRA on a tied model": adapted(lora(), tied),
    "aLoRA": moved(adapted(lora(alora_invocation_tokens=[ASSISTANT]))),
    "LoRA on the embedding": moved(adapted(lora(target_modules=["q_proj", "embed_tokens"]))),
    "LoRA with a bias": moved(adapted(lora(bias="lora_only"))),
    "DoRA": moved(adapted(lora(use_dora=True))),
    "rsLoRA": moved(adapted(lora(use_rslora=True))),
    "PiSSA": adapted(lora(init_lora_weights="pissa")),
    "OLoRA": adapted(lora(init_lora_weights="olora")),
    "LoRA of experts": moved(adapted(lora(target_modules=["q_proj"], target_parameters=EXPERTS), mixtral)),
    "a trained adapter": continued,
    "the first of two adapters": several("default"),
    "the second of two adapters": several("second"),
    "a whole head": moved(adapted(lora(modules_to_save=["lm_head"]))),
    "a whole head and embedding": moved(adapted(lora(modules_to_save=["lm_head", "embed_tokens"]))),
    "a whole embedding of a tied model": moved(adapted(lora(modules_to_save=["embed_tokens"]), tied)),
    "a whole embedding and head, tied": moved(
        adapted(lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True), tied)
    ),
    "some tokens of an untied model": moved(adapted(lora(trainable_token_indices=[40, 41]))),
    TIED_TOKENS: moved(adapted(lora(trainable_token_indices=[40, 41]), tied)),
    "IA3": moved(adapted(peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]))),
    "AdaLoRA": moved(adapted(peft.AdaLoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, total_step=10))),
    "LoHa": moved(adapted(peft.LoHaConfig(task_type="CAUSAL_LM", r=4, target_modules=LINEAR))),
    "LoKr": moved(adapted(peft.LoKrConfig(task_type="CAUSAL_LM", r=4, target_modules=LINEAR))),
    "OFT": moved(adapted(peft.OFTConfig(task_type="CAUSAL_LM", oft_block_size=8, target_modules=LINEAR))),
    "VeRA": moved(adapted(peft.VeraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))),
    "layer norms": moved(adapted(peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]))),
    "QLoRA, 4 bit": adapted(lora(), quantised(**FOUR_BIT)),
    "QLoRA, 4 bit, double": moved(adapted(lora(), quantised(**FOUR_BIT, bnb_4bit_use_double_quant=True))),
    "QLoRA, NF4": moved(adapted(lora(), quantised(**FOUR_BIT, bnb_4bit_quant_type="nf4"))),
    **({"QLoRA, torchao": moved(adapted(lora(), torchao))} if find_spec("torchao") else {}),
    EIGHT_BIT: moved(adapted(lora(), quantised(load_in_8bit=True))),
}


def frozen_log_probs(model: Any, tokens: AnswerTokens) -> Tensor:
    """[N, S] log-probabilities of the safety tokens at the answer tokens of one document, from full logits."""
    (document,) = tokens.documents
    with evaluating(model):
        logits = model(input_ids=torch.from_numpy(document.input_ids).unsqueeze(0)).logits[0].float()
    return torch.log_softmax(logits, -1)[tokens.column][:, TOKENS]


@pytest.mark.parametrize("name", SERVED)
def test_the_loss_is_that_of_the_full_logits(name: str) -> None:
    """Prevents an adapter whose part in the logits or in the gradient PACT leaves out."""
    for quantity, error in differences(SERVED[name]()).items():
        assert error <= (ROUNDED if quantity == "reference pass" and name == EIGHT_BIT else 1e-4), (quantity, error)


def plain_trainer(trainer: Any, model: Any, folder: Path, **settings: Any) -> transformers.Trainer:
    """Transformers' own trainer on what TRL's would train, and a model whose forward pass TRL has not exchanged."""
    return transformers.Trainer(
        model=model,
        args=TrainingArguments(**{**common(folder), **settings}),
        train_dataset=trainer.train_dataset,
        data_collator=trainer.data_collator,
        processing_class=tiny.tokenizer(),
    )


@pytest.mark.parametrize("name", SERVED)
def test_the_reference_is_the_model_before_its_first_step(name: str, tmp_path: Path) -> None:
    """Prevents a reference without the adapter, of another adapter, or of weights that were trained already."""
    settings = {"max_steps": 3, "learning_rate": 1.0, "max_grad_norm": 0.1, **SETTINGS.get(name, {})}
    trainer = trl_trainer(SERVED[name](), tmp_path, **settings)
    if name == TIED_TOKENS:
        trainer = plain_trainer(trainer, SERVED[name](), tmp_path, **settings)
    frozen = SERVED[name]()
    for mine, theirs in zip(frozen.parameters(), trainer.model.parameters(), strict=True):
        mine.data = mine.data.to(theirs.dtype)  # TRL trains adapters of 4-bit models in bfloat16
    callback = PactCallback(trainer, config(tmp_path, weight=0.1))
    trainer.add_callback(callback)
    trainer.train()
    assert callback.binding is not None
    objective = callback.binding.prepare().objective
    for document in list(training_documents(trainer))[:4]:
        tokens = AnswerTokens.of([replace(document, row=0)], objective.chat)
        cached = torch.from_numpy(objective.reference.look_up(tokens).full).float()
        tolerance = ROUNDED if name == EIGHT_BIT else 1e-3  # of float16, in which the cache keeps them
        torch.testing.assert_close(cached, frozen_log_probs(frozen, tokens), rtol=tolerance, atol=tolerance)
    kl = [entry["pact/kl"] for entry in trainer.state.log_history if "pact/kl" in entry]
    assert kl[0] < (1e-2 if name == EIGHT_BIT else 1e-6)
    assert kl[0] < max(kl) / 10, "the model did not move"


def test_anchors_see_an_adapter_that_wakes_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents anchors without a gradient: PEFT tells where an aLoRA acts in the outermost module's pass alone."""
    monkeypatch.setattr(prompting, "MAX_ANSWER_TOKENS", 6)
    trainer = trl_trainer(adapted(lora(alora_invocation_tokens=[ASSISTANT]))(), tmp_path, gradient_checkpointing=False)
    callback = PactCallback(trainer, config(tmp_path, anchors=2))
    trainer.add_callback(callback)
    trainer.train()
    assert callback.binding is not None
    objective, model = callback.binding.prepare().objective, moved(lambda: trainer.model)()
    assert objective.anchors is not None
    rows = objective.anchors.rows(0)
    batch, (_, candidates, reference) = objective.anchors.batch(rows), objective.anchors.reference(rows)
    own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    student = own[:, :-1][batch["labels"][:, 1:] != -100].gather(-1, candidates)
    rest = [(1 - q.exp().sum(-1, keepdim=True)).log() for q in (reference, student)]
    p, s = torch.cat([reference, rest[0]], 1), torch.cat([student, rest[1]], 1)
    expected, found = (p.exp() * (p - s)).sum(), objective.anchor_terms(objective.anchors, rows, own.device).kl
    trained = [q for q in model.parameters() if q.requires_grad]
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    largest = 0.0
    for ours, theirs in zip(*(torch.autograd.grad(of, trained) for of in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        largest = max(largest, theirs.abs().max().item())
    assert largest > 0.01, "no gradient to compare"


def test_an_adapter_that_decoders_alone_leave_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a check that sees an adapter only as it begins, empty; and one that leaves it changed."""
    model = adapted(lora(alora_invocation_tokens=[ASSISTANT]))()
    head = SubsetHead(model, [40, 41])
    before, drawn = {name: p.clone() for name, p in model.named_parameters()}, torch.get_rng_state()
    check_parity(head)
    head.runs_whole = False
    with pytest.raises(PactError, match="once the adapter LORA is trained"):
        check_parity(head)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(drawn, torch.get_rng_state())


ALL_LAYERS = {"llm_int8_skip_modules": ["none"]}


def checkpointed() -> Any:
    model = adapted(lora(alora_invocation_tokens=[ASSISTANT]))()
    model.gradient_checkpointing_enable()
    return model


def x_lora() -> Any:
    with TemporaryDirectory() as folder:
        adapted(lora())().save_pretrained(folder)
        settings = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters={"0": folder, "1": folder})
        base = tiny.llama()
        base.config.use_cache = False
        return peft.get_peft_model(base, settings)


REFUSED: dict[str, tuple[Make, str]] = {
    "aLoRA under gradient checkpointing": (checkpointed, "an aLoRA adapter under gradient checkpointing"),
    "X-LoRA": (x_lora, "the adapter XLORA"),
    "a head in 4 bit": (adapted(lora(), quantised(**FOUR_BIT, **ALL_LAYERS)), "a quantised head"),
    "a head in 8 bit": (adapted(lora(), quantised(load_in_8bit=True, **ALL_LAYERS)), "a quantised head"),
    "LoRA on the head": (adapted(lora(target_modules=["q_proj", "lm_head"])), "a LoRA adapter on the head"),
    "DoRA on the head": (adapted(lora(target_modules=["lm_head"], use_dora=True)), "a LoRA adapter on the head"),
    "IA3 on the head": (
        adapted(peft.IA3Config(task_type="CAUSAL_LM", target_modules=["lm_head"], feedforward_modules=[])),
        "an? IA3 adapter on the head",
    ),
    "LoHa on the head": (adapted(peft.LoHaConfig(task_type="CAUSAL_LM", target_modules=["lm_head"])), "on the head"),
    "prompt tuning": (
        adapted(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        "the adapter PROMPT_TUNING",
    ),
    "p-tuning": (
        adapted(peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, encoder_hidden_size=8)),
        "the adapter P_TUNING",
    ),
    "prefix tuning": (
        adapted(peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        "the adapter PREFIX_TUNING",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_stops_before_the_first_step(name: str, tmp_path: Path) -> None:
    """Prevents a run whose safety logits lack the adapter's part."""
    make, message = REFUSED[name]
    trainer = transformers.Trainer(make(), TrainingArguments(**common(tmp_path)))
    with pytest.raises(PactError, match=message):
        PactCallback(trainer, config(tmp_path))


def test_the_page_names_them_all() -> None:
    """Prevents a page that leaves out what is refused, or promises what was never trained."""
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert all(name in page for name in (*SERVED, *REFUSED))
