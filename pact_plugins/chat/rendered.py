"""Which of several chat templates tells where the answers of a training set are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pact_plugins.chat.format import ChatFormat
from pact_plugins.errors import PactError


def rendered_with(tokenizer: Any, templates: Sequence[tuple[str, str]]) -> str | None:
    """The template that locates all rows; None if the tokenizer's own does.

    Templates that differ in what they put before an answer's own words locate each other's turns: of these it is the
    one that knows most of what can stand there.

    Args:
        templates: the name of each data set, and the template that rendered it.

    Raises:
        PactError: they mark turns differently, or one of them cannot be read.
    """
    own = getattr(tokenizer, "chat_template", None)
    if all(template == own for _, template in templates):
        return None
    found = {template: ChatFormat.from_tokenizer(tokenizer, template=template) for _, template in templates}
    (first, template), *others = templates
    for name, other in others:
        if _turns(found[other]) != _turns(found[template]):
            raise PactError(
                expected="data sets whose chat templates mark turns with the same tokens",
                got=f"other tokens around the turns of `{name}` than around those of `{first}`",
                consequence="Answers would be located by one template in rows that the other one rendered, and the "
                "words of a user could be constrained.",
                remedy="Render all data sets with one template: leave `chat_template` out of the entries under "
                "`datasets`.",
            )
    best = max(found, key=lambda t: len(found[t].leads))
    return None if best == own else best


def _turns(chat: ChatFormat) -> tuple[Any, ...]:
    """What turns are told apart by."""
    return {*chat.openings}, {*chat.users}, {*chat.ends}, {*chat.results}, chat.unopened
