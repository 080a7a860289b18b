"""The one exception type of the package: it says what was expected, what was found, what follows, what to do.

And what two common failures are in these words: a setting that is not valid, a package that is not installed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # most commands start without it
    from pydantic import BaseModel, ValidationError

    Blocks = Mapping[str, type[BaseModel]]


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


def required(module: str, extra: str, purpose: str) -> Any:
    """A module of an optional dependency.

    Raises:
        PactError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise missing_extra(module, extra, purpose) from error


def invalid_settings(error: ValidationError, schema: type[BaseModel], blocks: Blocks) -> PactError:
    """The error that pydantic's report is for whoever wrote the block.

    Args:
        blocks: what those of its keys hold that may be blocks of their own.
    """
    fields = {name for block in (schema, *blocks.values()) for name in block.model_fields}
    expected, got, remedy = [], [], ["Correct the `pact:` block."]
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        if _is_of_the_other_kind(path, blocks, item["input"]):
            continue
        if item["type"] in ("extra_forbidden", "invalid_key"):
            known = blocks.get(path[0], schema).model_fields
            expected.append(f"keys among {', '.join(known)}")
            got.append(f"the unknown key `pact.{'.'.join([*_user_path(path[:-1], fields), path[-1]])}`")
            close = difflib.get_close_matches(path[-1], known, n=1)
            remedy += [f"Did you mean `{close[0]}`?"] if close else []
        else:
            where = ".".join(["pact", *_user_path(path, fields)])
            expected.append(f"`{where}`: {item['msg'].removeprefix('Value error, ')}")
            got.append(f"{item['input']!r}" if not isinstance(item["input"], dict) else "the block as written")
            allowed = re.findall(r"'(\w+)'", str(item.get("ctx", {}).get("expected", "")))
            close = difflib.get_close_matches(str(item["input"]), allowed, n=1)
            remedy += [f"Did you mean `{close[0]}`?"] if close else []
    return PactError(
        expected="; ".join(dict.fromkeys(expected)),
        got="; ".join(dict.fromkeys(got)),
        consequence="The run would train with other safety settings than the ones you meant.",
        remedy=" ".join(remedy),
    )


def _is_of_the_other_kind(path: list[str], blocks: Blocks, value: Any) -> bool:
    """Whether an error is that a block is no boolean, or a boolean no block: the error of its own kind says more."""
    block = blocks.get(path[0]) if path else None
    return block is not None and path[1:] == [block.__name__ if not isinstance(value, dict) else "bool"]


def _user_path(path: list[str], fields: set[str]) -> list[str]:
    """The keys that the user wrote: members of unions and places in lists stand between them and after."""
    return [part for part in path if part in fields]
