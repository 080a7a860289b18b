"""What PACT itself wrote, and something else changed: caches, answers, evidence, evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pact_plugins.method.asking import Asked
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.run.evidence import EVIDENCE, Evidence
from pact_plugins.run.preparation import evidence_of, prepare
from pact_plugins.run.report.files import contents_of
from pact_plugins.run.trainer import Start
from pact_plugins.storage import files
from pact_plugins.storage.cache import ReferenceCache
from tests import tiny
from tests.bad_inputs.case import BadInput, config
from tests.caches import IDENTITY, IDS, but, look_up, made, segment
from tests.rows import alone, documents, few, flip_bit
from tests.run.report.evaluations import ANSWER, REFUSAL, write


def _cache(change: Callable[[Path], Any], **identity: Any) -> Callable[[Path], Any]:
    """Opens a cache that was changed after it was made, and looks its first row up."""

    def act(folder: Path) -> Any:
        cache = folder / "cache"
        made(cache, SubsetHead(tiny.llama(), IDS), few())
        change(segment(cache))
        if identity:
            (cache / IDENTITY.name).rename(cache / but(**identity).name)
        return look_up(ReferenceCache(cache, but(**identity)), alone(few()[0]))

    return act


def _the_one(cache: Path, start: str) -> Path:
    (found,) = cache.glob(f"{start}*")
    return found


def _values_changed(cache: Path) -> None:
    for offset in range(-200, 0):
        flip_bit(_the_one(cache, "full"), offset, 3)


def _answers(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        path = folder / "answers.safetensors"
        files.write_tensors(path, {"ids": torch.tensor([[10, 11, 12]])})
        change(path)
        return Asked.load(path)

    return act


def _edited(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace("1", "2", 1), encoding="utf-8")


def _newer(path: Path) -> None:
    content = files.read(path)
    files.write(path, {**content, "format": content["format"] + 1})


def _evidence(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        ready = prepare(Start(tiny.llama(), tiny.tokenizer(), documents(few()), config(folder), show_progress=False))
        evidence_of(ready).save(folder)
        change(folder / EVIDENCE)
        return Evidence.load(folder)

    return act


def _report(file: str, change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        change(write(folder, [[REFUSAL]], [[ANSWER]]) / file)
        return contents_of(folder)

    return act


_INTACT = r"an intact reference cache .*in .*cache/\w+/\w+; got "
_SOUND = r"sound files of a run or an evaluation in .*; got "

INPUTS = [
    BadInput(
        "A cache without its manifest", _cache(lambda c: (c / "manifest.json").unlink()), _INTACT + "FileNotFound"
    ),
    BadInput("A manifest that was cut off", _cache(lambda c: (c / "manifest.json").write_text("{")), _INTACT),
    BadInput("A cache without its index", _cache(lambda c: _the_one(c, "index").unlink()), _INTACT),
    BadInput("An index that was changed", _cache(lambda c: flip_bit(_the_one(c, "index"), -1)), _INTACT),
    BadInput("A cache without its values", _cache(lambda c: _the_one(c, "full").unlink()), _INTACT),
    BadInput("Values that were cut off", _cache(lambda c: _the_one(c, "full").write_bytes(b"\x93NUMPY")), _INTACT),
    BadInput("Values that were changed", _cache(_values_changed), _INTACT + ".*checksum"),
    BadInput(
        "A cache of another model", _cache(lambda c: None, model="other"), r"model = other; got model = m in .*cache"
    ),
    BadInput(
        "No file of answers", _answers(Path.unlink), r"answers to the shipped prompts in .*; got FileNotFoundError"
    ),
    BadInput(
        "A bit of the answers changed",
        _answers(lambda path: flip_bit(path, -1)),
        r"answers to the .* prompts.*checksum",
    ),
    BadInput(
        "Evidence of a run that was edited by hand", _evidence(_edited), r"evidence of the run being resumed.*checksum"
    ),
    BadInput(
        "Evidence of a run that was cut off",
        _evidence(lambda p: p.write_text("{")),
        r"evidence of the run being resumed",
    ),
    BadInput(
        "Evidence of a newer version", _evidence(_newer), r"evidence of the run .* in format 1, .*; got .*format 2"
    ),
    BadInput("A report of nothing", contents_of, r"a run under PACT.*; got neither"),
    BadInput("A report of no folder", lambda folder: contents_of(folder / "none"), r"; got no such folder"),
    BadInput(
        "A report with an evaluation that is not there",
        lambda folder: contents_of(folder, folder / "none"),
        r"an evaluation \(evaluation\.json.*none; got no such folder",
    ),
    BadInput("Verdicts that are missing", _report("verdicts.jsonl", Path.unlink), _SOUND + "FileNotFoundError"),
    BadInput(
        "Verdicts of fewer answers", _report("verdicts.jsonl", lambda p: p.write_text("")), _SOUND + ".*answers of"
    ),
    BadInput("Rates edited by hand", _report("evaluation.json", _edited), _SOUND + ".*checksum"),
]
