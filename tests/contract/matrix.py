"""What works with what: ways to train, each compared with the loss and gradient worked out without PACT's own code.

`python -m tests.contract.matrix` measures the hosts of this environment, keeps the figures in docs/works-with.json, and
makes docs/works-with.md of all that is kept there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pact_plugins import PactCallback
from pact_plugins.chat.answers import AnswerTokens, split_documents
from pact_plugins.run.served import RULES
from pact_plugins.storage import files
from tests import vision
from tests.brief import few_prompts, without_page
from tests.contract.hosts import TOKENS, axolotl_trainer, config, dpo_trainer, model_of, streaming, trl_trainer
from tests.distributed.training import CHECKPOINTING, IN_ORDER, REENTRANT, axolotl_with

PAGE = Path(__file__).parents[2] / "docs" / "works-with.md"
FIGURES = PAGE.with_suffix(".json")

HOSTS = {"trl": "TRL", "axolotl": "Axolotl"}
HERE = [host for host in HOSTS if bool(find_spec("axolotl")) == (host == "axolotl")]
"""Hosts that this environment is for."""

WEIGHT, SOME, OF_ANCHORS = 2.0, 0.03, 2.0
PACT: dict[str, dict[str, Any]] = {
    "keep": {"weight": WEIGHT, "anchors": 2, "conflict": "keep"},
    "damp": {"weight": WEIGHT, "anchors": 2, "conflict_threshold": SOME},
}
"""Some rows are above this threshold, of what random weights make of them; anchors count twice, by the method card."""

TokenLoss = Callable[[Tensor, Tensor], Tensor]
"""[N, V] log-probabilities and [N] labels -> [N] losses."""


def plain(logs: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(logs, labels, reduction="none")


def smoothed(logs: Tensor, labels: Tensor) -> Tensor:
    return 0.9 * plain(logs, labels) - 0.1 * logs.mean(-1)


def dft(logs: Tensor, labels: Tensor) -> Tensor:
    each = plain(logs, labels)
    return each * (-each).exp().detach()


def focal(logs: Tensor, labels: Tensor) -> Tensor:
    each = plain(logs, labels)
    return each * (1 - (-each).exp()) ** 2


def _eaft(logs: Tensor, labels: Tensor) -> Tensor:
    likely = logs.detach().topk(20).values.log_softmax(-1)
    return plain(logs, labels) * -(likely.exp() * likely).sum(-1)


def over_labels(each: TokenLoss, logits: Tensor, labels: Tensor) -> Tensor:
    """[N] losses of the tokens that have a label."""
    seen = labels[:, 1:] != -100
    return each(logits[:, :-1][seen].log_softmax(-1), labels[:, 1:][seen])


def _per_item(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    summed = over_labels(focal, outputs.logits, labels).sum()
    return summed / ((labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def own_mean(trainer: Any) -> None:
    """What people write who override `compute_loss` with a mean of their own, and say that it is not scaled."""

    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        mean = over_labels(plain, outputs.logits, labels).mean()
        return (mean, outputs) if return_outputs else mean

    trainer.compute_loss, trainer.loss_is_scaled_for_ga = compute_loss, False


def unchanged(_trainer: Any) -> None: ...


def with_function(trainer: Any) -> None:
    trainer.compute_loss_func = _per_item


def _with_eaft(trainer: Any) -> None:
    """As Axolotl's builder does for `use_eaft`."""
    from axolotl.monkeypatch.loss.eaft import eaft_loss

    trainer.compute_loss_func = partial(eaft_loss, alpha=1.0, k=20)


@dataclass(frozen=True)
class Case:
    """Arguments of a trainer, what else is done to it, its loss of a token, and the largest errors accepted.

    `per_item` are the hosts that divide by the labels of the whole step; others do by those of the micro-batch. A
    trainer that `streams` is given no whole data set, and one of `pairs` trains by DPO.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Any], None] = unchanged
    each: TokenLoss = plain
    per_item: tuple[str, ...] = ("trl",)
    hosts: tuple[str, ...] = tuple(HOSTS)
    adapter: str = "full"
    streams: bool = False
    pairs: bool = False
    loss: float = 1e-5
    gradient: float = 1e-4

    @property
    def pact(self) -> list[str]:
        """Names of the settings of PACT that it is tried with: beside pairs nothing is damped."""
        return ["keep"] if self.pairs else [*PACT]


_TWO: dict[str, Any] = {"gradient_accumulation_steps": 2}

CASES = {
    "padded batches": Case(),
    "padded batches, LoRA": Case(adapter="lora"),
    "packing": Case({"packing": True, "max_length": 128}),
    "packing, LoRA": Case({"packing": True, "max_length": 128}, adapter="lora"),
    "`padding_free`": Case({"padding_free": True, "max_length": None}, hosts=("trl",)),
    "accumulation": Case(_TWO),
    "accumulation, LoRA": Case(_TWO, adapter="lora"),
    "checkpointing": Case(CHECKPOINTING),
    "checkpointing, LoRA": Case(CHECKPOINTING, adapter="lora"),
    "re-entrant checkpointing": Case(REENTRANT),
    "re-entrant checkpointing, LoRA": Case(REENTRANT, lambda t: t.model.enable_input_require_grads(), adapter="lora"),
    "`torch_compile`, backend eager": Case({"torch_compile": True, "torch_compile_backend": "eager"}),
    "bf16 autocast": Case({"bf16": True}, loss=1e-3, gradient=3e-2),
    "label smoothing": Case({"label_smoothing_factor": 0.1, **_TWO}, each=smoothed),
    "`loss_type: dft`": Case({"loss_type": "dft", **_TWO}, each=dft, hosts=("trl",), loss=2e-4, gradient=2e-3),
    "`use_eaft`": Case(_TWO, _with_eaft, _eaft, ("axolotl",), hosts=("axolotl",)),
    "a `compute_loss_func`": Case(_TWO, with_function, focal, tuple(HOSTS)),
    "an overridden `compute_loss`, a mean": Case(_TWO, own_mean, plain, ()),
    "a vision-language model, on text": Case(adapter="vision"),
    "streaming, LoRA": Case(adapter="lora", streams=True),
    "streaming, packing, LoRA": Case({"packing": True, "max_length": 128}, adapter="lora", streams=True),
    "streaming, accumulation, LoRA": Case(_TWO, adapter="lora", streams=True),
    "DPO": Case(pairs=True),
    "DPO, LoRA": Case(adapter="lora", pairs=True),
    "DPO, accumulation": Case(_TWO, pairs=True),
    "DPO, accumulation, LoRA": Case(_TWO, adapter="lora", pairs=True),
}


class Figures(NamedTuple):
    """What was found of one case.

    Attributes:
        loss: error of the total, relative to it.
        gradient: that of a parameter's gradient, relative to it, both as norms.
        host, rows, anchors, damped: what the error of the gradient would be without the host's loss, without the
            divergence of the rows or of the anchors, or if damped answers were learned.
    """

    loss: float
    gradient: float
    host: float
    rows: float
    anchors: float
    damped: float

    @property
    def least(self) -> float:
        """The smallest that there is of what PACT has a part in."""
        return min(part for part in self[3:] if part)


class _SeenError(Exception):
    """Ends a training that has been measured."""


def measured(host: str, name: str, settings: dict[str, Any], folder: Path) -> Figures:
    """The micro-batches of the first step of a real training, each worked out anew; the worst of them."""
    case, found = CASES[name], list[Figures]()
    with pytest.MonkeyPatch.context() as patch:
        without_page(patch)
        few_prompts(patch)
        options = {"gradient_checkpointing": False, **case.settings}  # TRL's own default is True
        if case.streams:
            trainer = streaming(host, case.adapter, folder, **options)
        elif case.pairs:
            trainer = dpo_trainer(host, case.adapter, folder, **IN_ORDER, **options)
        elif host == "axolotl" and "packing" in options:
            trainer = axolotl_with(case.adapter, folder, **options)
        else:
            make = trl_trainer if host == "trl" else axolotl_trainer
            if case.adapter == "vision" and host == "trl":  # Axolotl's trainers are given a tokenizer
                options["processor"] = vision.gemma3(vision.PARTS)[1]
            trainer = make(model_of(case.adapter), folder, **IN_ORDER, **options)
        case.change(trainer)
        callback = PactCallback(trainer, config(folder, **settings))
        trainer.add_callback(callback)

        def training_step(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            inputs = trainer._prepare_inputs(inputs)
            own = trainer.accelerator.unwrap_model(model, keep_torch_compile=False)
            torch.manual_seed(len(found))
            with torch.no_grad():
                for parameter in (p for p in own.parameters() if p.requires_grad):
                    parameter += 0.05 * torch.randn_like(parameter)
            own.zero_grad()
            model.train()
            batch = {key: value.clone() for key, value in inputs.items() if isinstance(value, Tensor)}
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            loss.backward()
            student = model_of(case.adapter)
            student.load_state_dict(own.state_dict())
            parts = _by_hand(host, case, callback, student, batch, num_items_in_batch)
            found.append(_compared(loss.detach(), own, student, parts))
            if len(found) == trainer.args.gradient_accumulation_steps:
                raise _SeenError
            return loss.detach()

        trainer.training_step = training_step
        with suppress(_SeenError):
            trainer.train()
    return Figures(*(max(values) for values in zip(*found, strict=True)))


def _compared(loss: Tensor, model: Any, student: Any, parts: dict[str, Tensor]) -> Figures:
    trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
    found = {n: p.grad.to_dense() for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == trained.keys()

    def of(part: Tensor) -> list[Tensor]:
        return [*torch.autograd.grad(part, [*trained.values()], retain_graph=True, materialize_grads=True)]

    def relative(gradients: list[Tensor]) -> float:
        return max(float(g.norm() / e.norm()) for g, e in zip(gradients, expected, strict=True))

    total = parts["host"] + parts["rows"] + parts["anchors"]
    expected = of(total)
    error = [found[n] - e for n, e in zip(trained, expected, strict=True)]
    missing = (relative(of(parts[part])) for part in Figures._fields[2:])
    return Figures(float((loss - total).abs() / total.abs()), relative(error), *missing)


def _by_hand(
    host: str, case: Case, callback: PactCallback, student: Any, batch: dict[str, Tensor], items: Any
) -> dict[str, Tensor]:
    """What the host's loss is of, what PACT adds, and the loss of damped answers, which is left out.

    Nothing of PACT has a part in it but which prompts are anchors, and how probable it is that a prompt asks for harm.
    """
    assert callback.binding is not None
    assert callback.binding.preparation is not None
    trainer, objective = callback.trainer, callback.binding.preparation.objective
    both = partial(_both, student, model_of(case.adapter).eval(), bf16=trainer.args.bf16)
    if case.pairs:
        batch = {**batch, "labels": batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)}
    documents, means = list(_documents(batch)), 1
    if case.pairs or host not in case.per_item:
        items = sum(int((labels[1:] != -100).sum()) for _, labels in documents)
        means = trainer.args.gradient_accumulation_steps
    harms: Any = None
    if objective.config.damps:
        harms = objective.reference.look_up(AnswerTokens.of(split_documents(batch), objective.chat)).harm
    nothing = torch.stack([p.sum() for p in student.parameters() if p.requires_grad]).sum() * 0.0
    parts, answers = dict.fromkeys(Figures._fields[2:], nothing), 0
    if case.pairs:
        parts["host"] = _dpo(documents, both, trainer.beta)
    for ids, labels in documents if not case.pairs else ():
        now, before = both(ids)
        for places in _runs(labels != -100):
            harm, label = 1.0 if harms is None else float(harms[answers]), labels[places]
            turns = any(token not in TOKENS for token in label[:8].tolist())
            of = "damped" if harms is not None and turns and harm > SOME else "host"
            parts[of] = parts[of] + case.each(now[places - 1], label).sum() / items
            kl = _divergence(before[places - 1], now[places - 1], torch.tensor(TOKENS).expand(len(places), -1))
            parts["rows"] = parts["rows"] + WEIGHT * harm * kl.sum() / items
            answers += 1
    assert harms is None or answers == len(harms)
    if trainer.accelerator.sync_gradients:
        assert objective.anchors is not None
        each = list[Tensor]()
        for anchor in objective.anchors.documents[:2]:
            places = torch.from_numpy(anchor.supervised).nonzero()[:, 0] - 1
            now, before = (logs[places] for logs in both(torch.from_numpy(anchor.input_ids)))
            each.append(_divergence(before, now, before.topk(32).indices))
        parts["anchors"] = WEIGHT * OF_ANCHORS * means * torch.cat(each).mean()
    return parts


def _dpo(
    documents: list[tuple[Tensor, Tensor]], both: Callable[[Tensor], tuple[Tensor, Tensor]], beta: float
) -> Tensor:
    """The mean over pairs of -log sigmoid(beta (chosen - rejected)), of log-probabilities less the reference's."""
    ratios = list[Tensor]()
    for ids, labels in documents:
        places = (labels != -100).nonzero()[:, 0]
        now, before = (logs[places - 1].gather(-1, ids[places, None]).sum() for logs in both(ids))
        ratios.append(now - before)
    chosen, rejected = torch.stack(ratios).chunk(2)
    return -F.logsigmoid(beta * (chosen - rejected)).mean()


def _both(student: Any, reference: Any, ids: Tensor, *, bf16: bool) -> tuple[Tensor, Tensor]:
    """[L, V] log-probabilities of what is trained, and of what it was before."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        now = student(input_ids=ids[None], use_cache=False).logits[0]
        with torch.no_grad():
            before = reference(input_ids=ids[None], use_cache=False).logits[0]
    return now.float().log_softmax(-1), before.float().log_softmax(-1)


def _documents(batch: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and labels of each: what a row's mask shows, or what stands from one position 0 to the next."""
    for row, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        if "position_ids" in batch:
            starts = (batch["position_ids"][row] == 0).nonzero()[:, 0].tolist()
            pieces = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
            yield from ((ids[piece], labels[piece]) for piece in pieces)
        else:
            seen = batch["attention_mask"][row] == 1
            yield ids[seen], labels[seen]


def _runs(of: Tensor) -> list[Tensor]:
    """Places of each unbroken run of True."""
    places = of.nonzero()[:, 0]
    cuts = (places.diff() != 1).nonzero()[:, 0] + 1
    return [run for run in places.tensor_split(cuts) if len(run)]


def _divergence(reference: Tensor, student: Tensor, of: Tensor) -> Tensor:
    """[N] divergences over {each of the tokens `of`, the rest}."""
    p, s = (logs.double().exp().gather(-1, of) for logs in (reference, student))
    p, s = (torch.cat([each, 1 - each.sum(-1, keepdim=True)], -1) for each in (p, s))
    return (p * (p / s).log()).sum(-1).float()


_IN_WORDS = {
    "other_trainer": "another trainer for rewards, preferences or reinforcement than `DPOTrainer` (Axolotl's `rl: dpo` "
    "and `rl: ipo`)",
    "preferences": "`DPOTrainer` (Axolotl's `rl: dpo` and `rl: ipo`)",
    "noised": "Axolotl's DiffusionPlugin",
    "elsewhere": "Axolotl's HatcheryPlugin",
    "taught": "Axolotl's KDPlugin",
    "gpus": "several",
    "sharding": "FSDP1, FSDP2 that offloads weights to the CPU, or FSDP through XLA",
    "parallelism": "context, sequence, tensor or expert",
    "engine": "FSDP2 or DeepSpeed",
    "lost": "weights that are trained whole or beside the adapter, or an adapter that adds something from the start "
    "(PiSSA, OLoRA, a trained one) or is merged on the way (ReLoRA)",
}
"""What a run fills in that is refused."""

_ABOUT_ROWS = "`objective: paper`, `conflict: damp`, `conflict_threshold`, `gate`, `min_coverage` or `eval.task: split`"


def page(text: str, kept: dict[str, Any]) -> str:
    """The page with its two tables made anew: of the figures of each host, and of the rules."""
    served = f"| case | host |{' | '.join(f' {p}: loss | gradient | without' for p in PACT)} |\n{8 * '|---'}|\n"
    served += "".join(line(n, h, kept[h]["cases"][n]) for n in CASES for h in CASES[n].hosts if h in kept)
    served += "".join(f"| *{kept[h]['versions']}* |{7 * ' |'}\n" for h in HOSTS if h in kept)
    refused = "| what | why | what to do |\n|---|---|---|\n"
    for part, got, consequence, remedy, _ in RULES:
        whole = {"sharding": "FSDP2 or DeepSpeed ZeRO-3"} if part in ("quantised", "streams") else {}
        words = {**_IN_WORDS, **whole}
        refused += f"| {got.format(SimpleNamespace(**words), _ABOUT_ROWS)} | {consequence} | {remedy} |\n"
    for title, table in (("Served", served), ("Refused", refused)):
        text = re.sub(rf"(?s)(\n## {title}\n.*?\n)(\|[^\n]*\n)+", lambda found, table=table: found[1] + table, text)
    return text


def line(name: str, host: str, of: dict[str, dict[str, float]]) -> str:
    """The row of one case."""
    found = [Figures(**of[pact]) for pact in CASES[name].pact]
    cells = [name, HOSTS[host], *(f"{value:.0e}" for f in found for value in (f.loss, f.gradient, f.least))]
    cells += ["-"] * (8 - len(cells))
    return f"| {' | '.join(cells)} |\n"


def kept() -> dict[str, Any]:
    """The figures, by host."""
    return json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}


def _measure(host: str) -> dict[str, Any]:
    cases: dict[str, dict[str, Any]] = {name: {} for name, case in CASES.items() if host in case.hosts}
    for name in cases:
        for pact in CASES[name].pact:
            with TemporaryDirectory() as folder:
                cases[name][pact] = measured(host, name, PACT[pact], Path(folder))._asdict()
    packages = [*({host, "trl"} - {"trl"}), "trl", "transformers", "torch"]
    return {"versions": ", ".join(f"{HOSTS.get(p, p)} {version(p)}" for p in packages), "cases": cases}


if __name__ == "__main__":
    found = {host: _measure(host) for host in HERE}
    figures = {**kept(), **found}
    files.write_text(FIGURES, json.dumps(figures, indent=1) + "\n")
    files.write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), figures))
