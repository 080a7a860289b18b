"""Identities of tokenizers, data and whatever else JSON can express."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary


def digest(content: Any) -> str:
    """32 hexadecimal digits for anything that JSON can express."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


_TOKENIZERS: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()
"""Fingerprints by tokenizer, with its size at the time: a large vocabulary takes half a second."""


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Identity of a tokenizer's vocabulary: the same ids mean the same tokens."""
    size, known = _TOKENIZERS.get(tokenizer, (-1, ""))
    if size != len(tokenizer):  # tokens were added
        known = digest(sorted(tokenizer.get_vocab().items()))
        _TOKENIZERS[tokenizer] = len(tokenizer), known
    return known


def keys_fingerprint(keys: Iterable[bytes]) -> str:
    """Identity of a set of documents, given their content keys in any order."""
    return hashlib.blake2b(b"".join(sorted(set(keys))), digest_size=16).hexdigest()
