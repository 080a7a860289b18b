"""Which ways to train PACT serves: one table of rules, for what a run's file says and for what its trainer is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pact_plugins.config import SPLIT, PactConfig
from pact_plugins.errors import PactError


@dataclass(frozen=True)
class Training:
    """How a run trains, as far as its file or its trainer tells.

    Attributes:
        other_trainer: what is no trainer that PACT stands beside, if it is none.
        preferences: what learns from preferred answers (DPO), if anything does: anchors are held there, and no rows.
        noised: what trains on noise in place of rows, if anything does.
        elsewhere: what trains on other machines, if anything does.
        taught: what trains on more than labels, if anything does.
        rounds: whether the head computes with rounded weights that it does not store.
        tied_tokens: whether single tokens of a tied model are trained under a loss that cannot see it.
        gpus: that one process drives.
        sharding: what shares weights between processes (`sharded_by`), if anything does.
        parallelism: what cuts documents or layers between them (context, sequence, tensor, expert), if anything does.
        streams: whether its rows are not known before the first step.
        lost: what keeps the model, with its adapter taken off, from being what it is before the first step, if anything
            does (`adapter.lost`).
    """

    other_trainer: str = ""
    preferences: str = ""
    noised: str = ""
    elsewhere: str = ""
    taught: str = ""
    rounds: bool = False
    tied_tokens: bool = False
    gpus: int = 1
    sharding: str = ""
    quantised: bool = False
    parallelism: str = ""
    deepspeed: bool = False
    reentrant: bool = False
    streams: bool = False
    lost: str = ""

    @property
    def engine(self) -> str:
        """What has a part in every backward pass, if anything but DDP does."""
        return self.sharding or ("DeepSpeed" if self.deepspeed else "")


def sharded_by(fsdp: int, zero: int, *, offloads: bool = False, xla: bool = False) -> str:
    """What shares weights, of FSDP's version and the stage of ZeRO, each 0 without."""
    if xla:
        return "FSDP through XLA"
    if fsdp:
        return f"FSDP{fsdp} that offloads weights to the CPU" if offloads else f"FSDP{fsdp}"
    return "DeepSpeed ZeRO-3" if zero == 3 else ""


_OF_AXOLOTL = (
    ("noised", "DiffusionPlugin", ("DiffusionTrainer",)),
    ("elsewhere", "HatcheryPlugin", ("HatcheryTrainer", "HatcheryRLTrainer")),
    ("taught", "KDPlugin", ("AxolotlKDTrainer",)),
)
"""Attributes of `Training`, Axolotl's own plugins that fill them, and the trainers that these bring along."""


def of_axolotl(*names: str) -> dict[str, Any]:
    """What names of such plugins or trainers say of a run; others say nothing."""
    return {part: f"Axolotl's {name}" for part, name, brought in _OF_AXOLOTL if {name, *brought} & {*names}}


def about_rows(config: PactConfig) -> str:
    """Settings that were made and are about rows of the data set."""
    made = {
        "`objective: paper`": config.objective == "paper",
        "`conflict: damp`": config.conflict == "damp",
        "`conflict_threshold`": "conflict_threshold" in config.model_fields_set,
        "`gate`": bool(config.gate),
        "`min_coverage`": "min_coverage" in config.model_fields_set,
        "`eval.task: split`": config.active_eval is not None and config.active_eval.task == SPLIT,
    }
    return ", ".join(name for name, is_made in made.items() if is_made)


class Rule(NamedTuple):
    """Refuses a run in which an attribute of `Training` (`part`) is neither off nor empty, and the condition holds.

    In `got`, {0} is the run, and {1} its settings that are about rows.
    """

    part: str
    got: str
    consequence: str
    remedy: str
    condition: Callable[[Training, PactConfig], bool] = lambda _training, _config: True


_UNKNOWN = "It is not known that the reference would be computed from whole weights."

RULES = (
    Rule(
        "other_trainer",
        "{0.other_trainer}",
        "Its loss is neither cross-entropy on answers of the data set nor DPO's, beside which PACT stands.",
        "Train with `SFTTrainer` or `DPOTrainer` in TRL, in Axolotl without a reward model and without `rl` or with "
        "`rl: dpo`, or without PACT.",
    ),
    Rule(
        "preferences",
        "{0.preferences} together with {1} of `pact`",
        "Beside it anchors are held and no rows of the data set, which these settings are about.",
        "Leave them out.",
        lambda _, config: bool(about_rows(config)),
    ),
    Rule(
        "preferences",
        "{0.preferences} together with `pact.anchors: 0`",
        "Beside it anchors are all that is held: the run would train without PACT.",
        "Leave `anchors` out, or set it to 1 or more.",
        lambda _, config: config.anchors == 0,
    ),
    Rule(
        "noised",
        "{0.noised}",
        "Its model is trained on noised rows that it reads in both directions, and would be held to a reference of the "
        "rows as they are, read from left to right.",
        "Leave its plugin out, or train without PACT.",
    ),
    Rule(
        "elsewhere",
        "{0.elsewhere}",
        "It would train on other machines, where PACT is not, or may be missing: there Axolotl logs a plugin that "
        "cannot be imported and trains on without it.",
        "Start `axolotl pact-train` on the machine that trains, or train without PACT.",
    ),
    Rule(
        "taught",
        "{0.taught} together with `pact.conflict: damp`",
        "A teacher's words about damped answers would go on being trained on: damping takes away labels alone.",
        "Set `pact.conflict: keep`, or leave its plugin out.",
        lambda _, config: config.damps,
    ),
    Rule(
        "rounds",
        "a head that training rounds as it will be quantised",
        "PACT reads its weights, which are not what the logits are computed with.",
        "Leave out training for quantisation (`qat`), or train without PACT.",
    ),
    Rule(
        "tied_tokens",
        "trained tokens of a tied model (PEFT's `trainable_token_indices`) under TRL's own loss",
        "That loss asks PEFT's wrapper of the head for a bias, which it lacks, and stops, with PACT or without.",
        "Train the embedding whole (`modules_to_save: [embed_tokens]`). Where TRL added the tokens with a template "
        "(`chat_template_path`), name a `.jinja` file there, which adds none.",
    ),
    Rule(
        "gpus",
        "torch.nn.DataParallel over {0.gpus} GPUs",
        "Its replicas run in threads that PACT cannot follow.",
        "Start the run with torchrun or `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one GPU.",
        lambda training, _: training.gpus > 1,
    ),
    Rule(
        "sharding",
        "{0.sharding}",
        _UNKNOWN,
        "Use DDP, FSDP2 (`fsdp_version: 2`) without offloading, or DeepSpeed ZeRO-1 to ZeRO-3.",
        lambda training, _: training.sharding not in ("FSDP2", "DeepSpeed ZeRO-3"),
    ),
    Rule(
        "quantised",
        "a quantised model under {0.sharding}",
        _UNKNOWN,
        "Use LoRA on a 16-bit model, or DDP or ZeRO-2.",
        lambda training, _: bool(training.sharding),
    ),
    Rule(
        "parallelism",
        "{0.parallelism} parallelism",
        "Answers or layers would be cut between processes.",
        "Set its size to 1: FSDP2 and DeepSpeed ZeRO-3 share weights and keep documents whole.",
    ),
    Rule(
        "reentrant",
        "re-entrant gradient checkpointing under {0.engine} together with `pact.anchors`",
        "The anchors' own forward pass would mark each parameter as ready twice, and the run would stop.",
        "Set `gradient_checkpointing_kwargs: {use_reentrant: false}`, or `pact.anchors: 0`.",
        lambda training, config: bool(training.engine) and config.anchors_per_step > 0,
    ),
    Rule(
        "streams",
        "a streaming data set together with {0.lost}",
        "Its reference is computed in each step, by the model with its adapter off, which would not be the model as it "
        "is before the first step.",
        "Train nothing but an adapter that adds nothing from the start, such as LoRA or QLoRA, or load the data set "
        "whole (`streaming: false`).",
        lambda training, _: bool(training.lost and not training.preferences),
    ),
    Rule(
        "streams",
        "a streaming data set under {0.sharding}",
        "Its reference is computed in each step, in as many passes as the rows of a process need, and shared weights "
        "need all processes in each pass.",
        "Use DDP or DeepSpeed ZeRO-2, or load the data set whole (`streaming: false`).",
        lambda training, _: bool(training.sharding and not training.preferences),
    ),
)


def refused(training: Training, config: PactConfig) -> Iterator[tuple[str, PactError]]:
    """What cannot be served of a run: the attributes of `training` at fault, each with its error."""
    expected = "training in a way that PACT can serve"
    for part, got, consequence, remedy, condition in RULES:
        if getattr(training, part) and condition(training, config):
            words = got.format(training, about_rows(config))
            yield part, PactError(expected=expected, got=words, consequence=consequence, remedy=remedy)
