"""What grows with the data: `python -m benchmarks.scaling --json FILE --markdown FILE [--quick]`.

Caches of random values, in the real format, for 10 thousand, 100 thousand and a million documents of 10 answer tokens
each, and a million in as many segments as a store may have: size, opening, lookup in random order, and memory. Each is
opened in a process of its own, so that its memory is its own. Start-up is measured through the real
`training_documents` of a real `SFTTrainer`, followed by what a run that finds its cache does with every document:
locating its answers, and its key. Building is measured with a model of one layer, which shows the work per document
that is not the model's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pact_plugins.storage.identity import Identity
from pact_plugins.storage.writer import SEGMENTS

ANSWER_TOKENS, SAFETY_TOKENS, LENGTH, VOCABULARY = 10, 50, 100, 1000
IDENTITY = Identity(
    model="random", tokenizer="none", safety_tokens="first", reach=None, harm=None, chat="none", precision="as stored"
)


def document_of(number: int) -> Any:
    """A document of random ids, the same for the same number."""
    from pact_plugins.chat.answers import Document

    ids = np.random.default_rng(number).integers(8, VOCABULARY, LENGTH)
    return Document(ids, np.arange(LENGTH) >= LENGTH - ANSWER_TOKENS)


def write(folder: Path, documents: int, segments: int) -> float:
    """Seconds in which `CacheWriter` stores random values, apart from making the documents' keys."""
    from pact_plugins.storage.writer import CacheWriter, Place

    keys = sorted(document_of(i).key for i in range(documents))
    block = list(np.random.default_rng(0).uniform(-20, 0, (1000, ANSWER_TOKENS, SAFETY_TOKENS)).astype(np.float16))
    started = time.perf_counter()
    for part in range(segments):
        own = keys[part::segments]
        counts = {"full": np.full(len(own), ANSWER_TOKENS)}
        places = [Place("full", i, 0, ANSWER_TOKENS) for i in range(len(own))]
        batches = [places[i : i + len(block)] for i in range(0, len(own), len(block))]
        with CacheWriter(folder / IDENTITY.name, IDENTITY, own, counts, SAFETY_TOKENS, batches) as writer:
            for batch in writer.to_do():
                writer.store(batch, zip(batches[batch], block, strict=False))
            writer.finish()
    return time.perf_counter() - started


def open_and_look_up(folder: Path, documents: int, lookups: int) -> dict[str, float]:
    """Opening, lookups one document at a time, and anonymous memory, in kB, before and after them."""
    from pact_plugins.chat.answers import AnswerTokens
    from pact_plugins.chat.format import ChatFormat
    from pact_plugins.storage.cache import ReferenceCache

    before = resident("RssAnon")
    started = time.perf_counter()
    cache = ReferenceCache(folder, IDENTITY)
    opening = time.perf_counter() - started
    opened = resident("RssAnon")
    seconds: list[float] = []
    for number in np.random.default_rng(1).integers(0, documents, lookups).tolist():
        tokens = AnswerTokens.of([document_of(number)], ChatFormat())
        _ = tokens.documents[0].key
        started = time.perf_counter()
        cache.look_up(tokens)
        seconds.append(time.perf_counter() - started)
    return {
        "open_seconds": round(opening, 4),
        "lookup_median_us": round(statistics.median(seconds) * 1e6, 1),
        "lookup_p99_us": round(float(np.quantile(seconds, 0.99)) * 1e6, 1),
        "anonymous_kb_before": before,
        "anonymous_kb_open": opened,
        "anonymous_kb_after": resident("RssAnon"),
        "mapped_kb_after": resident("RssFile"),
        "lookups": lookups,
    }


def resident(kind: str) -> int:
    """Resident memory of this process, in kB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(f"{kind}:")).split()[1])


def cache_row(folder: Path, documents: int, lookups: int, segments: int = 1) -> dict[str, Any]:
    from pact_plugins.storage.folder import size_of

    writing = write(folder, documents, segments)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(open_and_look_up, (folder, documents, lookups))
    size = size_of(folder)
    per_token = size / (documents * ANSWER_TOKENS)
    return {
        "documents": documents,
        "segments": segments,
        "answer_tokens": documents * ANSWER_TOKENS,
        "write_seconds": round(writing, 3),
        "bytes": size,
        "bytes_per_answer_token": round(per_token, 2),
        "over_values": round(per_token / (SAFETY_TOKENS * 2), 4),
        **found,
    }


def build_row(folder: Path, documents: int) -> dict[str, float]:
    """Seconds of a real build, both views, with a model that costs next to nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pact_plugins.chat.format import ChatFormat
    from pact_plugins.config import GateConfig
    from pact_plugins.method.reference import open_or_build
    from pact_plugins.model.subset_head import SubsetHead

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    made = [document_of(i) for i in range(documents)]
    identity = IDENTITY.model_copy(update={"reach": GateConfig().reach})
    started = time.perf_counter()
    head, chat = SubsetHead(model, list(range(SAFETY_TOKENS))), ChatFormat(header=(1, 2, 3, 4))
    open_or_build(folder, identity, made, head, chat, show_progress=False)
    return {"documents": documents, "seconds": round(time.perf_counter() - started, 3)}


def start_up_row(trainer: Any, rows: int) -> dict[str, float]:
    """Microseconds per row of what a run that finds its cache does with every row."""
    from pact_plugins.chat.fingerprints import keys_fingerprint
    from pact_plugins.chat.format import ChatFormat
    from pact_plugins.run.documents import training_documents

    started = time.perf_counter()
    documents = list(training_documents(trainer))
    read = time.perf_counter()
    chat = ChatFormat.from_tokenizer(trainer.processing_class)
    answered = [d for d in documents if d.answers(chat)]
    located = time.perf_counter()
    keys_fingerprint(d.key for d in answered)
    done = time.perf_counter()
    assert len(answered) == rows
    parts = {"read": read - started, "answers": located - read, "keys": done - located, "all": done - started}
    return {"rows": rows, **{f"{name}_us_per_row": round(s / rows * 1e6, 2) for name, s in parts.items()}}


def trainer_of(rows: int, folder: Path) -> Any:
    """TRL's trainer over `rows` tokenised rows, and over nothing else worth the time."""
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from pact_plugins.demo import ALIGNED_MODEL

    tokenizer = AutoTokenizer.from_pretrained(ALIGNED_MODEL)
    ids = np.random.default_rng(0).integers(8, len(tokenizer), (rows, LENGTH))
    mask = (np.arange(LENGTH) >= LENGTH - ANSWER_TOKENS).astype(int).tolist()
    data = Dataset.from_dict({"input_ids": ids.tolist(), "completion_mask": [mask] * rows})
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    args = SFTConfig(
        output_dir=str(folder / "out"), max_length=LENGTH, completion_only_loss=True, report_to=[], use_cpu=True
    )
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def markdown(content: dict[str, Any]) -> str:
    """The figures as tables."""
    lines = [
        "| documents | segments | answer tokens | writing | size | over values | opening | lookup, median (p99) "
        "| anonymous memory: start, open, after |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in content["caches"]:
        memory = ", ".join(f"{r[f'anonymous_kb_{when}'] / 1024:.1f}" for when in ("before", "open", "after"))
        lines.append(
            f"| {r['documents']:,} | {r['segments']} | {r['answer_tokens']:,} | {r['write_seconds']:.2f} s "
            f"| {r['bytes'] / 2**20:.1f} MiB | {r['over_values']:.3f} | {r['open_seconds'] * 1000:.1f} ms "
            f"| {r['lookup_median_us']:.0f} ({r['lookup_p99_us']:.0f}) µs | {memory} MiB |"
        )
    lines += ["", "| rows | read | answers | keys | start-up per row |", "|---|---|---|---|---|"]
    for r in content["start_up"]:
        parts = " | ".join(f"{r[f'{name}_us_per_row']:.1f} µs" for name in ("read", "answers", "keys", "all"))
        lines.append(f"| {r['rows']:,} | {parts} |")
    lines += ["", "| documents built, one layer of width 8 | seconds |", "|---|---|"]
    lines += [f"| {r['documents']:,} | {r['seconds']:.2f} |" for r in content["builds"]]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the data")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    scale = 1 if arguments.quick else 10
    content: dict[str, Any] = {"caches": [], "start_up": [], "builds": [], "cpus": os.cpu_count()}

    def note(part: str, row: dict[str, Any]) -> None:
        content[part].append(row)
        print(json.dumps({part: row}), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for documents in (1000 * scale, 10_000 * scale, 100_000 * scale):
            note("caches", cache_row(folder / str(documents), documents, min(documents, 20_000)))
        shutil.rmtree(folder / str(100_000 * scale))
        note("caches", cache_row(folder / "segments", 100_000 * scale, 20_000, SEGMENTS))
        for rows in (200 * scale, 2000 * scale) if arguments.quick else (1000, 10_000, 100_000):
            trainer = trainer_of(rows, folder)
            # The middle one of three: the first also pays for what the process does only once.
            found = sorted((start_up_row(trainer, rows) for _ in range(3)), key=lambda row: row["all_us_per_row"])
            note("start_up", found[1])
        for documents in (20 * scale, 200 * scale, 2000 * scale):
            note("builds", build_row(folder / f"build-{documents}", documents))
    arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
