"""What PACT cannot serve, as far as a run's file says it, in the words in which its trainer would be refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pact_plugins.config import PactConfig
from pact_plugins.model.adapter import EMPTY, RELORA, WHOLE, adding
from pact_plugins.model.support import adapter_on_the_head, unsupported_adapter
from pact_plugins.preflight.rules import DPO, STREAMING, Finding
from pact_plugins.preflight.run_file import Host, block
from pact_plugins.run.served import Training, of_axolotl, refused, sharded_by


def unserved(settings: Mapping[str, Any], host: Host, config: PactConfig) -> Iterator[Finding]:
    """What cannot be served, each under the key that says it."""
    said = {part: (key, value) for part, key, value in reversed([*_training(settings, host)]) if value}
    training = Training(**{part: value for part, (_, value) in said.items()})
    for part, error in refused(training, config):
        yield Finding(said[part][0], error)
    adapter = settings.get("adapter")
    if host == "axolotl" and adapter not in (None, "lora", "qlora"):
        # As PEFT calls it.
        yield Finding("adapter", unsupported_adapter("ADAPTION_PROMPT" if adapter == "llama-adapter" else str(adapter)))
    targets = settings.get("lora_target_modules") or []
    names = [targets] if isinstance(targets, str) else [str(name) for name in targets]
    if any(name.rpartition(".")[2] == "lm_head" for name in names):
        yield Finding("lora_target_modules", adapter_on_the_head("LoRA"))


def _training(settings: Mapping[str, Any], host: Host) -> Iterator[tuple[str, str, Any]]:
    """Attributes of `Training`, the keys that say them, and what they say; of each, the first that is on counts."""
    pairs = host == "axolotl" and settings.get("rl") in DPO
    yield "preferences", "rl", pairs and "TRL's DPOTrainer"
    for key in ("rl", "reward_model", "process_reward_model"):
        yield "other_trainer", key, not (pairs and key == "rl") and settings.get(key) and f"`{key}: {settings[key]}`"
    if host == "axolotl":
        yield from ((part, "plugins", words) for part, words in of_axolotl(*_plugins(settings)).items())
        yield "elsewhere", "cloud", settings.get("cloud") and f"`--cloud {settings['cloud']}`"
        # That for ternary weights leaves the head out.
        rounded = block(settings.get("qat"))
        yield "rounds", "qat", bool(rounded) and rounded.get("weight_dtype") != "ternary"
    yield from (("streams", key, bool(settings.get(key))) for key in STREAMING)
    yield from (("lost", key, words) for key, words in _lost(settings, host))
    for key in ("load_in_4bit", "load_in_8bit"):
        yield "quantised", key, bool(settings.get(key))
    for name in ("activation_checkpointing", "gradient_checkpointing"):  # as transformers calls it, new and old
        reentrant = settings.get(name) and block(settings.get(f"{name}_kwargs")).get("use_reentrant")
        yield "reentrant", f"{name}_kwargs", bool(reentrant)
    deepspeed, parallelism = block(settings.get("deepspeed")), block(settings.get("parallelism_config"))
    yield "deepspeed", "deepspeed", bool(settings.get("deepspeed"))
    for kind, key, size in (
        ("context", "context_parallel_size", settings.get("context_parallel_size")),
        ("context", "sequence_parallel_degree", settings.get("sequence_parallel_degree")),
        ("tensor", "tensor_parallel_size", settings.get("tensor_parallel_size")),
        ("expert", "expert_parallel_size", settings.get("expert_parallel_size")),
        ("context", "parallelism_config", parallelism.get("cp_size")),
        ("sequence", "parallelism_config", parallelism.get("sp_size")),
        ("tensor", "parallelism_config", parallelism.get("tp_size")),
        ("sequence", "deepspeed", deepspeed.get("sequence_parallel_size")),
        ("tensor", "deepspeed", block(deepspeed.get("tensor_parallel")).get("autotp_size")),
    ):
        yield "parallelism", key, kind if size not in (None, 0, 1) else ""
    launched = block(settings.get("accelerate_config")).get("fsdp_config")
    fsdp = {k.removeprefix("fsdp_"): v for k, v in block(settings.get("fsdp_config") or launched).items()}
    version = 0
    if settings.get("fsdp") or fsdp:
        # What the hosts and the launcher take if nothing is said.
        default = 1 if launched or host == "axolotl" else 2
        version = settings.get("fsdp_version") or fsdp.get("version") or default
    offloads = fsdp.get("offload_params") or fsdp.get("cpu_offload") or "offload" in str(settings.get("fsdp"))
    stage = block(deepspeed.get("zero_optimization")).get("stage")
    key = ("accelerate_config" if launched else "fsdp_config" if fsdp else "fsdp") if version else "deepspeed"
    yield "sharding", key, sharded_by(version, stage or 0, offloads=bool(offloads), xla=bool(fsdp.get("xla")))


def _lost(settings: Mapping[str, Any], host: Host) -> Iterator[tuple[str, str]]:
    """Keys that keep the model without its adapter from being what it was, and in which way."""
    if not (settings.get("use_peft") if host == "trl" else settings.get("adapter")):
        yield "adapter" if host == "axolotl" else "use_peft", WHOLE
    if host == "axolotl":
        init = "loftq" if settings.get("loftq_config") else settings.get("peft_init_lora_weights")
        yield "peft_init_lora_weights", "" if init in (None, *EMPTY) else adding(init)
        yield "lora_model_dir", adding() if settings.get("lora_model_dir") else ""
        yield "relora", RELORA if settings.get("relora") else ""


def _plugins(settings: Mapping[str, Any]) -> list[str]:
    """Names of Axolotl's plugins that bring a trainer along; a plugin can be named by several paths."""
    said = settings.get("plugins") or []
    names = [str(plugin).rpartition(".")[2] for plugin in ([said] if isinstance(said, str) else said)]
    return [name for name in names if name != "KDPlugin" or settings.get("kd_trainer")]
