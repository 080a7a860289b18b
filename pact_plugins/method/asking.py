"""The shipped prompts, asked of a model: once, for whoever needs its answers, and kept in one file.

Safety tokens need the probabilities at the tokens of an answer, anchors the answer itself and what else the model might
have said. All of that is taken in the very forward passes that write the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pact_plugins.chat.answers import Document
from pact_plugins.errors import PactError
from pact_plugins.method import prompting
from pact_plugins.method.prompting import answered, continuations, end_tokens, up_to_end
from pact_plugins.model.forward import batches_by_length
from pact_plugins.model.progress import bar
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.model.support import check_supported, underlying
from pact_plugins.storage import files

VERSION = 2
"""Of the file, and of how the prompts are asked."""

TOKENS_PER_BATCH = 8192
"""Tokens of one batch, prompts and answers at their longest: 1 GiB of keys and values in an 8B Llama."""

LIKELY = 1024
"""Tokens of an answer whose probabilities are kept, the most probable ones; of the others each has less than 1/1024."""

CANDIDATES = 32
"""Tokens whose probabilities are kept at each token of an answer, the most probable ones."""

WHAT = "asking the model the shipped prompts"


@dataclass(frozen=True)
class Asked:
    """What a model answers, T tokens in all, each answer up to and with its end token.

    Attributes:
        documents: [n] each prompt with its answer, the answer supervised.
        likely: [n, K] ids of the tokens that are most probable in each answer.
        probabilities: [n, K] theirs, a mean over the tokens of the answer.
        candidates: [T, C] ids of the tokens that are most probable at each token of the answers, in their order.
        log_probabilities: [T, C] theirs.
    """

    documents: list[Document]
    likely: Tensor
    probabilities: Tensor
    candidates: Tensor
    log_probabilities: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Asked]) -> Asked:
        """All of them, one after the other."""
        tensors = (torch.cat([getattr(p, name) for p in parts]) for name in _TENSORS)
        return cls([d for part in parts for d in part.documents], *tensors)

    def answers(self) -> list[list[int]]:
        """Token ids of each answer."""
        return [d.input_ids[d.supervised].tolist() for d in self.documents]

    def save(self, path: Path) -> None:
        """Writes everything, with the name of the file: another model's answers have another name."""
        rows = [torch.from_numpy(d.input_ids) for d in self.documents]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_PADDING).int()
        lengths = torch.tensor([int(d.supervised.sum()) for d in self.documents], dtype=torch.int32)
        tensors = {name: getattr(self, name) for name in _TENSORS}
        files.write_tensors(path, {"ids": ids, "lengths": lengths, **tensors})

    @classmethod
    def load(cls, path: Path) -> Asked:
        """Reads what `save` wrote.

        Raises:
            PactError: no such file, or another content.
        """
        try:
            found = files.read_tensors(path)
            if {name: (t.dim(), t.is_floating_point()) for name, t in found.items()} != _FORM:
                raise ValueError("no answers to prompts")
            rows = [row[row != _PADDING].tolist() for row in found.pop("ids")]
            starts = [len(row) - n for row, n in zip(rows, found.pop("lengths").tolist(), strict=True)]
            asked = cls([answered(r[:s], r[s:]) for r, s in zip(rows, starts, strict=True)], **found)
            lengths = [len(answer) for answer in asked.answers()]
            if not rows or min([*starts, *lengths]) < 1 or min(map(min, rows)) < 0:
                raise ValueError("a prompt without an answer, or an answer without a prompt")
            pairs = (asked.likely, asked.probabilities), (asked.candidates, asked.log_probabilities)
            for (ids, values), count in zip(pairs, (len(rows), sum(lengths)), strict=True):
                if ids.shape != values.shape or len(ids) != count or not ids.numel() or ids.min() < 0:
                    raise ValueError("not as many values as answers, or of no tokens")
            return asked
        except (OSError, ValueError) as error:
            gone = isinstance(error, FileNotFoundError)
            raise PactError(
                expected=f"this model's answers to the shipped prompts in {path}",
                got=f"{type(error).__name__}: {error}",
                consequence="The run would be held to other answers than the reference's own.",
                remedy="Point `pact.cache_dir` to where the run began, or start from the original model."
                if gone
                else f"Remove {path.name}; the next run that starts from the original model asks it again.",
            ) from error


_TENSORS = ("likely", "probabilities", "candidates", "log_probabilities")
_FORM = {
    "ids": (2, False),
    "lengths": (1, False),
    "likely": (2, False),
    "probabilities": (2, True),
    "candidates": (2, False),
    "log_probabilities": (2, True),
}
"""Dimensions of each tensor in the file, and whether it holds floating point numbers."""

_PADDING = -1


def ask(model: nn.Module, tokenizer: Any, chats: Sequence[Sequence[int]], *, ranks: Ranks = ALONE) -> Asked:
    """Greedy answers of `model`, as it is now, to `chats`, in their order.

    Batches depend on the chats alone, so that the answers are the same in any number of processes, each of which asks
    a part. Call it in the autocast context of the trainer's own forward passes.

    Args:
        chats: what `prompting.as_chats` gives.
        ranks: of the run, each with the same model and chats.

    Raises:
        PactError: the model cannot be served, or answers nothing.
    """
    check_supported(model)
    length = prompting.MAX_ANSWER_TOKENS
    ends = end_tokens(model, tokenizer)
    batches = batches_by_length([len(chat) + length for chat in chats], TOKENS_PER_BATCH)
    before = list(accumulate(map(len, batches), initial=0))
    found: dict[int, Asked] = {}
    with bar(f"PACT: {WHAT}", len(chats), ranks.is_first) as reached:

        def answer(number: int) -> list[Asked]:
            batch = [chats[i] for i in batches[number]]
            share = len(batch) / length
            return _answer(model, batch, length, ends, lambda step: reached(before[number] + step * share))

        numbers = range(len(batches))
        for number, answers in ranks.merged(numbers, map(answer, ranks.part(numbers)), WHAT):
            found.update(zip(batches[number], answers, strict=True))
            reached(before[number + 1])
    return Asked.joined([found[i] for i in range(len(chats))])


def _answer(
    model: nn.Module, chats: Sequence[Sequence[int]], length: int, ends: set[int], each_step: Callable[[int], None]
) -> list[Asked]:
    """One batch, each answer by itself."""
    watch = _Watch(model, length, ends, each_step)
    with watch.hook:
        written = continuations(model, chats, length)
    answers = [up_to_end(tokens, ends) for tokens in written]
    if not all(answers) or watch.steps < max(map(len, answers)):
        raise PactError(
            expected="the model to answer the shipped prompts, with one forward pass for each token",
            got=f"{watch.steps} forward passes for answers of {max(map(len, answers))} tokens",
            consequence="It could not be seen how the model refuses.",
            remedy="Check the model's generation config and chat template.",
        )
    return watch.values(chats, answers)


class _Watch:
    """What a model computes while `generate` writes answers in one batch, beside their tokens.

    Args:
        each_step: is told how many tokens have been written.
    """

    def __init__(self, model: nn.Module, length: int, ends: set[int], each_step: Callable[[int], None]) -> None:
        self.steps, self._length, self._ends, self._each_step = 0, length, sorted(ends), each_step
        self._candidates: list[torch.return_types.topk] = []
        self._sums, self._going_on = torch.zeros(()), torch.ones(())
        self.hook = underlying(model).register_forward_hook(self._after_model, with_kwargs=True)

    def _after_model(self, _module: nn.Module, _args: Any, inputs: dict[str, Any], output: Any) -> None:
        if self.steps >= self._length:  # an engine that shares the weights goes on until the last process is done
            return
        logits = output.logits[:, -1].float()
        if self.steps == 0:
            self._sums, self._going_on = torch.zeros_like(logits), torch.ones_like(logits[:, :1])
        else:
            self._going_on *= ~torch.isin(inputs["input_ids"][:, -1:], torch.tensor(self._ends, device=logits.device))
        probabilities = logits.softmax(-1)
        self._sums.addcmul_(probabilities, self._going_on)
        self._candidates.append(logits.log_softmax(-1).topk(min(CANDIDATES, logits.shape[1])))
        self.steps += 1
        self._each_step(self.steps)

    def values(self, chats: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Asked]:
        """What was seen of each answer."""
        sums, likely = (part.cpu() for part in self._sums.topk(min(LIKELY, self._sums.shape[1])))
        values, ids = (torch.stack(seen, 1).cpu() for seen in zip(*self._candidates, strict=True))
        return [
            Asked(
                [answered(chat, answer)],
                likely[[row]].int(),
                sums[[row]] / len(answer),
                ids[row, : len(answer)].int(),
                values[row, : len(answer)],
            )
            for row, (chat, answer) in enumerate(zip(chats, answers, strict=True))
        ]
