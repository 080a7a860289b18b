"""One table of rules: what a file shows that PACT cannot serve, `pact check` and the run refuse in the same words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import trl
from accelerate.parallelism_config import ParallelismConfig
from datasets import Dataset
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import Trainer, TrainerCallback

from pact_plugins.errors import PactError
from pact_plugins.preflight.run_file import Host
from pact_plugins.preflight.unserved import unserved
from pact_plugins.run.served import RULES
from pact_plugins.run.trainer import check_trainer
from tests import tiny
from tests.bad_inputs.case import ROWS, config, trainer_on
from tests.bad_inputs.trainer import accelerator, deepspeed, fsdp

Change = Callable[[Any], Any]

NOT_IN_A_FILE = {"gpus", "tied_tokens"}
"""Parts of a run that no key says, or that hang on more than the file: `pact check` warns of the second."""


def _sized(**sizes: int) -> Change:
    return accelerator(parallelism_config=ParallelismConfig(**sizes))


def _quantised(engine: Change) -> Change:
    def change(trainer: Any) -> None:
        engine(trainer)
        trainer.model.is_quantized = True

    return change


def _of_axolotl(name: str) -> Change:
    def change(trainer: Any) -> None:
        trainer.__class__ = type(name, (Trainer,), {"__module__": "axolotl.integrations.its_own.trainer"})

    return change


def _of_trl(trainer: Any, name: str) -> None:
    trainer.__class__ = getattr(trl, name)


def _rounding(trainer: Any) -> None:
    head = trainer.model.lm_head
    # What torchao puts in its place.
    head.__class__ = type("FakeQuantizedLinear", (type(head),), {})


def _adapted(adapter: peft.PeftConfig) -> Change:
    def change(trainer: Any) -> None:
        trainer.model = peft.get_peft_model(tiny.llama(), adapter)

    return change


def _streaming(adapter: peft.PeftConfig | None = None, also: Change | None = None) -> Change:
    def change(trainer: Any) -> None:
        trainer.train_dataset = Dataset.from_list(ROWS).to_iterable_dataset()
        for each in (_adapted(adapter) if adapter else None, also):
            if each is not None:
                each(trainer)

    return change


def _lora(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **settings)


def _trained(trainer: Any) -> None:
    trainer.model.base_model.model.model.layers[0].self_attn.q_proj.lora_B.default.weight.data += 1


def _merging(trainer: Any) -> None:
    trainer.add_callback(type("ReLoRACallback", (TrainerCallback,), {}))


def _through_xla(trainer: Any) -> None:
    trainer.is_fsdp_xla_enabled = True


def _args(**settings: Any) -> Change:
    return lambda trainer: vars(trainer.args).update(settings)


def _reentrant(trainer: Any) -> None:
    deepspeed()(trainer)
    _args(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})(trainer)


ZERO3 = {"zero_optimization": {"stage": 3}}
OFFLOADING = CPUOffloadPolicy()

SHOWN: list[tuple[str, Host, dict[str, Any], Change]] = [
    (
        "noised",
        "axolotl",
        {"plugins": ["axolotl.integrations.diffusion.DiffusionPlugin"]},
        _of_axolotl("DiffusionTrainer"),
    ),
    ("elsewhere", "axolotl", {"plugins": ["hatchery.HatcheryPlugin"]}, _of_axolotl("HatcheryTrainer")),
    ("elsewhere", "axolotl", {"plugins": "hatchery.HatcheryPlugin"}, _of_axolotl("HatcheryRLTrainer")),
    ("taught", "axolotl", {"plugins": ["kd.KDPlugin"], "kd_trainer": True}, _of_axolotl("AxolotlKDTrainer")),
    *(
        ("preferences", "axolotl", {"rl": rl, "pact": settings}, lambda trainer: _of_trl(trainer, "DPOTrainer"))
        for rl, settings in (
            ("dpo", {"objective": "paper", "anchors": 2}),
            ("dpo", {"conflict": "damp", "anchors": 2}),
            ("dpo", {"gate": True, "min_coverage": 0.5, "conflict_threshold": 0.5, "anchors": 2}),
            ("ipo", {"eval": {"task": "split"}, "anchors": 2}),
            ("ipo", {"anchors": 0}),
        )
    ),
    ("rounds", "axolotl", {"qat": {"weight_dtype": "int4"}}, _rounding),
    ("streams", "axolotl", {"streaming": True}, _streaming()),
    ("streams", "trl", {"dataset_streaming": True}, _streaming()),
    ("streams", "axolotl", {"pretraining_dataset": "d"}, _streaming()),
    (
        "streams",
        "axolotl",
        {"streaming": True, "adapter": "lora", "peft_init_lora_weights": "pissa"},
        _streaming(_lora(init_lora_weights="pissa")),
    ),
    (
        "streams",
        "axolotl",
        {"streaming": True, "adapter": "lora", "lora_model_dir": "adapter"},
        _streaming(_lora(), _trained),
    ),
    ("streams", "axolotl", {"streaming": True, "adapter": "lora", "relora": True}, _streaming(_lora(), _merging)),
    (
        "streams",
        "trl",
        {"dataset_streaming": True, "use_peft": True, "fsdp": True, "fsdp_version": 2},
        _streaming(_lora(), fsdp(fsdp_version=2)),
    ),
    ("sharding", "trl", {"fsdp": True, "fsdp_config": {"version": 1}}, fsdp(fsdp_version=1)),
    ("sharding", "axolotl", {"fsdp_config": {"reshard_after_forward": True}}, fsdp(fsdp_version=1)),
    ("sharding", "trl", {"fsdp": "full_shard offload"}, fsdp(fsdp_version=2, cpu_offload=OFFLOADING)),
    ("sharding", "trl", {"fsdp": True, "fsdp_config": {"xla": True}}, _through_xla),
    (
        "sharding",
        "axolotl",
        {"fsdp_version": 2, "fsdp_config": {"offload_params": True}},
        fsdp(fsdp_version=2, cpu_offload=OFFLOADING),
    ),
    ("quantised", "trl", {"fsdp": True, "load_in_4bit": True}, _quantised(fsdp(fsdp_version=2))),
    ("quantised", "axolotl", {"deepspeed": ZERO3, "load_in_8bit": True}, _quantised(deepspeed())),
    ("parallelism", "axolotl", {"context_parallel_size": 2}, _sized(cp_size=2)),
    ("parallelism", "axolotl", {"sequence_parallel_degree": 2}, _sized(cp_size=2)),
    ("parallelism", "axolotl", {"tensor_parallel_size": 2}, _sized(tp_size=2)),
    ("parallelism", "trl", {"parallelism_config": {"cp_size": 2}}, _sized(cp_size=2)),
    ("parallelism", "trl", {"parallelism_config": {"sp_size": 2}}, _sized(sp_size=2)),
    ("parallelism", "trl", {"parallelism_config": {"tp_size": 2}}, _sized(tp_size=2)),
    (
        "parallelism",
        "trl",
        {"deepspeed": {"sequence_parallel_size": 2}},
        deepspeed(sequence_parallel_size=2),
    ),
    (
        "parallelism",
        "trl",
        {"deepspeed": {"tensor_parallel": {"autotp_size": 2}}},
        deepspeed(tensor_parallel={"autotp_size": 2}),
    ),
    (
        "adapter",
        "axolotl",
        {"adapter": "llama-adapter"},
        _adapted(peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1)),
    ),
    (
        "head",
        "trl",
        {"lora_target_modules": ["q_proj", "lm_head"]},
        _adapted(peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"])),
    ),
]
"""The part of a run at fault, the host, what its file says, and the change that makes a trainer of it."""

AXOLOTL_ALONE = (
    {"rl": "kto"},
    {"reward_model": True},
    {"process_reward_model": True},
    {"expert_parallel_size": 2},
    {"cloud": "modal.yaml"},
)
"""Of what its plugin reads of a file: its own trainers are another matter."""


@pytest.mark.parametrize(
    ("part", "host", "settings", "change"),
    [pytest.param(*shown, id="-".join(map(str, shown[:3]))) for shown in SHOWN],
)
def test_refused_alike(part: str, host: Host, settings: dict[str, Any], change: Change, tmp_path: Path) -> None:
    """Prevents: a file that `pact check` calls sound and whose run stops, or a check that says something else."""
    trainer, own = trainer_on(tmp_path), config(tmp_path, **settings.get("pact", {}))
    change(trainer)
    with pytest.raises(PactError) as of_run:
        check_trainer(trainer, own)
    (finding,) = unserved(settings, host, own)
    assert finding.key in settings
    assert finding.error.words == of_run.value.words


@pytest.mark.parametrize("settings", AXOLOTL_ALONE, ids=str)
def test_keys_of_axolotl_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    """Prevents: a trainer for preferences that is found out after the model was loaded, or `true` read as 1."""
    (finding,) = unserved(settings, "axolotl", config(tmp_path))
    assert finding.key in settings


def test_every_rule_is_shown() -> None:
    """Prevents: a rule that `pact check` could tell and does not."""
    shown = {part for part, *_ in SHOWN} | {"other_trainer", "reentrant"}
    assert {rule.part for rule in RULES} - NOT_IN_A_FILE == shown - {"adapter", "head"}


@pytest.mark.parametrize("name", ["KTOTrainer", "GRPOTrainer"])
def test_a_trainer_of_another_kind(name: str, tmp_path: Path) -> None:
    """Prevents: preferences trained as if they were answers; the file of Axolotl names it by its key."""
    trainer = trainer_on(tmp_path)
    _of_trl(trainer, name)
    with pytest.raises(PactError, match=f"TRL's {name}") as of_run:
        check_trainer(trainer, config(tmp_path))
    (finding,) = unserved({"rl": "kto"}, "axolotl", config(tmp_path))
    assert {**finding.error.words, "got": ""} == {**of_run.value.words, "got": ""}


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_anchors_beside_reentrant_checkpointing(name: str, tmp_path: Path) -> None:
    """Prevents: a run under DeepSpeed that stops in its first backward pass, or a refusal of DDP, which is served."""
    trainer, own = trainer_on(tmp_path), config(tmp_path, anchors=2)
    _reentrant(trainer)
    said = {name: True, f"{name}_kwargs": {"use_reentrant": True}}
    with pytest.raises(PactError) as of_run:
        check_trainer(trainer, own)
    assert not [*unserved(said, "trl", own)]
    said["deepspeed"] = ZERO3
    (finding,) = unserved(said, "trl", own)
    assert finding.error.words == of_run.value.words
    assert not [*unserved(said, "trl", config(tmp_path))]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"deepspeed": ZERO3},
        {"deepspeed": {"zero_optimization": {"stage": 2}}, "load_in_4bit": True},
        {"load_in_4bit": True},
        {"fsdp": True, "fsdp_version": 2},
        {"context_parallel_size": 1, "tensor_parallel_size": 1, "streaming": False},
        {"qat": {"weight_dtype": "ternary"}},
        {"plugins": ["axolotl.integrations.kd.KDPlugin", "axolotl.integrations.liger.LigerPlugin"]},
        {"adapter": "qlora", "lora_target_modules": "q_proj"},
        {"adapter": "qlora", "streaming": True},
        {"rl": "dpo", "streaming": True, "pact": {"anchors": 2}},
        {"rl": "ipo", "pact": {"anchors": 2, "conflict": "keep", "weight": 3.0}},
        {"adapter": "lora", "streaming": True, "peft_init_lora_weights": "gaussian", "deepspeed": {}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ],
    ids=str,
)
def test_what_is_served_is_not_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    """Prevents: a rule that refuses what is off, or what stands where it does no harm."""
    assert not [*unserved(settings, "axolotl", config(tmp_path, **settings.get("pact", {})))]


def test_a_teacher_is_refused_for_damping_alone(tmp_path: Path) -> None:
    """Prevents: a refusal of distillation that PACT can stand beside."""
    taught = {"plugins": ["axolotl.integrations.kd.KDPlugin"], "kd_trainer": True}
    assert not [*unserved(taught, "axolotl", config(tmp_path, conflict="keep"))]
