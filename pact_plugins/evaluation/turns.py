"""Conversations in prompt files: `messages` of role and content, and ShareGPT's `from` and `value`."""

from __future__ import annotations

from typing import Any, NamedTuple

ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of roles."""


class Turn(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str

    def as_message(self) -> dict[str, str]:
        """As chat templates take it."""
        return {"role": self.role, "content": self.content}


def turns_of(messages: list[Any]) -> list[Turn]:
    """The turns of a conversation, with blanks around them cut off.

    Raises:
        ValueError: one is no message, or has no text; in words.
    """
    return [_turn(number, message) for number, message in enumerate(messages, 1)]


def _turn(number: int, message: Any) -> Turn:
    if not isinstance(message, dict):
        raise ValueError(f"turn {number} that is a {type(message).__name__}")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str) or not content.strip():
        raise ValueError(f"turn {number} without {'a role' if not isinstance(role, str) else 'text'}")
    return Turn(ROLES.get(role, role), content.strip())


def split(turns: list[Turn]) -> tuple[list[Turn], str, str | None]:
    """What stands before the last user turn, that turn, and the answer to it if there is one.

    Raises:
        ValueError: the conversation does not end with a user turn, or one and an answer; in words.
    """
    answer = turns[-1].content if turns and turns[-1].role == "assistant" else None
    asked = turns if answer is None else turns[:-1]
    if not asked or asked[-1].role != "user":
        raise ValueError(f"roles {', '.join(turn.role for turn in turns) or 'of none'}")
    return asked[:-1], asked[-1].content, answer
