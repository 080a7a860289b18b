"""A tiny random model of any type that transformers knows, made without a download.

The settings of a type's configuration are found by their names: every width, depth and count becomes small, all others
stay as they are. What fits no rule stands in `SPECIAL`.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING

MOST = 30_000_000
"""Parameters of a model that is still tiny."""
VOCABULARY, WIDTH, HEADS, LAYERS, LENGTH = 128, 32, 4, 4, 64

RULES: list[tuple[str, Any]] = [
    (r".*vocab_size(_.*)?|encoder_hash_byte_group_vocab", VOCABULARY),
    (r"qk_head_dim|n_inner", None),
    (r"(.*_)?(num|n)_((kv|key_value|attention)_)?heads|((en|de)coder_)?attention_heads|n_head", HEADS),
    (r"num_query_groups", HEADS),
    (r"(mamba_)?n_groups?|topk_group", 1),
    (r"(.*_)?n_layers?|num_((hidden|decoder|encoder)_)?layers|num_blocks|(en|de)coder_layers", LAYERS),
    (r"mamba_(d_head|head_dim|headdim)", 2 * WIDTH // HEADS),
    (r"(.*_)?(head_dim|head_size|d_head)|dim_head|kv_channels|rotary_dim|.*_lora_rank", WIDTH // HEADS),
    (r"((backbone|attention|text|out|output)_)?hidden_size(_global)?|d_model|n_embd|dim_model|emb_dim", WIDTH),
    (r"embedding_(size|dim)|lru_width|embed_dim|output_dim|projection_dim|adapter_in_dim", WIDTH),
    (r"depth", 2),
    (r"word_embed_proj_dim|.*intermediate_size.*|(.*_)?ffn_(hidden_size|dim)|dff|dim_ff|d_inner", WIDTH),
    (r"feed_forward_size", WIDTH),
    (r"(num|n)_(local_|routed_)?experts|moe_num_experts", 4),
    (r"num_experts_per_tok|moe_topk|moe_k", 2),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length", LENGTH),
    (r"(bos|eos|pad|cls|sep|decoder_start)_token_id", 1),
    (r"is_decoder|causal", True),
]
"""Names of settings, and the value that each gets; the first match counts. None leaves a setting as it is."""

MIXED = ["linear_attention", "full_attention"] * (LAYERS // 2)
ROPE = {"rope_type": "default", "rope_theta": 1e4}
MROPE = {**ROPE, "mrope_section": [2, 1, 1]}
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": MIXED},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": None}},
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "rope_theta": 1e4}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {"per_layer_config": {}, "head_dim": 2 * WIDTH // HEADS},
    "falcon_h1": {"mamba_d_ssm": 2 * WIDTH},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm4v_moe_text": {"rope_parameters": {**MROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}},
    "glm4v_text": {"rope_parameters": MROPE},
    "glm_ocr_text": {"rope_parameters": MROPE},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * (LAYERS // 2)},
    "inkling_text": {"unpadded_vocab_size": VOCABULARY - 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": MIXED},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "mamba2": {"head_dim": 2 * WIDTH // HEADS},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "mllama_text_model": {"cross_attention_layers": [1]},
    "qwen4_exp_text": {"indexer_kv_heads": 1, "indexer_budget": 8, "indexer_compress_ratio": 2},
    "paddleocr_vl_text": {"rope_parameters": MROPE},
    "qwen2_5_omni_text": {"rope_parameters": MROPE},
    "qwen2_5_vl_text": {"rope_parameters": MROPE},
    "qwen2_vl_text": {"rope_parameters": MROPE},
    "reformer": {"attn_layers": ["local", "local"], "axial_pos_embds": False},
    "xlstm": {"hidden_size": 4 * WIDTH, "embedding_dim": 4 * WIDTH},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_head_dim": 2 * WIDTH // HEADS,
        "attention_hidden_size": 2 * WIDTH,
        "layers_block_type": ["linear_attention", "hybrid"] * (LAYERS // 2),
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * (LAYERS // 2)},
    "zaya": {"num_experts_per_tok": 1},
}
"""Settings that follow from no rule, by type; those of a nested configuration as a dict."""


class NotBuiltError(Exception):
    """The tiny configuration does not make a model of this type; says why."""


def tiny_config(kind: type[Any], **settings: Any) -> Any:
    """The smallest sensible configuration of a class, its nested ones included; `settings` go before the rules."""
    special = {**SPECIAL.get(kind.model_type, {}), **settings}
    nested: dict[str, type[Any]] = getattr(kind, "sub_configs", {})
    own = kind() if nested else None
    chosen = {name: value for name, value in special.items() if name not in nested}
    for name in inspect.signature(kind.__init__).parameters:
        if (default := getattr(own, name, None)) is not None and name in nested:
            chosen[name] = tiny_config(type(default), **special.get(name, {}))
        elif name not in special and name not in nested:
            value = next((value for pattern, value in RULES if re.fullmatch(pattern, name)), None)
            if value is not None:
                chosen[name] = value
    return kind(**chosen)


def tiny_model(model_type: str, mapping: Any, seed: int = 0) -> nn.Module:
    """A model of this type with random weights, in the class that `mapping` (an `AutoModel`) gives it.

    Biases, scales and gates are moved away from their first values, which would hide one that is left out.

    Raises:
        NotBuiltError: the configuration or the model cannot be made, is not tiny, or cannot be run on plain text.
    """
    try:
        config = tiny_config(CONFIG_MAPPING[model_type])
        with torch.device("meta"):
            size = sum(p.numel() for p in mapping.from_config(config).parameters())
        if size > MOST:
            raise ValueError(f"{size:,} parameters")
        torch.manual_seed(seed)
        model: nn.Module = mapping.from_config(config)
        with torch.no_grad():
            model(input_ids=torch.arange(8, 16).unsqueeze(0), use_cache=False)
    except Exception as error:  # a model's own code may raise anything
        raise NotBuiltError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if (head := getattr(model, "get_output_embeddings", lambda: None)()) is not None:
            head.weight.add_(0.25 * torch.randn_like(head.weight))
    return model
