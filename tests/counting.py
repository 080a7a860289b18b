"""Counts what a block computes, instead of timing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SYNCHRONISING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"}


class Counting(TorchDispatchMode):
    """Operators within the block, forward and backward.

    Args:
        vocabulary: the size by which tensors over the vocabulary are known.

    Attributes:
        wide: number of new dense tensors whose last dimension is the vocabulary.
        waits: number of operators for which the host waits for the device.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.wide, self.waits = vocabulary, 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.waits += func._schema.name in SYNCHRONISING
        views = any(a.alias_info is not None for a in func._schema.arguments)
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.layout == torch.strided and made.ndim and not views:
                self.wide += made.shape[-1] == self.vocabulary
        return result
