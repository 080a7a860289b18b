"""Which ways to train PACT serves: one table of rules, for what a run's file says and for what its trainer is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError


@dataclass(frozen=True)
class Training:
    """How a run trains, as far as its file or its trainer tells.

    Attributes:
        other_trainer: what is no trainer for supervised fine-tuning, if it is none.
        gpus: that one process drives.
        sharding: what shares weights between processes (`sharded_by`), if anything does.
        parallelism: what cuts documents or layers between them (context, sequence, tensor, expert), if anything does.
    """

    other_trainer: str = ""
    gpus: int = 1
    sharding: str = ""
    quantised: bool = False
    parallelism: str = ""
    processes: int = 1
    reentrant: bool = False
    streams: bool = False


def sharded_by(fsdp: int, zero: int, *, offloads: bool = False, xla: bool = False) -> str:
    """What shares weights, of FSDP's version and the stage of ZeRO, each 0 without."""
    if xla:
        return "FSDP through XLA"
    if fsdp:
        return f"FSDP{fsdp} that offloads weights to the CPU" if offloads else f"FSDP{fsdp}"
    return "DeepSpeed ZeRO-3" if zero == 3 else ""


class Rule(NamedTuple):
    """Refuses a run in which an attribute of `Training` (`part`) is neither off nor empty, and the condition holds."""

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
        "Its loss is not cross-entropy on answers of the data set, beside which PACT stands.",
        "Train with `SFTTrainer` in TRL and without `rl` or a reward model in Axolotl, or without PACT.",
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
        "re-entrant gradient checkpointing in several processes together with `pact.anchors`",
        "The anchors' own forward pass would mark each parameter as ready twice, and DDP and DeepSpeed would stop.",
        "Set `gradient_checkpointing_kwargs: {use_reentrant: false}`, or `pact.anchors: 0`.",
        lambda training, config: training.processes > 1 and config.anchors_per_step > 0,
    ),
    Rule(
        "streams",
        "a streaming data set",
        "Its sequences are not known before the first step, and the reference is computed then.",
        "Load the data set whole (`streaming: false`).",
    ),
)


def refused(training: Training, config: PactConfig) -> Iterator[tuple[str, PactError]]:
    """What cannot be served of a run: the attributes of `training` at fault, each with its error."""
    expected = "supervised fine-tuning in a way that PACT can serve"
    for part, got, consequence, remedy, condition in RULES:
        if getattr(training, part) and condition(training, config):
            words = got.format(training)
            yield part, PactError(expected=expected, got=words, consequence=consequence, remedy=remedy)
