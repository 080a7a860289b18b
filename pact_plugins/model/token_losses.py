"""Cross-entropy token by token, out of the loss that a transformers model computes anyway.

A model that is given labels reduces its cross-entropy to one number. Here the same call gives the values before the
sum, so that -log p of every label costs nothing: no second pass over the vocabulary, no tensor of its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_cross_entropy = F.cross_entropy  # the function itself: hosts exchange the module's attribute for kernels of their own


class TokenLosses:
    """Stands in for the loss function of `model` and keeps what it computed for each token.

    Args:
        model: a transformers model; one that computes its loss in another way is left as it is.
        wanted: says at each call whether the values are of use.

    Attributes:
        values: one [B * L] tensor, float32, with gradient, for each cross-entropy over [B * L, V] logits of the calls
            since the last `clear`; entry row * L + column belongs to the label of the next column. 0 where ignored.
    """

    def __init__(self, model: Any, wanted: Callable[[], bool]) -> None:
        self.values: list[Tensor] = []
        self._model, self._wanted = model, wanted
        self._own, self._hidden = getattr(model, "loss_function", None), vars(model).get("_loss_function")
        if self._own is not None:
            model.loss_function = self._loss

    def remove(self) -> None:
        """Gives the model its own loss function back."""
        if self._own is None:
            return
        if self._hidden is None:
            # The property of transformers' models shows again once nothing on the instance hides it.
            del self._model._loss_function
        else:
            self._model.loss_function = self._hidden

    def clear(self) -> None:
        """Forgets the values."""
        self.values = []

    def _loss(self, *args: Any, **kw: Any) -> Any:
        assert self._own is not None
        if not self._wanted():
            return self._own(*args, **kw)
        with _BeforeReduction(self.values):
            return self._own(*args, **kw)


class _BeforeReduction(TorchFunctionMode):
    """Appends to `values` what each plain cross-entropy within the block reduces; the reduction is done as asked."""

    def __init__(self, values: list[Tensor]) -> None:
        super().__init__()
        self.values = values

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not _cross_entropy or not _is_plain(*args, **kwargs):
            return func(*args, **kwargs)
        each = func(*args, **{**kwargs, "reduction": "none"})
        self.values.append(each.float())
        if kwargs.get("reduction") == "sum":
            return each.sum()
        return each.sum() / (args[1] != kwargs.get("ignore_index", -100)).sum()


def _is_plain(
    source: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> bool:
    """Whether a reduced cross-entropy is made of -log p of one label a row."""
    plain = weight is None and size_average is None and reduce is None and label_smoothing == 0
    return plain and reduction in ("mean", "sum") and source.ndim == 2 and target.ndim == 1
