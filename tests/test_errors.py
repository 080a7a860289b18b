"""The exception type of the package."""

from __future__ import annotations

import pickle

import pytest

from pact_plugins.errors import MissingReferenceError, PactError
from pact_plugins.model.ranks import RankError


@pytest.mark.parametrize("kind", [PactError, MissingReferenceError, RankError])
def test_an_error_passes_between_processes(kind: type[PactError]) -> None:
    """Prevents: a process pool that waits for ever, because it cannot make the error of its worker again."""
    error = kind(expected="a", got="b", consequence="C.", remedy="D.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.words == error.words
    assert str(again) == str(error) == "Expected a; got b. C. D."
