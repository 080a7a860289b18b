"""What else one could do: rows of the anchors mixed in, KL over the vocabulary, and the token-wise constraint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.second_model import final_hidden_states
from pact_plugins.config import PactConfig
from pact_plugins.demo.world import Row
from pact_plugins.method.finder import Finder
from pact_plugins.method.prompting import Prompts
from pact_plugins.model.fingerprints import model_fingerprint
from pact_plugins.model.support import underlying
from pact_plugins.preflight.audit import audit

IGNORED = -100


def anchor_rows(model: nn.Module, tokenizer: Any, config: PactConfig, bf16: bool) -> list[Row]:
    """The anchors of a run of PACT as rows to train on, in their order: prompts with the model's own answers.

    An answer that was cut at `prompting.MAX_ANSWER_TOKENS` is taught to end there.

    Args:
        model: before fine-tuning.
        tokenizer: its tokenizer.
        config: of that run.
        bf16: whether its forward passes run in bfloat16.
    """
    with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=bf16):
        asked = Finder(config, model, tokenizer, model_fingerprint(model)).answers
    prompts = Prompts.of(config.prompts).in_turn
    answers = tokenizer.batch_decode(asked.answers(), skip_special_tokens=True)
    return [Row(prompt, answer, i % 2 == 0) for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))]


def mixed(rows: Sequence[Row], anchors: Sequence[Row], per_step: int, batch: int) -> list[Row]:
    """The rows in their order with `per_step` anchors, in turn, behind each `batch` of them."""
    found: list[Row] = []
    for step, start in enumerate(range(0, len(rows), batch)):
        first = step * per_step
        found += rows[start : start + batch]
        found += [anchors[i % len(anchors)] for i in range(first, first + per_step)]
    return found


def undamped(trainer: Any, rows: Sequence[Row], config: PactConfig) -> list[Row]:
    """As many rows, of those that PACT would not damp.

    Args:
        trainer: one that begins to train on `rows`.
        rows: in the order of its training set.
        config: by which damping is decided.
    """
    damped = {row for answer in audit(trainer, config).listed for row in answer.rows}
    kept = [row for i, row in enumerate(rows) if i not in damped]
    return [kept[i % len(kept)] for i in range(len(rows))]


def full_kl(reference: nn.Module, host_loss: Callable[..., Any], weight: float) -> Callable[..., Any]:
    """`compute_loss` of cross-entropy + weight * mean KL(reference || student) over the vocabulary, at answer tokens.

    Args:
        reference: the model before fine-tuning, of its own in memory.
        host_loss: the trainer's own `compute_loss`.
        weight: of KL.
    """
    reference.eval().requires_grad_(False)

    def compute_loss(model: nn.Module, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
        base = underlying(model)
        with final_hidden_states(base) as hidden:
            own = host_loss(model, inputs, *args, **kw)
        context = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        answer = inputs["labels"][:, 1:] != IGNORED
        with torch.no_grad():
            before = F.log_softmax(reference(**context).logits[:, :-1][answer], -1)
        now: Tensor = F.log_softmax(base.get_output_embeddings()(hidden[0][:, :-1][answer]), -1)
        return own + weight * F.kl_div(now, before, reduction="batchmean", log_target=True)

    return compute_loss


def strength(position: Tensor) -> Tensor:
    """beta_t of the token-wise constraint: 0.5 at an answer's first token, 2 at the next four, 0.1 after these.

    Args:
        position: [N] place of each token in its answer, from 0.
    """
    return torch.where(position == 0, 0.5, torch.where(position < 5, 2.0, 0.1))


def constrained(student: Tensor, reference: Tensor, position: Tensor) -> Tensor:
    """[N] the loss of each answer token: -(2 / beta_t) log sigmoid(beta_t (log p_student - log p_reference)).

    Its gradient is that of cross-entropy at first, and vanishes as the student's probability of a token outgrows the
    reference's, the sooner the larger beta_t. Source: Qi et al., arXiv 2406.05946, equation 3.

    Args:
        student: [N] log-probability of each answer token.
        reference: [N] the same of the model before fine-tuning.
        position: [N] place of each token in its answer, from 0.
    """
    beta = strength(position)
    return -2 / beta * F.logsigmoid(beta * (student - reference))


def token_wise(reference: nn.Module) -> Callable[..., Any]:
    """`compute_loss` of the constraint, in place of cross-entropy: a mean over the batch's answer tokens.

    Args:
        reference: the model before fine-tuning, of its own in memory.
    """
    reference.eval().requires_grad_(False)

    def compute_loss(model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        context = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        labels = inputs["labels"][:, 1:]
        answer = labels != IGNORED
        position = (answer.cumsum(1) - 1)[answer]
        outputs = model(**context)
        with torch.no_grad():
            before = -F.cross_entropy(
                reference(**context).logits[:, :-1][answer].float(), labels[answer], reduction="none"
            )
        now = -F.cross_entropy(outputs.logits[:, :-1][answer].float(), labels[answer], reduction="none")
        loss = constrained(now, before, position).mean()
        return (loss, outputs) if return_outputs else loss

    return compute_loss
