"""The oracle: inputs and results of the paper's authors' code, run through this package.

Each case is a safetensors file listed in `index.json`: `loss_*` (the `paper` objective and its gradient) and
`direction_*` (the safety direction).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pact_plugins.chat.answers import AnswerTokens, split_documents
from pact_plugins.chat.format import ChatFormat
from pact_plugins.method import loss
from pact_plugins.method.contrast import Contrast

SCORES = {"p_diff": "difference", "pref_logratio": "base_preference"}


def main(folder: Path) -> int:
    """Prints one JSON line per case and quantity; the exit status is 1 if any fails or there is none."""
    results = list(check(folder))
    for result in results:
        print(json.dumps(result))
    return 0 if results and all(r["ok"] for r in results) else 1


def check(folder: Path) -> Iterator[dict[str, Any]]:
    """Errors and tolerances of every case in the folder."""
    for case in json.loads((folder / "index.json").read_text()):
        data = load_file(folder / case["file"])
        quantities = _loss(data) if "student_logits" in data else _direction(case, data)
        for quantity, error, tolerance in quantities:
            ok = error <= tolerance  # False for NaN
            yield {"case": case["file"], "quantity": quantity, "error": error, "tolerance": tolerance, "ok": ok}


def _loss(data: dict[str, Tensor]) -> Iterator[tuple[str, float, float]]:
    student_logits = data["student_logits"].clone().requires_grad_()
    ids = data["v_dir"].nonzero().flatten()
    chat = ChatFormat(tuple(data["header_ids"].tolist()))
    tokens = AnswerTokens.of(split_documents({"input_ids": data["input_ids"], "labels": data["labels"]}), chat)
    row, column = torch.from_numpy(tokens.row), torch.from_numpy(tokens.column)
    position = torch.from_numpy(tokens.position)
    student = student_logits[row, column][:, ids]
    full = data["reference_full_logits"][row, column][:, ids]
    # Without its prompt, an answer's first token follows the header's last; every row of a case has one answer.
    answer_only = data["reference_answer_only_logits"][row, len(chat.header) - 1 + position][:, ids]
    gate = loss.gate(student, answer_only, position)
    kl = loss.paper(student, full, answer_only, gate, data["v_dir"][ids].clamp(min=0)).mean()
    (gradient,) = torch.autograd.grad(kl, student_logits)
    ce = torch.nn.functional.cross_entropy(student_logits[row, column], torch.from_numpy(tokens.label))
    yield "kl", abs(kl.item() / data["kl"].item() - 1), 1e-5
    yield "grad_kl", (gradient - data["grad_kl"]).abs().max().item(), 1e-6
    yield "ce", abs(ce.item() / data["ce"].item() - 1), 1e-5


def _direction(case: dict[str, Any], data: dict[str, Tensor]) -> Iterator[tuple[str, float, float]]:
    contrast = Contrast.of(
        ((data[f"aligned_logits.{i}"], data[f"base_logits.{i}"]) for i in range(case["n"])),
        temperature=case["T"],
        max_length=case["maxlen"],
        score=SCORES[case["mode"]],  # type: ignore[arg-type]
    )
    v = contrast.direction(top_k=case["topk"])
    yield "v_dir", (v - data["v_dir"]).abs().max().item(), 1e-6
