"""Logits of the safety tokens, taken inside the model's own forward pass.

A forward hook on the decoder sees the last hidden state h; `h[answer tokens] @ head.weight[ids].T` is all that PACT
needs of the language-model head. Where the log-normaliser is wanted too, it is read off the log-probabilities of the
labels, lse = z_label - log p_label, which nearly every host computes for its own loss; otherwise it is computed chunk
by chunk. PACT itself never holds full-vocabulary logits. The work is done before the model's forward pass ends, because
that is where FSDP2 has the head's weight at hand. In the backward pass nobody has: what it needs of a sharded weight is
a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pact_plugins.errors import PactError
from pact_plugins.model.sharding import full_shape, is_sharded, keep_whole, last_logits, whole
from pact_plugins.model.support import (
    check_supported,
    decoder_of,
    last_hidden,
    trained_module,
    underlying,
    wakes_at,
    with_trained_tokens,
)
from pact_plugins.model.token_losses import TokenLosses

Function = TypeVar("Function", bound=Callable[..., Any])

CHUNK_ELEMENTS = 1 << 24
"""Largest number of logits alive at once while log-normalisers are computed (64 MiB in float32)."""


def _uncompiled(function: Function) -> Function:
    return cast(Function, torch.compiler.disable(function))  # its own type forgets that methods are bound


@dataclass(frozen=True)
class Request:
    """What to compute at the next forward pass, for N answer tokens of a [B, L] batch.

    Attributes:
        flat: [N] positions row * L + column of the hidden states.
        label: [N] ids of the tokens that they predict.
        normalise: whether the log-normaliser is wanted.
        unlabelled: [M] indices into the N tokens whose labels the host's own loss is not given.
        candidates: [N, K] ids, of each token's own, whose log-probabilities are wanted.
    """

    flat: Tensor
    label: Tensor
    normalise: bool = False
    unlabelled: Tensor | None = None
    candidates: Tensor | None = None


@dataclass
class Capture:
    """What the hook computed, in float32.

    Attributes:
        logits: [N, S] logits of the safety tokens.
        log_normaliser: [N] logsumexp of the full-vocabulary logits, or None if it was not asked for.
        candidates: [N, K] log-probabilities of the candidates, or None if none was asked for.
        from_host: whether the host's own loss gave the log-probabilities of the labels.
    """

    logits: Tensor
    log_normaliser: Tensor | None = None
    candidates: Tensor | None = None
    from_host: bool = False


Tensors = TypeVar("Tensors", Request, Capture)


def _on(device: torch.device, values: Tensors) -> Tensors:
    """The same on `device`: the layers of one model may lie on several (`device_map`)."""
    tensors = {name: value.to(device) for name, value in vars(values).items() if isinstance(value, Tensor)}
    return replace(values, **tensors)


def hold_head(model: nn.Module) -> None:
    """Has ZeRO-3 keep the head whole during a forward pass; to be called before the first one (see `keep_whole`)."""
    keep_whole(model, _head_parameters(underlying(model)))


def _head_parameters(base: Any) -> list[Tensor]:
    """Weight of the head, and bias if it has one."""
    # Looked up at each call: PEFT and sharding engines exchange the module or its weight.
    head = trained_module(base.get_output_embeddings())
    # Not as attributes: within a forward pass that changes what ZeRO-3 gathers.
    named = dict(head.named_parameters(recurse=False))
    return [named[name] for name in ("weight", "bias") if name in named]


class SubsetHead:
    """Computes subset logits during a forward pass of `model`.

    Args:
        model: the model being trained, unwrapped of any engine; PEFT models are looked through.
        ids: vocabulary ids of the safety tokens.

    Attributes:
        runs_whole: whether the outermost module has to run wherever the decoder does: an engine gathers weights there,
            or an adapter looks up where in a row it acts.

    Raises:
        PactError: the model has no decoder and linear head that this can read (see `check_supported`).
    """

    def __init__(self, model: nn.Module, ids: list[int]) -> None:
        self.model = model
        check_supported(model)
        self.base = underlying(model)
        self.ids = torch.tensor(ids, dtype=torch.long)
        self._request: Request | None = None
        self._grad = False
        self._captures: list[Capture] = []
        self._hidden: list[Tensor] | None = None
        self._token_losses = TokenLosses(self.base, self._reads_the_loss)
        self._sharded = is_sharded(model)
        # Decoders alone will do for everything else, at a lower cost.
        self.runs_whole = self._sharded or bool(wakes_at(model))
        hold_head(model)
        # Registered once and for good: torch.compile does not guard on hooks that come and go. On the outermost module:
        # adapters may call the `forward` of the one inside, which runs no hooks.
        self._hooks = [
            model.register_forward_pre_hook(self._before_model),
            decoder_of(self.base).register_forward_hook(self._after_decoder),
            # Before the hooks of engines that take the weights apart again.
            model.register_forward_hook(self._after_model, prepend=True),
        ]

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
        self._token_losses.remove()

    @contextmanager
    def watch(self, request: Request) -> Generator[list[Capture]]:
        """Answers `request` at every forward pass within the block that has the caller's gradient mode.

        Yields:
            A list that the forward pass fills; `one` takes its single element.
        """
        grad = torch.is_grad_enabled()
        self._request, self._captures, self._grad, self._hidden = request, [], grad, None
        try:
            yield self._captures
        finally:
            self._request = None

    @staticmethod
    def one(captures: list[Capture]) -> Capture:
        """The single capture of a forward pass; none or several would mean a loss on the wrong logits."""
        if len(captures) != 1:
            raise PactError(
                expected="exactly one forward pass of the model's decoder with gradients in a training step",
                got=f"{len(captures)}",
                consequence="PACT's loss would be missing or be computed on the wrong logits.",
                remedy="Switch off the option that replaces or repeats the forward pass.",
            )
        return captures[0]

    def _watching(self) -> Request | None:
        return self._request if torch.is_grad_enabled() == self._grad else None

    def _reads_the_loss(self) -> bool:
        request = self._watching()
        return request is not None and request.normalise

    def _before_model(self, _module: nn.Module, _args: Any) -> None:
        self._hidden = []
        self._token_losses.clear()

    def _after_decoder(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if (request := self._watching()) is None:
            return
        hidden = last_hidden(output)
        if self._hidden is None:  # the decoder was called alone: no loss will tell anything
            self._captures.append(self._capture(hidden, request, None))
        else:
            self._hidden.append(hidden)

    def _after_model(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if (request := self._watching()) is not None:
            for hidden in self._hidden or ():
                self._captures.append(self._capture(hidden, request, self._host_log_probs(hidden, output, request)))
        self._hidden = None
        self._token_losses.clear()

    def _host_log_probs(self, hidden: Tensor, output: Any, request: Request) -> Tensor | None:
        """[N] log-probabilities of the labels from the host's own loss over `hidden` [B, L, H], if any are of use."""
        if not request.normalise:
            return None
        rows, width = hidden.shape[:2]
        log_probs = getattr(output, "log_probs", None)  # TRL's fused head: [B, L - 1]
        if log_probs is not None and log_probs.shape == (rows, width - 1):
            places = (request.flat - request.flat // width).to(log_probs.device)
            return log_probs.reshape(-1).index_select(0, places).float()
        values = self._token_losses.values
        if len(values) == 1 and len(values[0]) == rows * width:
            return -values[0].index_select(0, request.flat.to(values[0].device))
        return None

    @_uncompiled  # sparse gradients, and shapes that change with every batch: compiling would not help
    def _capture(self, hidden: Tensor, request: Request, log_probs: Tensor | None) -> Capture:
        """What `request` asks for at its positions of `hidden` [B, L, H].

        `log_probs` [N] are log-probabilities of `request.label`, where the host has computed them.
        """
        rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, request.flat.to(hidden.device))
        with self._head() as (weight, bias):
            if rows.shape[1] != weight.shape[-1]:
                raise PactError(
                    expected=f"a head over the {rows.shape[1]} numbers of the decoder's last hidden state",
                    got=f"one over {weight.shape[-1]} in {type(self.base).__name__}",
                    consequence="Something transforms the hidden state before the head, and PACT would leave it out.",
                    remedy="Use a model whose head is a linear layer over the decoder's output.",
                )
            device = weight.device
            log_probs = None if log_probs is None else log_probs.to(device)
            capture = self._capture_rows(rows.to(device), _on(device, request), log_probs, weight, bias)
        return _on(request.flat.device, capture)

    def _capture_rows(
        self, rows: Tensor, request: Request, log_probs: Tensor | None, weight: Tensor, bias: Tensor | None
    ) -> Capture:
        """The same from the hidden states [N, H] of the tokens alone, and the whole head."""
        if self.ids.device != weight.device:
            self.ids = self.ids.to(weight.device)
        subset_bias = None if bias is None else bias[self.ids]
        capture = Capture(self._logits(rows, _rows_of(weight, self.ids), subset_bias), from_host=log_probs is not None)
        if request.normalise:
            if log_probs is None:
                capture.log_normaliser = self._over_vocabulary(rows, weight, bias)
            else:
                normaliser = self._label_logits(rows, request.label, weight, bias) - log_probs
                if (unlabelled := request.unlabelled) is not None:
                    own = self._over_vocabulary(rows.index_select(0, unlabelled), weight, bias)
                    normaliser = normaliser.index_copy(0, unlabelled, own)
                capture.log_normaliser = normaliser
        if request.candidates is not None:
            capture.candidates = self._over_vocabulary(rows, weight, bias, request.candidates)
        return capture

    @contextmanager
    def _head(self) -> Generator[tuple[Tensor, Tensor | None]]:
        """Weight and bias of the head, whole."""
        parameters = _head_parameters(self.base)
        if any(isinstance(p, DTensor) and p.requires_grad for p in parameters):
            raise PactError(
                expected="a trained head that FSDP2 keeps whole until the model's forward pass ends",
                got=f"one that it has taken apart by then in {type(self.base).__name__}",
                consequence="Gradients of the safety term would not reach it in full.",
                remedy="Leave the head in the group of the outermost module, or in one with the last norm that has "
                "`reshard_after_forward=False`: `fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP` does either.",
            )
        with whole(parameters) as (weight, *bias):
            trained = with_trained_tokens(self.base.get_output_embeddings())
            # PEFT leaves out the bias of a head that it computes so.
            yield (weight, bias[0] if bias else None) if trained is None else (trained, None)

    @property
    def vocabulary(self) -> int:
        """Number of logits that the model gives: some cut off those of rows that only pad the head to a round size."""
        rows = full_shape(_head_parameters(self.base)[0])[0]
        unpadded = getattr(self.base.config.get_text_config(), "unpadded_vocab_size", None)
        return min(rows, unpadded) if isinstance(unpadded, int) else rows

    def _label_logits(self, rows: Tensor, label: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[N] logits, float32, of one label for each of [N, H] hidden states."""
        # Rounded as the model's own head rounds them, so that the errors cancel beside its log-probabilities.
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        products = rows.to(dtype).float() * _rows_of(weight, label).to(dtype).float()
        own = products.sum(-1).to(dtype).float()
        return self._shape_logits(own if bias is None else own + bias[label].float())

    def _logits(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[N, H] hidden states and [K, H] head rows -> [N, K] logits, float32, as the model itself would give them."""
        return self._shape_logits(F.linear(rows.to(weight.dtype), weight, bias).float())

    def _shape_logits(self, logits: Tensor) -> Tensor:
        """Scale and soft cap, from the model's config."""
        config = self.base.config.get_text_config()
        for field in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            if isinstance(factor := getattr(config, field, None), int | float):
                logits = logits * factor
        for field in ("logits_scaling", "logits_mup_width_multiplier"):
            if isinstance(factor := getattr(config, field, None), int | float):
                logits = logits * factor if config.model_type.startswith("hyperclovax") else logits / factor
        for field in ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap"):
            if cap := getattr(config, field, None):
                logits = torch.tanh(logits / cap) * cap
        return logits

    def _over_vocabulary(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor | None = None
    ) -> Tensor:
        """[N] logsumexp over the vocabulary, or [N, K] log-probabilities of the candidates.

        Chunk by chunk; the backward pass computes each chunk again.
        """
        used = self.vocabulary
        weight, bias = weight[:used], None if bias is None else bias[:used]

        def of_chunk(chunk: Tensor, ids: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
            logits = self._logits(chunk, weight, bias)
            normaliser = torch.logsumexp(logits, dim=-1)
            return normaliser if ids is None else logits.gather(-1, ids) - normaliser.unsqueeze(-1)

        size = max(1, CHUNK_ELEMENTS // weight.shape[0])
        ids = [None] * -(-len(rows) // size) if candidates is None else candidates.split(size)
        if torch.is_grad_enabled() and self._sharded:
            weight, bias = weight.clone(), None if bias is None else bias.clone()
        chunks = zip(rows.split(size), ids, strict=False) if len(rows) else ()
        if not torch.is_grad_enabled():
            parts = [of_chunk(chunk, own, weight, bias) for chunk, own in chunks]
        else:
            parts = [
                checkpoint(of_chunk, chunk, own, weight, bias, use_reentrant=False, preserve_rng_state=False)
                for chunk, own in chunks
            ]
        return torch.cat(parts) if parts else rows.new_zeros(0, dtype=torch.float32)

    def decode(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """A forward pass over [B, L] of the decoder alone: the head's full-vocabulary logits would be thrown away.

        Of the whole model where it has to run (`runs_whole`), with logits of the last column.

        Args:
            position_ids: [B, L] where the positions of a row do not simply go on by one.

        Returns:
            A zero that belongs into every loss on what was captured: where weights are sharded, their engine gathers
            them again for a backward pass that goes through the model's own outputs.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        if self.runs_whole:
            return 0.0 * last_logits(self.model, **inputs).float().sum()
        decoder_of(self.base)(**inputs)
        return input_ids.new_zeros((), dtype=torch.float32)


class _RowsOf(torch.autograd.Function):
    """`weight[ids]` whose gradient is sparse: a dense one would be as large as the head, for a few of its rows."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        return weight.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(ids.unsqueeze(0), gradients[0], ctx.shape, check_invariants=False), None


def _rows_of(weight: Tensor, ids: Tensor) -> Tensor:
    if weight.grad_fn is not None:  # computed of others, whose gradients cannot be sparse
        return weight.index_select(0, ids)
    return cast(Tensor, _RowsOf.apply(weight, ids))
