"""The formulation that PACT replaces: a second model in every step, two more forward passes, full-vocabulary logits.

Written here from the formulas of arXiv 2603.07445 as the baseline of the benchmarks. It trains on the same batches,
adds the same loss as `objective: paper`, and leaves cross-entropy to the same host: only the formulation differs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pact_plugins.chat.answers import AnswerTokens, split_documents
from pact_plugins.chat.format import ChatFormat
from pact_plugins.method import loss
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.model.forward import pad
from pact_plugins.model.support import underlying


@contextmanager
def final_hidden_states(base: Any) -> Generator[list[Tensor]]:
    """The decoder's outputs within the block, [B, L, H] each: hosts may never form the logits."""
    hidden: list[Tensor] = []
    hook = base.get_decoder().register_forward_hook(lambda _m, _a, out: hidden.append(out.last_hidden_state))
    try:
        yield hidden
    finally:
        hook.remove()


class SecondModel:
    """The host's loss plus the `paper` objective, with the reference as a frozen copy of `model` in memory.

    Args:
        model: the model being trained, as it is now.
        tokens: the safety tokens.
        chat: what the chat template puts around answers.
        host_loss: the trainer's own `compute_loss`.
    """

    def __init__(
        self, model: nn.Module, tokens: SafetyTokens, chat: ChatFormat, host_loss: Callable[..., Tensor]
    ) -> None:
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        for module in self.reference.modules():
            # A forward method that the host put on the model: its copy would still run the model being trained.
            vars(module).pop("forward", None)
        self.ids, self.weights = torch.tensor(tokens.ids), torch.tensor(tokens.weights)
        self.chat, self.host_loss = chat, host_loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kw: Any) -> Tensor:
        """The loss of one batch; takes what a trainer's `compute_loss` takes."""
        context = {k: inputs[k] for k in ("input_ids", "attention_mask")}
        answers = AnswerTokens.of(split_documents(inputs), self.chat)
        row, column = torch.from_numpy(answers.row), torch.from_numpy(answers.column)
        base = underlying(model)
        with final_hidden_states(base) as hidden:
            own = self.host_loss(model, inputs, *args, **kw)
        student = base.get_output_embeddings()(hidden[0])
        with torch.no_grad():
            full = self.reference(**context, use_cache=False).logits
            ids, mask, short_column = self._answers_alone(answers)
            answer_only = self.reference(input_ids=ids, attention_mask=mask, use_cache=False).logits
        z, z_full = (logits[row, column][:, self.ids].float() for logits in (student, full))
        z_answer = answer_only[torch.from_numpy(answers.answer), short_column][:, self.ids].float()
        opening = loss.gate(z, z_answer, torch.from_numpy(answers.position))
        return own + loss.paper(z, z_full, z_answer, opening, self.weights).mean()

    def _answers_alone(self, answers: AnswerTokens) -> tuple[Tensor, Tensor, Tensor]:
        """Header and answer of each answer, padded, and the column that predicts each answer token in them."""
        header = np.asarray(self.chat.header, np.int64)
        labels = [answers.label[answers.answer == a] for a in range(int(answers.answer[-1]) + 1)]
        ids, mask = pad([np.concatenate([header, label[:-1]]) for label in labels], torch.device("cpu"))
        return ids, mask, torch.from_numpy(answers.position) + len(header) - 1
