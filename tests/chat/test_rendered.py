"""Which of several chat templates tells where the answers of a training set are."""

from __future__ import annotations

import pytest

from pact_plugins.chat.rendered import rendered_with
from pact_plugins.errors import PactError
from tests import tiny

OWN = tiny.TEMPLATE
THINKING = OWN.replace("{% generation %}{{ m['content'] }}", "{% generation %}{{ '(no thought)\n' + m['content'] }}")
OTHER = OWN.replace("<|{{ m['role'] }}|>\n", "<|{{ 'assistant' if m['role'] == 'assistant' else 'system' }}|>\n")


def test_the_tokenizers_own_needs_no_telling() -> None:
    """Prevents: a reference that is another one since the same template was named twice."""
    assert rendered_with(tiny.tokenizer(), [("a", OWN), ("b", OWN)]) is None
    assert rendered_with(tiny.tokenizer(), []) is None


def test_a_shared_template_is_told() -> None:
    """Prevents: turns that are looked for with markers that stand in no row."""
    assert rendered_with(tiny.tokenizer(), [("a", OTHER), ("b", OTHER)]) == OTHER


@pytest.mark.parametrize("order", [1, -1])
def test_the_same_markers_are_told_by_what_can_stand_behind_them(order: int) -> None:
    """Prevents: a refusal of templates that locate each other's turns, and a lead that counts as an answer's words."""
    assert rendered_with(tiny.tokenizer(), [("a", OWN), ("b", THINKING)][::order]) == THINKING


def test_other_markers_are_refused() -> None:
    """Prevents: half of the rows located by the template of the other half."""
    with pytest.raises(PactError, match=r"turns of `b` than around those of `a`.*leave `chat_template` out"):
        rendered_with(tiny.tokenizer(), [("a", OWN), ("b", OTHER)])
