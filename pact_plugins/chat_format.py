"""What a chat template puts around an assistant turn, as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pact_plugins.errors import PactError

_ANSWER = "PACTANSWER"
"""Stands for an assistant message when the template is probed; no template treats it specially."""


def check_tokenizer(tokenizer: Any) -> None:
    """Refuses what is no tokenizer: nothing at all, or the processor of a multimodal model.

    Raises:
        PactError: it cannot turn text into ids and back, or does not say which ids are special.
    """
    if tokenizer is None or not all(hasattr(tokenizer, name) for name in ("get_vocab", "decode", "all_special_ids")):
        inner = hasattr(tokenizer, "tokenizer")
        raise PactError(
            expected="a trainer whose `processing_class` is the model's tokenizer",
            got=f"a {type(tokenizer).__name__}" if tokenizer is not None else "a trainer without one",
            consequence="PACT could not tell where answers begin, or which tokens to hold.",
            remedy=f"Make the trainer with `processing_class={'processor.' if inner else ''}tokenizer`.",
        )


@dataclass(frozen=True)
class ChatFormat:
    """The tokens that open and close an assistant turn.

    Attributes:
        header: ids that the template adds before an answer: the difference between rendering a conversation with and
            without the generation prompt. Empty if the template has no generation prompt.
        end: id of the first special token after an answer, usually the end-of-turn token; of the first token, if the
            template adds no special one; the tokenizer's end of sequence, if it adds nothing.
    """

    header: tuple[int, ...] = ()
    end: int | None = None

    def require_header(self, purpose: str) -> tuple[int, ...]:
        """The header, or an error saying that `purpose` cannot do without it."""
        if not self.header:
            raise PactError(
                expected="a chat template with a generation prompt, whose tokens mark the start of an answer",
                got="a tokenizer without a chat template, or a template that ignores `add_generation_prompt`",
                consequence=f"PACT could not {purpose}.",
                remedy="Set the model's own chat template, or use data whose labels mask everything but the answers "
                "together with `gate: false`.",
            )
        return self.header

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> ChatFormat:
        """Reads header and end-of-turn off the tokenizer's chat template.

        Raises:
            PactError: the template refuses a plain conversation of one user turn and one assistant turn.
        """
        if getattr(tokenizer, "chat_template", None) is None:
            return cls()
        user = [{"role": "user", "content": "Hello"}]
        try:
            closed = render(tokenizer, user, generation_prompt=False)
            opened = render(tokenizer, user, generation_prompt=True)
            turn = tokenizer.apply_chat_template([*user, {"role": "assistant", "content": _ANSWER}], tokenize=False)
        except Exception as error:  # a template may raise anything: it is the model author's program
            raise PactError(
                expected="a chat template that renders one user turn and one assistant turn",
                got=f"{type(error).__name__}: {error}",
                consequence="PACT could not tell where answers begin.",
                remedy="Check the tokenizer's `chat_template` with `tokenizer.apply_chat_template`.",
            ) from error
        header = opened[len(closed) :] if opened[: len(closed)] == closed else []
        tail = tokenizer(turn.rpartition(_ANSWER)[2], add_special_tokens=False)["input_ids"]
        special = [token for token in tail if token in tokenizer.all_special_ids]
        return cls(tuple(header), (special or tail or [tokenizer.eos_token_id])[0])


def render(tokenizer: Any, messages: list[dict[str, str]], *, generation_prompt: bool) -> list[int]:
    """Token ids of a conversation under the tokenizer's chat template."""
    return list(
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=generation_prompt, tokenize=True, return_dict=False
        )
    )
