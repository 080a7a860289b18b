"""The one exception type of the package: it says what was expected, what was found, what follows, what to do."""

from __future__ import annotations

from functools import partial
from typing import Any


class PactError(Exception):
    """A condition under which training must not go on.

    Args:
        expected: what the check requires.
        got: what it found.
        consequence: what would have happened, had the run gone on.
        remedy: what the user can do about it.
    """

    def __init__(self, *, expected: str, got: str, consequence: str, remedy: str) -> None:
        self.expected, self.got, self.consequence, self.remedy = expected, got, consequence, remedy
        # What another library said often ends with a stop of its own.
        super().__init__(f"Expected {expected}; got {got.removesuffix('.')}. {consequence} {remedy}")

    @property
    def words(self) -> dict[str, str]:
        """Its four parts, by name."""
        return {"expected": self.expected, "got": self.got, "consequence": self.consequence, "remedy": self.remedy}

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are unpickled from one positional argument, and a process pool that fails to waits for ever.
        return partial(type(self), **self.words), ()


class MissingReferenceError(PactError):
    """A training sequence that the reference cache does not hold."""


def missing_extra(package: str, extra: str, purpose: str) -> PactError:
    """The error for an optional dependency that is not installed, with the exact command that installs it."""
    return PactError(
        expected=f"the package `{package}` for {purpose}",
        got="no such package in this environment",
        consequence="Without it, that cannot be done.",
        remedy=f'Run `pip install "pact-plugins[{extra}]"`.',
    )
