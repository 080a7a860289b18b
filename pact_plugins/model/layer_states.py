"""Hidden states of a model's later layers, taken inside its own forward passes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pact_plugins.errors import PactError
from pact_plugins.model.support import decoder_of, underlying

LAYERS = 8
"""Layers that are read at most: evenly spaced, from the middle one to the last."""


class LayerStates:
    """Reads the states that `LAYERS` layers of a model put out.

    Args:
        model: a causal language model, unwrapped of any engine.

    Raises:
        PactError: its layers cannot be found.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = _layers_of(underlying(model))
        middle, last = len(layers) / 2, len(layers)
        chosen = sorted({round(middle + (last - middle) * i / (LAYERS - 1)) for i in range(LAYERS)} - {0})
        self._layers = [layers[i - 1] for i in chosen]

    @contextmanager
    def watch(self, flat: Tensor, shape: Sequence[int]) -> Generator[list[Tensor]]:
        """Reads the states at the places `flat` [n] (row * L + column) of one forward pass over `shape` B, L.

        Yields:
            A list that the forward pass fills, layer by layer; `joined` takes it. Layers that do not run, such as those
            that look at an image, are left out.

        Raises:
            PactError: what a layer puts out does not tell the tokens apart.
        """
        found: list[Tensor] = []

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            hidden = output if isinstance(output, Tensor) else output[0]
            places = flat.to(hidden.device)
            found.append(_by_token(hidden, torch.Size(shape)).index_select(0, places).float().to(flat.device))

        with ExitStack() as hooks:
            for layer in self._layers:
                hooks.enter_context(layer.register_forward_hook(after))
            yield found

    @staticmethod
    def joined(found: list[Tensor]) -> Tensor:
        """[n, F] float32: the states of the layers side by side.

        Raises:
            PactError: no layer has run.
        """
        if not found:
            raise _unreadable("a forward pass in which none of them ran")
        return torch.cat(found, -1)


def _by_token(hidden: Tensor, shape: torch.Size) -> Tensor:
    """[B * L, H] of a layer's output: [B, L, H], or several streams of it, [B, L, streams, H] or [streams, B, L, H]."""
    if hidden.shape[1:3] == shape and hidden.dim() == 4:
        hidden = hidden.movedim(0, 2)
    if hidden.shape[:2] != shape:
        raise _unreadable(f"states of the shape {tuple(hidden.shape)} of {tuple(shape)} tokens")
    return hidden.flatten(2).flatten(0, 1)


def _layers_of(base: Any) -> nn.ModuleList:
    """The layers of a transformers model's decoder, in their order: its longest list, if none is as long as it says."""
    number = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    lists = [m for m in decoder_of(base).modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise _unreadable(f"no list of layers in {type(base).__name__}")
    return max(lists, key=lambda layers: (len(layers) == number, len(layers)))


def _unreadable(got: str) -> PactError:
    return PactError(
        expected="a decoder whose layers run one after the other, each over [rows, tokens, width]",
        got=got,
        consequence="It could not be told which rows of the data ask for something harmful.",
        remedy="Set `pact.conflict: keep`, and look for such rows yourself.",
    )
