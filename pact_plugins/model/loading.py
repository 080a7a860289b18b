"""Models and tokenizers from a folder or the hub, with errors that say what was wrong. Precision is the caller's."""

from __future__ import annotations

from typing import Any

import torch

from pact_plugins.errors import PactError

ACCESS = (
    "Check the path; for a model on the hub the network and, if it is gated, that you have been given access and are "
    "logged in (`hf auth login`)."
)


def pretrained(
    kind: Any, name: str, *, consequence: str, expected: str | None = None, remedy: str = ACCESS, **options: Any
) -> Any:
    """What `kind.from_pretrained(name, **options)` gives.

    Args:
        kind: an auto class of transformers: of a model, a tokenizer or a config.
        name: a folder, or a name on the hub.
        consequence: what cannot be done without it.
        expected: what should have been there; a model and its tokenizer if not given.
        remedy: what to do about it.
        options: of `from_pretrained`.

    Raises:
        PactError: nothing is there, it needs access, it is of another kind or damaged, or a package that it needs is
            missing.
    """
    try:
        return kind.from_pretrained(name, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the hub's client, transformers and each file format raise their own
        raise PactError(
            expected=expected or f"a model and its tokenizer under `{name}`",
            got=f"{type(error).__name__}: {error}",
            consequence=consequence,
            remedy=remedy,
        ) from error
