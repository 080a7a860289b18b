"""Identities: equal when the stored reference still holds, different when it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pact_plugins.chat.fingerprints import digest, keys_fingerprint, tokenizer_fingerprint
from pact_plugins.model.fingerprints import model_fingerprint
from pact_plugins.model.forward import evaluating
from tests import tiny


def lora(seed: int, **settings: Any) -> Any:
    """A LoRA adapter on the same tiny model, its A drawn with `seed`."""
    model = tiny.llama()
    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], **settings)
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}],
    ids=["lora", "dora", "lora bias", "whole head"],
)
def test_zero_starts_share_a_fingerprint(settings: dict[str, Any]) -> None:
    """Prevents: building the reference again in every run because LoRA's A is random."""
    first, second = lora(1, **settings), lora(2, **settings)
    a, b = (dict(m.named_parameters()) for m in (first, second))
    assert any(not torch.equal(a[name], b[name]) for name in a)
    assert model_fingerprint(first) == model_fingerprint(second)


def test_a_zero_start_is_its_base_model() -> None:
    """Prevents: computing the reference once more for the same function under other parameter names."""
    assert model_fingerprint(lora(1)) == model_fingerprint(tiny.llama())


@torch.no_grad()
def test_a_trained_adapter_has_its_own_fingerprint() -> None:
    """Prevents: holding a run that starts from a loaded adapter to the model without it."""
    idle, first, second = lora(1), lora(1), lora(2)
    for model in (first, second):
        for name, parameter in model.named_parameters():
            if "layers.0.self_attn.q_proj.lora_B" in name:
                parameter[0, 0] = 0.01
    found = {model_fingerprint(m) for m in (idle, first, second)}
    assert len(found) == 3


@torch.no_grad()
def test_the_scale_of_a_trained_adapter_counts() -> None:
    """Prevents: another `lora_alpha` over the same adapter weights being held to the first one's reference."""
    weak, strong = lora(1, lora_alpha=4), lora(1, lora_alpha=64)
    for model in (weak, strong):
        next(p for name, p in model.named_parameters() if "lora_B" in name)[0, 0] = 0.5
    assert model_fingerprint(weak) != model_fingerprint(strong)


@torch.no_grad()
def test_the_active_adapter_counts() -> None:
    """Prevents: one adapter being held to the reference of another that the model carries too."""
    model = lora(1)
    model.add_adapter("other", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter[0, 0] = 0.5
    first = model_fingerprint(model)
    model.set_adapter("other")
    assert model_fingerprint(model) != first


@torch.no_grad()
def test_the_active_head_counts() -> None:
    """Prevents: the model with the head that one of its adapters has trained being held to that without it."""
    model = lora(1, modules_to_save=["lm_head"])
    model.add_adapter("other", peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    model.get_base_model().lm_head.modules_to_save["default"].weight.mul_(1.5)
    first = model_fingerprint(model)
    model.set_adapter("other")
    assert model_fingerprint(model) != first


def test_settings_of_other_adapters_count() -> None:
    """Prevents: an adapter whose settings are no parameters (alpha, seeds) being held to another one's reference."""

    def loha(**settings: Any) -> Any:
        torch.manual_seed(1)
        config = peft.LoHaConfig(
            task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_weights=False, **settings
        )
        return peft.get_peft_model(tiny.llama(), config)

    weak, again, strong = (model_fingerprint(loha(alpha=alpha)) for alpha in (1, 1, 8))
    assert weak == again != strong


@pytest.mark.parametrize(
    "settings",
    [{"load_in_4bit": True}, {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, {"load_in_8bit": True}],
    ids=["4 bit", "4 bit, double", "8 bit"],
)
def test_the_scale_of_quantised_weights_counts(settings: dict[str, Any], tmp_path: Path) -> None:
    """Prevents: weights of another size, whose 4-bit or 8-bit codes are the same, sharing a reference."""
    found = []
    for size in (1.0, 1.0, 2.0):
        model = tiny.llama()
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.mul_(size)
        model.save_pretrained(tmp_path)
        quantisation = BitsAndBytesConfig(**settings)
        quantised = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=quantisation)
        found.append(model_fingerprint(quantised))
        with evaluating(quantised):
            quantised(torch.arange(8).unsqueeze(0))
        assert model_fingerprint(quantised) == found[-1]
    assert found[0] == found[1] != found[2]


@torch.no_grad()
def test_a_bias_in_b_counts() -> None:
    """Prevents: an adapter whose only effect is its bias being taken for no adapter."""
    idle, biased = lora(1, lora_bias=True), lora(1, lora_bias=True)
    next(p for name, p in biased.named_parameters() if "lora_B.default.bias" in name)[0] = 0.5
    assert model_fingerprint(idle) != model_fingerprint(biased)


def test_random_starts_have_their_own_fingerprint() -> None:
    """Prevents: adapters that do not start at zero (PiSSA and the like) sharing another draw's reference."""
    assert model_fingerprint(lora(1, init_lora_weights=False)) != model_fingerprint(lora(2, init_lora_weights=False))


def _smallest_step(model: nn.Module, name: str, index: int) -> None:
    parameter = dict(model.named_parameters())[name]
    flat = parameter.detach().reshape(-1)
    flat[index] = torch.nextafter(flat[index], torch.tensor(9.0))


@pytest.mark.parametrize("name", [name for name, _ in tiny.llama().named_parameters()])
def test_one_changed_weight_changes_it(name: str) -> None:
    """Prevents: another checkpoint of the same architecture being held to a stale reference."""
    model = tiny.llama()
    before = model_fingerprint(model)
    size = dict(model.named_parameters())[name].numel()
    for index in (0, size // 2 + 1, size - 1):
        model = tiny.llama()
        _smallest_step(model, name, index)
        assert model_fingerprint(model) != before


CHANGES: dict[str, Callable[[], nn.Module]] = {
    "another seed": lambda: tiny.llama(seed=1),
    "another precision": lambda: tiny.llama().bfloat16(),
    "another depth": lambda: tiny.llama(num_hidden_layers=1),
    "tied": lambda: tiny.llama(tie_word_embeddings=True),
    "another rotary base": lambda: tiny.llama(rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "another norm": lambda: tiny.llama(rms_norm_eps=0.1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_function_has_another_fingerprint(change: Callable[[], nn.Module]) -> None:
    """Prevents: a reference being found again although the model now computes something else."""
    ids = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        here, there = (m.eval()(input_ids=ids).logits.float() for m in (tiny.llama(), change()))
    assert not torch.equal(here, there)
    assert model_fingerprint(tiny.llama()) != model_fingerprint(change())


def test_swapped_weights_change_it() -> None:
    """Prevents: a sum of bytes, which no order can change, being all that is compared."""
    model = tiny.llama()
    before = model_fingerprint(model)
    with torch.no_grad():
        weight = model.model.layers[0].self_attn.q_proj.weight
        weight.copy_(weight.flip(0).clone())
    assert model_fingerprint(model) != before


def test_fingerprint_leaves_the_model_alone() -> None:
    """Prevents: a checksum that computes in place, or keeps a graph alive."""
    model = tiny.llama().train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert model_fingerprint(model) == model_fingerprint(model)
    assert model.training
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in model.named_parameters())


class _Odd(nn.Module):
    """Parameters whose bytes do not pair up into words, or that have none."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.bytes = nn.Parameter(torch.tensor([1, 2, value], dtype=torch.uint8), requires_grad=False)
        self.scalar = nn.Parameter(torch.tensor(1.5))
        self.transposed = nn.Parameter(torch.arange(12.0).reshape(3, 4).t())
        self.empty = nn.Parameter(torch.empty(0))


def test_odd_parameters() -> None:
    """Prevents: a crash, or a blind spot, on quantised, scalar, transposed or empty parameters."""
    assert model_fingerprint(_Odd(3)) == model_fingerprint(_Odd(3))
    assert model_fingerprint(_Odd(3)) != model_fingerprint(_Odd(4))


def test_data_fingerprint_is_of_a_set() -> None:
    """Prevents: shuffled or repeated rows counting as other data; or other data as the same."""
    keys = [bytes([i]) * 16 for i in range(4)]
    assert keys_fingerprint(keys) == keys_fingerprint([*reversed(keys), keys[0]])
    assert keys_fingerprint(keys) != keys_fingerprint(keys[:-1])
    assert keys_fingerprint([]) != keys_fingerprint(keys[:1])


def test_tokenizer_fingerprint() -> None:
    """Prevents: ids of one vocabulary used with another; and a changed chat template counting as one."""
    backend = tiny.tokenizer().backend_tokenizer
    same = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template="{{ messages }}")
    assert tokenizer_fingerprint(same) == tokenizer_fingerprint(tiny.tokenizer())
    same.add_tokens(["<extra>"])
    assert tokenizer_fingerprint(same) != tokenizer_fingerprint(tiny.tokenizer())


def test_digest_ignores_the_order_of_keys_only() -> None:
    """Prevents: an identity that depends on how a dictionary was filled."""
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest(x) for x in ({"a": 1}, {"a": 2}, {"a": [1]}, [1, 2], [2, 1], "1", 1, None)}) == 8
    assert digest((1, 2)) == digest([1, 2])


def test_where_weights_lie_does_not_matter() -> None:
    """Prevents: another model, or an error, where an engine keeps the same weights as parts of one buffer."""
    model, shared = tiny.llama().bfloat16(), tiny.llama().bfloat16()
    for parameter in shared.parameters():
        buffer = torch.empty(parameter.numel() + 1, dtype=parameter.dtype)
        parameter.data = buffer[1:].copy_(parameter.detach().flatten()).view_as(parameter)
    assert model_fingerprint(shared) == model_fingerprint(model)


def test_added_tokens_are_another_tokenizer() -> None:
    """Prevents: the fingerprint of a tokenizer as it was."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.add_tokens(["<extra>"])
    assert before == tokenizer_fingerprint(tiny.tokenizer()) != tokenizer_fingerprint(tokenizer)
