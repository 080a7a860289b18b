"""Which types of model PACT serves: `python -m benchmarks.compatibility [TYPE ...]`.

Every type of causal language model that the installed transformers knows, and every type that answers to images and
text, is made tiny and random. One is *served* if PACT accepts it and what it reads is what the model says: see
`differences`. Without arguments the result is written to docs/compatibility.md; of the types that are named, it is
printed.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto import modeling_auto

from benchmarks.tiny_models import VOCABULARY, NotBuiltError, tiny_model
from pact_plugins.errors import PactError
from pact_plugins.method import loss
from pact_plugins.model.forward import evaluating
from pact_plugins.model.parity import check_parity
from pact_plugins.model.subset_head import Capture, Request, SubsetHead
from pact_plugins.model.support import wakes_at

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
TEXT: list[str] = sorted(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
IMAGES: list[str] = sorted({*modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} - {*TEXT})
"""Types that are not among the causal language models."""

IDS = [3, 5, 100, 7]
TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest element of what is compared."""


@dataclass(frozen=True)
class Row:
    """One line of the page.

    Attributes:
        type: `model_type` of the configuration.
        kind: the model's class; empty if there is no model.
        result: `served`, `refused` (with an error, before the first step), `not built`, or `wrong`.
        reason: why it is not served; for `wrong`, the quantities that differ.
    """

    type: str
    kind: str
    result: str
    reason: str = ""


def assess(model_type: str) -> Row:
    """Makes a tiny model of this type and says what becomes of it under PACT."""
    mapping = AutoModelForCausalLM if model_type in TEXT else AutoModelForImageTextToText
    try:
        model = tiny_model(model_type, mapping)
    except NotBuiltError as error:
        return Row(model_type, "", "not built", _shortened(str(error)))
    kind = type(model).__name__
    try:
        apart = differences(model)
    except PactError as error:
        return Row(model_type, kind, "refused", _without_figures(f"expected {error.expected}; got {error.got}"))
    wrong = ", ".join(name for name, error in apart.items() if not error <= TOLERANCE)
    return Row(model_type, kind, "wrong" if wrong else "served", wrong)


def _shortened(reason: str, length: int = 160) -> str:
    return reason if len(reason) <= length else f"{reason[:length].rsplit(' ', 1)[0]} ..."


def _without_figures(reason: str) -> str:
    """Rounding makes them differ from machine to machine."""
    return re.sub(r",? (of|by) \d[\d.e+-]*( beside logits of up to \d[\d.e+-]*|,)", "", reason)


def differences(model: nn.Module) -> dict[str, float]:
    """How far PACT is from the model itself, relative to the largest element of each of these quantities.

    In train mode, from one forward pass, without labels and with them: logits of the safety tokens, log-normaliser,
    PACT's loss and its gradient, beside the same made of the model's full logits. In eval mode: the reference pass
    (decoder alone, rows of different length padded to one batch), beside the model's logits of each row alone.

    Raises:
        PactError: PACT refuses the model.
    """
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(8, VOCABULARY - 8, (2, 8), generator=generator)
    awaited = wakes_at(model)
    ids[:, 1 : 1 + len(awaited)] = torch.tensor(awaited, dtype=torch.long)
    reference = torch.log_softmax(torch.randn(14, VOCABULARY, generator=generator), -1)[:, IDS]
    head = SubsetHead(model, IDS)
    try:
        check_parity(head)
        found: dict[str, float] = {}
        for labels in ({}, {"labels": ids}):
            how = "with labels" if labels else "without labels"
            for name, error in _training(model.train(), head, ids, reference, labels).items():
                found[f"{name} {how}"] = error
        return {**found, "reference pass": _reference_pass(model, head, ids)}
    finally:
        head.remove()


def _training(
    model: nn.Module, head: SubsetHead, ids: Tensor, reference: Tensor, labels: dict[str, Tensor]
) -> dict[str, float]:
    rows, length = ids.shape
    flat = (torch.arange(rows).unsqueeze(1) * length + torch.arange(length - 1)).flatten()
    label = ids[:, 1:].flatten()
    with head.watch(Request(flat, label, normalise=True)) as captures:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **labels).logits
    own = logits.float()[:, :-1].flatten(0, 1)
    captured = head.one(captures)
    expected = Capture(own[:, IDS], own.logsumexp(-1))
    values = {"logits": (captured.logits, expected.logits), "normaliser": _normalisers(captured, expected)}
    losses = [_loss(capture, reference) for capture in (captured, expected)]
    values["loss"] = losses[0], losses[1]
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(x, trained, retain_graph=True, allow_unused=True) for x in losses]
    flattened = [torch.cat([_dense(g, p).flatten() for g, p in zip(each, trained, strict=True)]) for each in gradients]
    values["gradient"] = flattened[0], flattened[1]
    return {name: _apart(a, b) for name, (a, b) in values.items()}


def _normalisers(*captures: Capture) -> tuple[Tensor, Tensor]:
    found = [c.log_normaliser for c in captures]
    assert found[0] is not None
    assert found[1] is not None
    return found[0], found[1]


def _loss(capture: Capture, reference: Tensor) -> Tensor:
    assert capture.log_normaliser is not None
    student = capture.logits - capture.log_normaliser.unsqueeze(-1)
    return loss.confidence(student, reference, None, None, torch.arange(len(IDS))).sum()


def _dense(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient.to_dense()


def _reference_pass(model: nn.Module, head: SubsetHead, ids: Tensor) -> float:
    length = ids.shape[1]
    lengths = [length, length // 2]
    mask = torch.tensor([[column < n for column in range(length)] for n in lengths]).long()
    flat = torch.cat([row * length + torch.arange(n) for row, n in enumerate(lengths)])
    with evaluating(model):
        with head.watch(Request(flat, ids.flatten()[flat], normalise=True)) as captures:
            head.decode(ids * mask, mask)
        captured = head.one(captures)
        own = [model(input_ids=ids[row : row + 1], use_cache=False).logits[0, :n] for row, n in enumerate(lengths)]
    assert captured.log_normaliser is not None
    expected = torch.log_softmax(torch.cat(own).float(), -1)[:, IDS]
    return _apart(captured.logits - captured.log_normaliser.unsqueeze(-1), expected)


@torch.no_grad()
def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def markdown(rows: Iterable[Row]) -> str:
    """The page."""
    found = {row.type: row for row in rows}
    parts = [_HEAD.format(version=transformers.__version__, tolerance=TOLERANCE)]
    for title, about, types in (
        ("Causal language models", "", TEXT),
        ("Models for images and text", _IMAGES, IMAGES),
    ):
        counts = {result: sum(found[t].result == result for t in types) for result in RESULTS}
        summary = ", ".join(f"{count} {result}" for result, count in counts.items() if count)
        lines = [line(found[t]) for t in types]
        parts.append(f"## {title}\n\n{about}{len(types)} types: {summary}.\n\n{_COLUMNS}" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def line(row: Row) -> str:
    """The row's line in its table."""
    reason = row.reason.replace("|", "\\|")
    return f"| {row.type} | {row.kind} | {row.result} | {reason} |"


RESULTS = ("served", "refused", "not built", "wrong")

_COLUMNS = "| type | class | result | reason |\n|---|---|---|---|\n"

_HEAD = """# Which models PACT serves

`python -m benchmarks.compatibility` makes this page: transformers {version}, CPU, float32. Each type that transformers
knows becomes a tiny random model.
Ways to train, such as packing, checkpointing or other losses: [what works with what](works-with.md).

- **served**: PACT accepts it, and in that model, without labels and with them, the logits of the safety tokens, the
  log-normaliser, PACT's loss (`confidence`) *and its gradient* for every parameter equal those of the model's own full
  logits, within {tolerance:g} of the largest element; and the reference pass (the decoder alone, on a padded batch)
  gives the log-probabilities that the model gives for each row alone. It does not mean that such a model was trained.
- **refused**: a run stops with this error before its first step.
- **not built**: no tiny model of this type could be made and run on plain text, so nothing is known.

Whatever the type, every run compares logits, log-normalisers and the reference pass with the model's own before its
first step, and stops if they differ; with an adapter once more as if it had been trained.

## Adapters and quantised weights

Each was trained through TRL on a tiny model: PACT's loss and gradient are those of the full logits, and the reference
is what the model says before its first step, adapter on.

- all weights: full; full, tied; full, mixture of experts
- LoRA: LoRA on a tied model; LoRA on the embedding; LoRA with a bias; LoRA of experts (`target_parameters`); LoRA on a
  vision-language model; DoRA; rsLoRA; PiSSA; OLoRA; aLoRA; a trained adapter; the first of two adapters; the second of
  two adapters
- `modules_to_save`: a whole head; a whole head and embedding; a whole embedding of a tied model; a whole embedding and
  head, tied
- `trainable_token_indices`: some tokens of an untied model; some tokens of a tied model (under transformers' own
  trainer: refused under TRL's own loss, which stops at PEFT's wrapper of the head, with PACT or without)
- other adapters: IA3; AdaLoRA; LoHa; LoKr; OFT; VeRA; layer norms
- quantised weights: QLoRA, 4 bit; QLoRA, 4 bit, double; QLoRA, NF4; QLoRA, 8 bit; QLoRA, torchao

Refused before the first step: aLoRA under gradient checkpointing; X-LoRA; LoRA on the head; DoRA on the head; IA3 on
the head; LoHa on the head; a head in 4 bit; a head in 8 bit; prompt tuning; p-tuning; prefix tuning.

8-bit layers of bitsandbytes round a row in another way if another row of its batch holds large numbers: there the
reference is the model's within that rounding.
"""

_IMAGES = """Trained on text alone: a batch with images is refused, since the reference is found again by token ids, and
they say nothing about an image. Where a host loads a processor, its tokenizer and its chat template are PACT's, too,
and a template that renders lists of parts alone is given texts as such. `pact tokens`, `pact eval` and `pact verify`
load such a checkpoint whole, as the hosts do. Types of the first table are left out.

"""


def main(types: list[str]) -> int:
    """Writes the page, or prints the rows of the types; 1 if anything is wrong."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rows = []
    for model_type in types or [*TEXT, *IMAGES]:
        rows.append(assess(model_type))
        print(line(rows[-1]), file=sys.stdout if types else sys.stderr)
    if not types:
        PAGE.write_text(markdown(rows), encoding="utf-8")
    return int(any(row.result == "wrong" for row in rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="types of model to print in place of writing the page")
    sys.exit(main(parser.parse_args().types))
