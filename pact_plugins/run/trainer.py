"""What PACT reads off a trainer: whether it can be served, its average step, and facts for people."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import IterableDataset

from pact_plugins import __version__
from pact_plugins.chat.answers import Document
from pact_plugins.chat.format import ChatFormat, check_tokenizer
from pact_plugins.config import SPLIT, PactConfig
from pact_plugins.evaluation.of_run import RunEvaluation
from pact_plugins.evaluation.prompts import PromptSet
from pact_plugins.evaluation.split import no_split, prompts_of
from pact_plugins.method.refusal_probe import Probe
from pact_plugins.model.adapter import RELORA, lost
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.model.sharding import is_cut, is_sharded
from pact_plugins.model.support import check_supported, underlying
from pact_plugins.run.as_loaded import check_as_loaded
from pact_plugins.run.cost import Data, ModelSize, Step, forward_lengths
from pact_plugins.run.documents import documents_of, first_documents, training_documents
from pact_plugins.run.served import Training, of_axolotl, refused, sharded_by

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A run that is about to begin.

    Attributes:
        model: before its first step, adapter included; unwrapped of any engine.
        tokenizer: its tokenizer, with its chat template.
        documents: all training sequences; of a data set that streams, those of its first rows (`READ_AHEAD`); none
            where anchors alone are held.
        streams: whether it does: the reference is computed in each step then, and not before the first.
        config: the settings of PACT.
        holds_rows: whether answers of the data set are held, or anchors alone.
        template: that the data was rendered with, if it is not the tokenizer's own.
        evaluation: what the model is asked before and after, if it is.
        resumed_from: folder of a run that is being continued. Its weights are no reference any more: the cache and the
            tokens of that run are used, and nothing is computed from the model.
        autocast: makes the context in which the trainer runs its forward passes.
        show_progress: whether to draw progress bars.
        ranks: of the run, each with the same model and documents.
    """

    model: nn.Module
    tokenizer: Any
    documents: Sequence[Document]
    config: PactConfig
    streams: bool = False
    holds_rows: bool = True
    template: str | None = None
    evaluation: RunEvaluation | None = None
    resumed_from: Path | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    show_progress: bool = True
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, trainer: Any, config: PactConfig, ranks: Ranks = ALONE, *, prepared: bool = False) -> Start:
        """All of it read off a trainer that begins to train.

        Args:
            prepared: whether its model was made ready to be trained before (`as_loaded.was_prepared`).

        Raises:
            PactError: its model was trained before, its rows cannot be read, or its prompt sets or judges
                cannot be used.
        """
        model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), tokenizer_of(trainer)
        resumed, rows = trainer.state.global_step > 0, holds_rows(trainer)
        config, streaming = config if rows else config.anchors_alone(), rows and streams(trainer)
        if not resumed:
            check_as_loaded(trainer, model, prepared=prepared)
        return cls(
            model,
            tokenizer,
            # Before the rows, which may take long: a misspelt judge is noticed at once.
            evaluation=_evaluation(trainer, tokenizer, config, ranks),
            documents=first_documents(trainer, ranks) if streaming else [*training_documents(trainer)] if rows else [],
            config=config,
            streams=streaming,
            holds_rows=rows,
            template=getattr(trainer, "chat_template", None),  # TRL has its own for some families
            resumed_from=output_dir(trainer) if resumed else None,
            autocast=trainer.accelerator.autocast,
            show_progress=trainer.is_world_process_zero(),
            ranks=ranks,
        )


def _evaluation(trainer: Any, tokenizer: Any, config: PactConfig, ranks: Ranks) -> RunEvaluation | None:
    if config.active_eval is None:
        return None
    if getattr(tokenizer, "chat_template", None) is None:
        logger.warning("PACT: without a chat template the model is not asked, and the report shows no behaviour.")
        return None
    asked, split = config.active_eval, list[PromptSet]()
    if asked.task == SPLIT:
        split = _eval_split(trainer, tokenizer, asked.limit)
    return RunEvaluation(asked, output_dir(trainer), tokenizer, config.cache_folder, ranks, split)


def _eval_split(trainer: Any, tokenizer: Any, limit: int | None) -> list[PromptSet]:
    """The rows of the trainer's eval split as a task, of several splits each as one.

    Raises:
        PactError: there is none, it streams, or none of its rows can be asked.
    """
    given = trainer.eval_dataset
    splits: dict[str, Any] = dict(given) if isinstance(given, dict) else {} if given is None else {"": given}
    if not splits or not all(hasattr(split, "__len__") for split in splits.values()):
        raise no_split("a split that streams" if splits else "a trainer without one")
    chat = ChatFormat.from_tokenizer(tokenizer, template=getattr(trainer, "chat_template", None))
    found: list[PromptSet] = []
    for name, split in splits.items():
        documents = list(documents_of(trainer, split))
        asked, left_out = prompts_of(documents, chat, tokenizer, f"eval split {name}".strip(), limit)
        for why, count in left_out.items():
            logger.warning("PACT: of the %s, %s rows are not asked: %s.", asked.name, f"{count:,}", why)
        found.append(asked)
    return found


def check_trainer(trainer: Any, config: PactConfig) -> None:
    """Refuses trainers on which the safety term would be wrong."""
    for _, error in refused(training_of(trainer), config):
        raise error
    check_supported(trainer.accelerator.unwrap_model(trainer.model))
    tokenizer_of(trainer)


def training_of(trainer: Any) -> Training:
    """How a trainer trains."""
    args, accelerator = trainer.args, trainer.accelerator
    # User's own trainers and other hosts' derive from these two.
    kind = next((cls.__name__ for cls in type(trainer).__mro__ if cls.__module__.startswith("trl.")), "SFTTrainer")
    of_host = (cls.__name__ for cls in type(trainer).__mro__ if cls.__module__.startswith("axolotl."))
    fsdp, deepspeed = (getattr(accelerator.state, f"{name}_plugin", None) for name in ("fsdp", "deepspeed"))
    launched = deepspeed.deepspeed_config if deepspeed is not None else {}
    sizes, model = getattr(accelerator, "parallelism_config", None), underlying(accelerator.unwrap_model(trainer.model))
    cut = {
        "context": getattr(sizes, "cp_enabled", False),
        "sequence": getattr(sizes, "sp_enabled", False) or launched.get("sequence_parallel_size", 1) > 1,
        "tensor": getattr(sizes, "tp_enabled", False)
        or launched.get("tensor_parallel", {}).get("autotp_size", 0) > 1
        or (getattr(model, "tp_size", None) or 1) > 1
        or is_cut(model),
    }
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return Training(
        other_trainer=f"TRL's {kind}" if kind not in ("SFTTrainer", "DPOTrainer") else "",
        preferences="TRL's DPOTrainer" if kind == "DPOTrainer" else "",
        **of_axolotl(*of_host),
        rounds="FakeQuantized" in type(head).__name__,
        # TRL's loss computes with the head's weight and bias; one of people's own asks the model.
        tied_tokens=hasattr(head, "token_adapter")
        and not hasattr(head, "bias")
        and trainer.compute_loss.__module__.startswith("trl."),
        gpus=args.n_gpu,
        sharding=sharded_by(
            fsdp.fsdp_version if fsdp is not None else 0,
            deepspeed.zero_stage if deepspeed is not None else 0,
            offloads=isinstance(getattr(fsdp, "cpu_offload", None), CPUOffloadPolicy),
            xla=getattr(trainer, "is_fsdp_xla_enabled", False),
        ),
        quantised=getattr(trainer.model, "is_quantized", False),
        parallelism=next((kind for kind, on in cut.items() if on), ""),
        deepspeed=deepspeed is not None,
        reentrant=_reentrant(args),
        streams=streams(trainer),
        lost=_lost(trainer) if streams(trainer) else "",
    )


def holds_rows(trainer: Any) -> bool:
    """Whether answers of its data set are held, or anchors alone."""
    return not training_of(trainer).preferences


def streams(trainer: Any) -> bool:
    """Whether the rows of its training set are not known before the first step."""
    rows = trainer.train_dataset
    return isinstance(rows, IterableDataset) or (rows is not None and not hasattr(rows, "__len__"))


def _lost(trainer: Any) -> str:
    merges = any(type(callback).__name__ == "ReLoRACallback" for callback in trainer.callback_handler.callbacks)
    return RELORA if merges else lost(trainer.accelerator.unwrap_model(trainer.model))


def marks_once(trainer: Any) -> bool:
    """Whether a parameter may be used by one pass alone in each backward pass: DDP, beside re-entrant checkpointing."""
    return isinstance(trainer.model_wrapped, DistributedDataParallel) and _reentrant(trainer.args)


def _reentrant(args: Any) -> bool:
    return bool(args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"))


def tokenizer_of(trainer: Any) -> Any:
    """The tokenizer of the trainer's model: its own, or that of its processor with the template that renders the rows.

    Raises:
        PactError: it has neither.
    """
    processor = tokenizer = trainer.processing_class
    if not hasattr(processor, "get_vocab"):  # some tokenizers have another one within, which is not transformers'
        tokenizer = getattr(processor, "tokenizer", None) or processor
    if tokenizer is not processor and getattr(processor, "chat_template", None):
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = processor.chat_template
    check_tokenizer(tokenizer)
    return tokenizer


def output_dir(trainer: Any) -> Path:
    """Where the run leaves what it leaves: of a sweep, in the folder of the trial."""
    trial = getattr(trainer, "_trial", None)
    return Path(trainer.args.output_dir if trial is None else trainer._get_output_dir(trial))


def versions(trainer: Any) -> dict[str, str]:
    """Of this package, and of what the trainer stands on, the host first."""
    roots = [cls.__module__.partition(".")[0] for cls in type(trainer).__mro__]
    hosts = [name for name in dict.fromkeys(roots) if name in ("axolotl", "trl", "transformers")]
    return {"pact_plugins": __version__, **{name: version(name) for name in [*hosts, "torch"]}}


def about_training(trainer: Any) -> dict[str, Any]:
    """What the host trains, and how, for people."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    names = ("learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size")
    return {
        "model": getattr(model.config, "_name_or_path", None),
        "adapter": hasattr(model, "peft_config"),
        "processes": trainer.accelerator.num_processes,
        **{name: getattr(args, name) for name in (*names, "gradient_accumulation_steps", "seed")},
    }


def expected_step(
    trainer: Any,
    data: Data,
    documents: Sequence[Document],
    chat: ChatFormat,
    anchors: Sequence[Document],
    config: PactConfig,
) -> Step | None:
    """The average optimiser step; None if the trainer has no data loader yet, which it makes when training begins.

    Args:
        trainer: about to begin training.
        data: how much there is.
        documents: all of it; of a data set that streams, what was read ahead.
        chat: what the chat template puts around turns.
        anchors: all of them.
        config: the settings of PACT.
    """
    if (loader := trainer.callback_handler.train_dataloader) is None:
        return None
    args, forward = trainer.args, 0
    if streams(trainer):
        rows = len({d.row for d in documents})
        steps = rows / (args.per_device_train_batch_size * args.gradient_accumulation_steps)
        forward = sum(forward_lengths(documents, chat, config.gate_reach))
    else:
        batches = len(loader)
        steps = batches * trainer.accelerator.num_processes / min(args.gradient_accumulation_steps, batches)
    return Step.of(data, steps, anchors, config.anchors_per_step, forward)


def probe_flop(trainer: Any, size: ModelSize, probe: Probe | None) -> float:
    """FLOP of the drift probe in one process, for each optimiser step; 0 when it is off."""
    if probe is None:
        return 0.0
    # With sharded weights every process goes through all prompts.
    parts = 1 if is_sharded(trainer.model) else trainer.accelerator.num_processes
    return size.forward_flop(probe.tokens, probe.opening_tokens) / parts / probe.config.every
