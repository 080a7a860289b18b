"""What building the reference cache costs: `python -m benchmarks.cache_build --json FILE [--quick] [--ranks 1 2]`.

Build and bare forward passes take turns over the same sequences: the documents up to their last answer token, and with
the gate on the answers alone up to its reach. Bare means the decoder and the head's logits at every position, without
gradients, in batches sorted by length, of the size that proved the fastest here. The model is a random-weight Llama
(body of about 50M parameters). Beside wall-clock time stands the processor time of this process, which other work on
the machine disturbs less (with one thread: `OMP_NUM_THREADS=1`).

With `--ranks`, numbers of processes take turns instead, each process with one thread, at building the same cache
together; starting them is not counted.

With `--incremental`, a store that is there is asked for other data: one row of it changed, a tenth added. Beside the
rows that are computed then stand the seconds that a build of all of them takes, and how far its values are off.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.step_cost import SAFETY_TOKENS, Case, model_of
from pact_plugins.chat.answers import AnswerTokens, Document
from pact_plugins.chat.format import ChatFormat
from pact_plugins.config import GateConfig
from pact_plugins.method.reference import open_or_build
from pact_plugins.model.forward import batches_by_length, evaluating, pad
from pact_plugins.model.ranks import Ranks
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.storage.cache import ReferenceCache
from pact_plugins.storage.identity import Identity

VOCABULARY = 32_000
HEADER = (1, 2, 3, 4)
BUDGETS = (1024, 4096)
"""Tokens in one bare forward pass, of which the fastest counts."""


def conversations(number: int) -> list[tuple[list[int], list[int]]]:
    """(prompt with header, answer) of random ids; some answers are longer than the gate's reach."""
    rng = random.Random(0)

    def ids(shortest: int, longest: int) -> list[int]:
        return [rng.randrange(8, VOCABULARY) for _ in range(rng.randint(shortest, longest))]

    return [([*ids(16, 128), *HEADER], ids(8, 128)) for _ in range(number)]


def document_of(prompt: list[int], answer: list[int]) -> Document:
    supervised = np.arange(len(prompt) + len(answer)) >= len(prompt)
    return Document(np.asarray(prompt + answer, np.int64), supervised)


def sequences_of(rows: list[tuple[list[int], list[int]]], reach: int) -> list[Any]:
    """What a forward pass has to see: nothing after the last answer token is needed."""
    full = [[*prompt, *answer[:-1]] for prompt, answer in rows]
    answer_only = [[*HEADER, *answer[:reach][:-1]] for _, answer in rows] if reach else []
    return [np.asarray(ids, np.int64) for ids in (*full, *answer_only)]


def identity_of(reach: int) -> Identity:
    """Of this benchmark's model and words; `reach`: of the gate, 0 without one."""
    names = {"model": "random", "tokenizer": "none", "safety_tokens": "first", "chat": "header"}
    return Identity(**names, reach=reach or None, harm=None, precision="as stored")


def clocks() -> Any:
    """Wall-clock and processor seconds."""
    return np.asarray([time.perf_counter(), time.process_time()])


def bare(model: Any, sequences: list[Any], budget: int) -> Any:
    """Wall-clock and processor seconds of plain forward passes over all sequences."""
    started = clocks()
    with evaluating(model):
        for batch in batches_by_length([len(s) for s in sequences], budget):
            ids, mask = pad([sequences[i] for i in batch], model.device)
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
    return clocks() - started


def interval(values: list[float]) -> dict[str, float]:
    """Median, and the interval of the middle half."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    return {"median": round(statistics.median(ordered), 4), "low": round(low, 4), "high": round(high, 4)}


def measure(model: Any, number: int, gate: bool, pairs: int, folder: Path) -> dict[str, Any]:
    """One run: build against bare forward passes, and the size of what was built."""
    rows = conversations(number)
    documents = [document_of(*row) for row in rows]
    reach = GateConfig().reach if gate else 0
    sequences = sequences_of(rows, reach)
    identity = identity_of(reach)
    ids, chat = list(range(8, 8 + SAFETY_TOKENS)), ChatFormat(header=HEADER)
    bare(model, sequences, BUDGETS[0])  # warms up
    budget = min(BUDGETS, key=lambda b: bare(model, sequences, b)[1])
    seconds: dict[str, list[Any]] = {"build": [], "bare": []}
    for pair in range(pairs):
        for what in random.Random(pair).sample(sorted(seconds), 2):
            if what == "bare":
                seconds[what].append(bare(model, sequences, budget))
                continue
            head = SubsetHead(model, ids)
            started = clocks()
            open_or_build(folder / f"{gate}-{pair}", identity, documents, head, chat, show_progress=False)
            seconds[what].append(clocks() - started)
            head.remove()
    (segment,) = ReferenceCache(folder / f"{gate}-0", identity).stores[0].segments
    values = segment.manifest.values
    wall, processor = np.transpose([a / b for a, b in zip(seconds["build"], seconds["bare"], strict=True)]).tolist()
    answer_tokens, reached_tokens = values["full"], values.get("answer_only", 0)
    return {
        "ranks": 1,
        "gate": gate,
        "seconds": round(statistics.median(s[0] for s in seconds["build"]), 3),
        "bare_seconds": round(statistics.median(s[0] for s in seconds["bare"]), 3),
        "bare_tokens_per_batch": budget,
        "ratio": interval(wall),
        "processor_ratio": interval(processor),
        "pairs": pairs,
        "documents": len(segment),
        "tokens_run": sum(map(len, sequences)),
        "answer_tokens": answer_tokens,
        "reached_tokens": reached_tokens,
        "bytes_per_answer_token": round(segment.size / answer_tokens, 2),
        "views_times_s_times_2": len(values) * SAFETY_TOKENS * 2,
        "bytes_of_values": round((answer_tokens + reached_tokens) * SAFETY_TOKENS * 2 / answer_tokens, 2),
    }


def together(size: int, number: int, folder: Path) -> dict[str, Any]:
    """One cache from `size` processes, without the gate: seconds by the clock, and the most of one processor."""
    mp.spawn(_rank, (size, number, folder), nprocs=size)
    (segment,) = ReferenceCache(folder / "cache", identity_of(0)).stores[0].segments
    wall, processor = np.max([np.load(folder / f"{rank}.npy") for rank in range(size)], axis=0)
    return {"seconds": wall, "processor_seconds": processor, "answer_tokens": segment.manifest.values["full"]}


def _rank(rank: int, size: int, number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    ranks = Ranks.of_run(timeout=600)
    head = SubsetHead(model_of(Case("trl", "full", VOCABULARY)), list(range(8, 8 + SAFETY_TOKENS)))
    documents = [document_of(*row) for row in conversations(number)]
    identity, chat = identity_of(0), ChatFormat(header=HEADER)
    open_or_build(folder / f"warm-{rank}", identity, documents[:4], head, chat, show_progress=False)
    ranks.exchange(None, "warming up")
    started = clocks()
    open_or_build(folder / "cache", identity, documents, head, chat, ranks=ranks, show_progress=False)
    np.save(folder / f"{rank}.npy", clocks() - started)
    if size > 1:
        dist.destroy_process_group()


def measure_together(sizes: list[int], number: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """A run for each number of ranks: medians over the rounds, in each of which all of them take their turn."""
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    for turn in range(rounds):
        for size in sizes if turn % 2 == 0 else sizes[::-1]:
            own = folder / f"{turn}-{size}"
            own.mkdir()
            found[size].append(together(size, number, own))
    return [
        {
            "ranks": size,
            **{key: round(statistics.median(run[key] for run in runs), 3) for key in ("seconds", "processor_seconds")},
            "answer_tokens": runs[0]["answer_tokens"],
            "rounds": rounds,
        }
        for size, runs in found.items()
    ]


def measure_incremental(model: Any, number: int, folder: Path) -> list[dict[str, Any]]:
    """What a store of `number` rows computes of other data."""
    rows, chat, identity = conversations(number + max(1, number // 10)), ChatFormat(header=HEADER), identity_of(0)
    first, added = [document_of(*row) for row in rows[:number]], [document_of(*row) for row in rows[number:]]
    head = SubsetHead(model, list(range(8, 8 + SAFETY_TOKENS)))

    def built(name: str, documents: list[Document]) -> tuple[ReferenceCache, int, float]:
        started = time.perf_counter()
        cache, computed = open_or_build(folder / name, identity, documents, head, chat, show_progress=False)
        return cache, computed.rows, time.perf_counter() - started

    built("warm-up", first)
    found: list[dict[str, Any]] = []
    for case, documents in (("one_row_changed", [*first[1:], added[0]]), ("tenth_added", [*first, *added])):
        built(case, first)
        grown, computed, seconds = built(case, documents)
        fresh, whole, fresh_seconds = built(f"{case}-fresh", documents)
        tokens = AnswerTokens.of(documents, chat)
        values, afresh = (of.look_up(tokens).full.astype(np.float32) for of in (grown, fresh))
        assert whole == len(documents)
        found.append(
            {
                "case": case,
                "rows": len(documents),
                "computed_rows": computed,
                "seconds": round(seconds, 3),
                "fresh_seconds": round(fresh_seconds, 3),
                "largest_difference": float(np.abs(values - afresh).max()),
                "differing_values": float((values != afresh).mean()),
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer documents and pairs")
    parser.add_argument("--ranks", type=int, nargs="+", help="numbers of processes that build together, on the CPU")
    parser.add_argument("--incremental", action="store_true", help="other data where some of it is known")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as name:
        if arguments.ranks:
            number, rounds = (96, 1) if arguments.quick else (224, 3)
            runs = measure_together(arguments.ranks, number, rounds, Path(name))
            print(json.dumps(runs), flush=True)
            threads = 1
        elif arguments.incremental:
            model = model_of(Case("trl", "full", VOCABULARY)).to(arguments.device)
            runs = measure_incremental(model, 20 if arguments.quick else 200, Path(name))
            threads = torch.get_num_threads()
        else:
            number, pairs = (8, 3) if arguments.quick else (24, 7)
            model = model_of(Case("trl", "full", VOCABULARY)).to(arguments.device)
            for gate in (False, True):
                runs.append(measure(model, number, gate, pairs, Path(name)))
                print(json.dumps(runs[-1]), flush=True)
            threads = torch.get_num_threads()
    content = {"runs": runs, "torch_threads": threads, "device": arguments.device}
    arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
