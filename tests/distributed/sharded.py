"""A short run under PACT in a loop of one's own, in one process or in two that share the weights."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, multiprocessing, nn
from transformers import TrainerCallback

from pact_plugins import PactConfig
from pact_plugins.chat.dataset import read_documents
from pact_plugins.errors import PactError
from pact_plugins.method import prompting, safety_tokens
from pact_plugins.method.refusal_probe import Probe
from pact_plugins.model.fingerprints import model_fingerprint
from pact_plugins.model.forward import collate
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.model.sharding import take_apart, whole
from pact_plugins.run.preparation import Preparation, prepare
from pact_plugins.run.token_profile import measure_profile
from pact_plugins.run.trainer import Start
from tests import tiny
from tests.forked import CONTEXT

Engine = Callable[[nn.Module, Any], tuple[Callable[..., Any], Callable[[Tensor], None], Callable[[], None]]]
"""Turns a model and its case into functions for the forward pass, the backward pass and the step."""

WORLD = 2
STEPS = 3
TIMEOUT = 90.0
CONFIG: dict[str, Any] = {"anchors": 1, "eval": False, "top_k": 20, "probe": {"prompts": 2}, "weight": 2.0}


@dataclass(frozen=True)
class Case:
    """A model, and how its weights are shared.

    Attributes:
        layout: of the groups of weights; None for one process.
        adapter: `full`, `lora` or `head` (LoRA, with the whole head trained beside it).
        tied: whether the head is the input embedding.
        silent: whether the host's loss gives no value per token, so that PACT computes the log-normaliser itself.
        precision: that the engine computes in.
        checkpointing: `reentrant`, `plain` or None for none.
    """

    layout: str | None
    adapter: str = "full"
    tied: bool = False
    silent: bool = False
    precision: torch.dtype | None = None
    checkpointing: str | None = None

    @property
    def whole(self) -> Case:
        """The same model in one process."""
        return replace(self, layout=None)


@dataclass(frozen=True)
class Result:
    """What a run found and did.

    Attributes:
        fingerprint, trained: of the weights before the first step and after the last.
        tokens: the safety tokens that were found.
        anchors: the model's own answers.
        reference: of the first batch.
        losses: of each step, over all processes.
        margin: the drift probe's, after the last step.
        profile: divergence by position, after the last step.
        weights: after the last step.
    """

    fingerprint: str
    trained: str
    tokens: tuple[int, ...]
    anchors: list[list[int]]
    reference: Tensor
    losses: list[float]
    margin: list[float]
    profile: tuple[float, ...]
    weights: dict[str, Tensor]

    def check_equals(self, expected: Result) -> None:
        """The same but for the order of float32 sums."""
        assert self.trained != self.fingerprint == expected.fingerprint
        assert self.tokens == expected.tokens
        assert self.anchors == expected.anchors
        torch.testing.assert_close(self.reference, expected.reference, atol=2e-3, rtol=0)
        assert self.losses == pytest.approx(expected.losses, rel=1e-5)
        for name, weight in expected.weights.items():
            torch.testing.assert_close(self.weights[name], weight, atol=1e-6, rtol=1e-5, msg=name)
        assert self.margin == pytest.approx(expected.margin, rel=1e-4)
        assert self.profile == pytest.approx(expected.profile, rel=3e-5, abs=1e-6)


class Logged(TrainerCallback):
    """Keeps PACT's numbers of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_log(self, _args: Any, state: Any, control: Any, logs: dict[str, float], **_kw: Any) -> None:
        self.steps.append({k: v for k, v in logs.items() if k in ("loss", "pact/kl", "pact/safety_mass")})


def build(case: Case) -> nn.Module:
    model: Any = tiny.llama(tie_word_embeddings=case.tied)
    if case.adapter != "full":
        torch.manual_seed(1)
        saved = ["lm_head"] if case.adapter == "head" else None
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=saved, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    if case.silent:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.loss_function = _mean_loss
    if case.checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": case.checkpointing == "reentrant"})
        model.enable_input_require_grads()
    return model.train()


def _mean_loss(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
    """The usual loss, computed in a way that nothing can be read off."""
    kept = labels[:, 1:] != -100
    log_probs = logits[:, :-1].float().log_softmax(-1)[kept]
    return -log_probs.gather(1, labels[:, 1:][kept].unsqueeze(1)).mean()


def documents() -> list[Any]:
    tokenizer = tiny.tokenizer()
    rows = []
    for messages in tiny.conversations(12, 1)["messages"]:
        row = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        labels = [i if m else -100 for i, m in zip(row["input_ids"], row["assistant_masks"], strict=True)]
        rows.append({"input_ids": row["input_ids"], "labels": labels})
    return list(read_documents(tiny.Dataset.from_list(rows)))


def train(
    case: Case,
    folder: Path,
    engine: Engine,
    rank: int = 0,
) -> Result:
    """Prepares PACT on the model as `engine` shares it, and takes a few steps of SGD.

    Args:
        case: the model.
        folder: for the caches, which the processes share.
        engine: shares it.
        rank: of this process.
    """
    # Each token of an answer gathers every weight once: few prompts, short answers. Random weights refuse none.
    shipped = prompting.shipped
    with (
        patch.object(safety_tokens, "LEAST_REFUSALS", 0.0),
        patch.object(prompting, "MAX_ANSWER_TOKENS", 4),
        patch.object(prompting, "shipped", lambda name, language="en": shipped(name, language)[:8]),
    ):
        return _train(case, folder, engine, rank)


def _train(case: Case, folder: Path, engine: Engine, rank: int) -> Result:
    world = WORLD if case.layout else 1
    model = build(case)
    run_forward, backward, step = engine(model, case)
    docs = documents()
    # Anchors beside re-entrant checkpointing are refused where several processes train.
    settings = {**CONFIG, "anchors": 0} if case.checkpointing == "reentrant" else CONFIG
    config, ranks = PactConfig(cache_dir=folder, **settings), Ranks.of_run(TIMEOUT) if case.layout else ALONE
    preparation = prepare(Start(model, tiny.tokenizer(), docs, config, show_progress=False, ranks=ranks))
    objective = preparation.objective
    losses = []
    for number in range(STEPS):
        batches = [collate(docs[4 * number + 2 * part :][:2]) for part in range(WORLD)]
        supervised = sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)
        summed = torch.zeros(())
        for part in [rank] if case.layout else range(WORLD):
            targets = objective.targets(batches[part])
            with objective.watch(targets) as captured:
                given = {**batches[part], "labels": targets.labels, "num_items_in_batch": 1}
                cross_entropy = run_forward(**given).loss
            terms = objective.terms(captured, targets)
            loss = (cross_entropy + objective.config.weight * terms.kl) / supervised
            if objective.anchors is not None:
                rows = objective.anchors.rows(number * WORLD + part)
                beside = objective.anchor_terms(objective.anchors, rows, torch.device("cpu"))
                loss = loss + objective.config.weight * beside.kl / (beside.count * WORLD)
            backward(loss * world)
            summed += loss.detach().float()
        step()
        if case.layout:
            dist.all_reduce(summed)
        losses.append(summed.item())
    return _result(model, preparation, docs, losses)


def _result(model: nn.Module, preparation: Preparation, docs: list[Any], losses: list[float]) -> Result:
    objective = preparation.objective
    assert isinstance(preparation.probe, Probe)
    trained = model_fingerprint(model)
    margin, kl = preparation.probe.sums(objective.head).tolist(), measure_profile(objective, docs).kl
    assert model_fingerprint(model) == trained, "a forward pass leaves weights as they were"
    return Result(
        preparation.identity.model,
        trained,
        objective.tokens.ids,
        [d.input_ids.tolist() for d in objective.anchors.documents] if objective.anchors else [],
        objective.targets(collate(docs[:4])).full,
        losses,
        margin,
        kl,
        whole_weights(model),
    )


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the whole weights, by name."""
    take_apart(model)
    weights = {}
    for name, parameter in model.named_parameters():
        with whole([parameter]) as (values,):
            weights[name] = values.detach().clone()
    return weights


def alone(model: nn.Module, _case: Case) -> Any:
    """One process, nothing shared."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1)

    def step() -> None:
        optimiser.step()
        optimiser.zero_grad()

    return model, torch.Tensor.backward, step


def in_two_processes(function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What `function(*arguments, folder, rank)` returns in each of two processes, or the error that stopped it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    how = CONTEXT.get_start_method()
    multiprocessing.start_processes(_worker, (function, folder, port, arguments), WORLD, start_method=how)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(WORLD)]


def trained_in_two_processes(cases: list[Case], engine: Engine, folder: Path) -> dict[Case, list[Any]]:
    """Of each case, the result in each of two processes, or the error that stopped it."""
    both = in_two_processes(_train_all, folder, cases, engine)
    return {case: list(pair) for case, pair in zip(cases, zip(*both, strict=True), strict=True)}


def _train_all(cases: list[Case], engine: Engine, folder: Path, rank: int) -> list[Result | str]:
    results: list[Result | str] = []
    for i, case in enumerate(cases):
        try:
            results.append(train(case, folder / f"cache-{i}", engine, rank))
        except PactError as error:
            results.append(str(error))
    return results


def check_like_one_process(case: Case, results: list[Any], folder: Path) -> None:
    """Compares the results of both processes with that of one, and with each other."""
    expected = train(case.whole, folder, alone)
    for found in results:
        assert isinstance(found, Result), found
        found.check_equals(expected)
    assert results[0].trained == results[1].trained


def _worker(rank: int, function: Callable[..., Any], folder: Path, port: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    try:
        torch.save(function(*arguments, folder, rank), folder / f"result-{rank}.pt")
    finally:
        dist.destroy_process_group()
