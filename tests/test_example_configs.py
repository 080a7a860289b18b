"""The examples: sound, known to their hosts key by key, and trained with on tiny models of their families."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import get_scheduler

from pact_plugins.chat.format import ChatFormat
from pact_plugins.demo import comparison, world
from pact_plugins.preflight.check import check
from pact_plugins.preflight.requirements import installed
from pact_plugins.run.evidence import Part
from pact_plugins.run.verification import verify
from pact_plugins.storage import files
from tests import families
from tests.contract.commands import EXAMPLES, ROOT, forked
from tests.families import CHAT, FAMILIES
from tests.templates import tokenizer_with

SEVERAL_GPUS = EXAMPLES / "several-gpus"
FILES = sorted(path for path in EXAMPLES.rglob("*") if path.is_file())
LAUNCHERS = [path for path in FILES if path.name.startswith("accelerate-")]
RUNS = [path for path in FILES if path.suffix == ".yaml" and path not in LAUNCHERS]
TRL = [path for path in RUNS if path.name.startswith("trl-")]
AXOLOTL = [path for path in RUNS if path.name.startswith("axolotl-")]
OF_FAMILIES = [path for path in RUNS if path.parent.name in FAMILIES]

METHODS = {"none: full fine-tuning": "full", "lora": "LoRA", "qlora": "QLoRA"}
HOSTS = {"trl": "TRL", "axolotl": "Axolotl"}


def name(path: Path) -> str:
    return path.relative_to(EXAMPLES).as_posix()


def settings_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_run_file_is_sound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an example that PACT refuses or warns of, or one for another host or method than its name says."""
    monkeypatch.chdir(ROOT)
    found = check(path)
    assert found.host == path.name.partition("-")[0]
    assert found.config is not None
    others = [finding for finding in found.warnings if finding.key != found.host]
    assert not [*found.errors, *others], found.as_dict()
    assert (installed(found.host) is None) == any(finding.key == found.host for finding in found.warnings)
    said = {"full", "lora", "qlora"} & {*path.stem.split("-")}
    assert said in ({METHODS[found.will["adapter"]].lower()}, set())


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_file_names_what_is_there(path: Path) -> None:
    """Prevents: a command that starts another file, and a path that leads nowhere."""
    text = path.read_text(encoding="utf-8")
    command = re.findall(r"^#   +(\S.*)", text, re.MULTILINE)
    assert f"example_configs/{name(path)}" in " ".join(command).split()
    assert all((ROOT / named).exists() for named in re.findall(r"example_configs/[\w./-]*\w", text))
    assert re.findall(r"\b(trl|axolotl)-.*", settings_of(path)["output_dir"]) == [path.name.partition("-")[0]]


def test_every_file_has_its_output_folder() -> None:
    """Prevents: two runs in one folder."""
    assert len({settings_of(path)["output_dir"] for path in RUNS}) == len(RUNS)


def test_the_table_is_the_tree() -> None:
    """Prevents: an example that nobody finds, and a row for a file, model, host or method that is another."""
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = [(*row[:2], *row[2].split(" | ")) for row in re.findall(r"^\| \[`(.*?)`\]\((.*?)\) \| (.*) \|$", text, re.M)]
    assert all(shown == target for shown, target, *_ in rows)
    expected: dict[str, list[str]] = {}
    for path in RUNS:
        found = check(path)
        model = str(found.will["model"]).replace("pact_plugins/demo/models/aligned", "a tiny one, shipped")
        expected[name(path)] = [model.split("/")[-1], HOSTS[str(found.host)], METHODS[found.will["adapter"]]]
    told = {shown: [*rest[:-1], rest[-1].partition(", ")[0]] for shown, _, *rest in rows}
    assert {file: told.get(file) for file in expected} == expected
    assert {*told} == {name(path) for path in FILES if path.name != "README.md"}


@pytest.mark.trl
@pytest.mark.parametrize("path", TRL, ids=name)
def test_trl_knows_every_key(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an example that TRL's parser refuses, and a key that it reads as something else or drops."""
    from trl.scripts import sft

    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    settings = {**settings_of(path), "output_dir": str(tmp_path)}
    del settings["pact"]
    rest = tmp_path / path.name
    rest.write_text(yaml.safe_dump(settings), encoding="utf-8")
    parsed = sft.make_parser().parse_args_and_config(["--config", str(rest)])
    special = {"datasets": settings.pop("datasets"), "report_to": settings.pop("report_to")}
    read = {key: value for part in parsed for key, value in vars(part).items()}
    assert {key: _plain(read[key]) for key in settings} == settings
    assert [{"path": d.path, "data_files": d.data_files} for d in read["datasets"]] == special["datasets"]
    assert read["report_to"] == []


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


@pytest.mark.axolotl
@pytest.mark.parametrize("path", AXOLOTL, ids=name)
def test_axolotl_knows_every_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an example that Axolotl's schema refuses, and a key that it turns into something else or drops."""
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault

    monkeypatch.chdir(ROOT)
    written = settings_of(path)
    settings = DictDefault(settings_of(path))
    prepare_plugins(settings)
    gpu = {"bf16": True, "tf32": True, "fp8": False, "n_gpu": 8, "n_node": 1, "compute_capability": "sm_90"}
    found = validate_config(settings, capabilities=gpu, env_capabilities={"torch_version": "2.13.0"}).to_dict()
    assert {key: _kept(found.get(key), value) for key, value in written.items()} == written


def _kept(found: Any, written: Any) -> Any:
    """What is left of `written`, without what the host adds beside it."""
    if isinstance(written, Mapping) and isinstance(found, Mapping):
        return {key: _kept(found.get(key), value) for key, value in written.items()}
    if isinstance(written, list) and isinstance(found, list):
        return [_kept(one, other) for one, other in zip(found, written, strict=True)]
    return _plain(found)


@pytest.mark.parametrize("path", [path for path in RUNS if "paper" in path.stem], ids=name)
def test_the_papers_rate(path: Path) -> None:
    """Prevents: a learning rate that falls otherwise than the file says."""
    settings = settings_of(path)
    epochs, steps = settings.get("num_train_epochs") or settings["num_epochs"], 100
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings["learning_rate"])
    kind = settings.get("lr_scheduler_type") or settings["lr_scheduler"]
    ours = []
    scheduler = get_scheduler(kind, optimiser, 0, epochs * steps, settings["lr_scheduler_kwargs"])
    for _ in range(epochs * steps):
        ours.append(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()
    papers = [3e-5 * 0.85 ** (i // steps) for i in range(epochs * steps)]
    assert sum(ours) == pytest.approx(sum(papers), rel=0.002)
    assert max(abs(a / b - 1) for a, b in zip(ours, papers, strict=True)) < 1 / 8


TEMPLATES = {"llama-3.1.jinja": "llama-3.1-8b", "mistral-7b-v0.3.jinja": "mistral-7b"}


def test_each_template_has_its_family() -> None:
    """Prevents: a training template that is never compared with the model's own."""
    assert {*TEMPLATES} == {path.name for path in FILES if path.suffix == ".jinja"}


@pytest.mark.parametrize("file", TEMPLATES)
def test_a_training_template_renders_as_the_models_own(file: str) -> None:
    """Prevents: training on another format than the model answers in, and labels that are not the answers."""
    own = FAMILIES[TEMPLATES[file]].tokenizer()
    marked = FAMILIES[TEMPLATES[file]].tokenizer()
    marked.chat_template = (EXAMPLES / "trl-templates" / file).read_text(encoding="utf-8")
    system = {"role": "system", "content": "Be kind."}
    chats = [CHAT, CHAT[:1], CHAT[:2], CHAT[:3], [{**m, "content": f" {m['content']}\n"} for m in CHAT]]
    if "llama" in file:
        chats += [[system, *chat] for chat in chats]
    for chat in chats:
        for asked in (False, True):
            texts = [t.apply_chat_template(chat, tokenize=False, add_generation_prompt=asked) for t in (own, marked)]
            assert texts[0] == texts[1]
    row = marked.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    trained = [i for i, mask in zip(row["input_ids"], row["assistant_masks"], strict=True) if mask]
    assert marked.decode(trained).split(marked.eos_token) == [
        *(("" if "llama" in file else " ") + m["content"] for m in CHAT[1::2]),
        "",
    ]
    found = ChatFormat.from_tokenizer(marked)
    # It refuses two answers in a row, which some templates write.
    assert found == replace(ChatFormat.from_tokenizer(own), unopened=found.unopened)


@pytest.mark.parametrize("file", TEMPLATES)
def test_a_training_template_stops_on_what_it_does_not_render(file: str) -> None:
    """Prevents: tool calls and system prompts that are left out of the training data in silence."""
    template = (EXAMPLES / "trl-templates" / file).read_text(encoding="utf-8")
    tokenizer = tokenizer_with(template, *CHAT)
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    refused: list[tuple[list[Any], Any]] = [
        ([*CHAT[:1], {"role": "assistant", "content": "", "tool_calls": [call]}], None),
        ([*CHAT[:1], {"role": "tool", "content": "sunny"}], None),
        (CHAT, [call]),
    ]
    if "mistral" in file:
        refused.append(([{"role": "system", "content": "Be kind."}, *CHAT], None))
    for chat, tools in refused:
        with pytest.raises(Exception, match="This template is for"):
            tokenizer.apply_chat_template(chat, tools=tools, tokenize=False)


ANSWER = "Answer {:02}."


def tiny_run(path: Path, folder: Path, **device: Any) -> Path:
    """Two steps of an example, on a tiny model of its family and rows whose answers are equally long."""
    family = FAMILIES[path.parent.name]
    rows = folder / "rows.jsonl"
    chats = [
        [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": ANSWER.format(i)}]
        for i in range(80)
    ]
    folder.mkdir(exist_ok=True)
    rows.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    settings = settings_of(path) | {"max_steps": 2, "logging_steps": 1, "output_dir": str(folder / "out"), **device}
    settings["base_model" if "base_model" in settings else "model_name_or_path"] = family.save(folder / "model")
    settings["datasets"][0]["path" if "base_model" in settings else "data_files"] = str(rows)
    pact = {} if settings["pact"] is True else settings["pact"]
    if "base_model" in pact:
        pact["base_model"] = family.save(folder / "base", seed=1)
    settings["pact"] = {**pact, "eval": {"max_new_tokens": 8}}  # random weights end no answer
    file = folder / path.name
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


def check_held(folder: Path) -> Part:
    """That the run in `folder` held all of each answer, and what it recorded."""
    verified = verify(folder / "out")
    assert verified.holds, verified.sentence
    assert verified.evidence is not None
    (part,) = verified.evidence.parts
    log = [entry for entry in files.read(folder / "out" / "pact_history.json")["log"] if "pact/kl" in entry]
    assert [entry["step"] for entry in log] == [1, 2]
    assert all(math.isfinite(entry[key]) for entry in log for key in entry if key == "loss" or key.startswith("pact/"))
    # The token that ends an answer as well; some templates train on the line break behind it.
    assert part.cache_hits > 0
    assert part.answer_tokens / part.cache_hits in {len(ANSWER.format(0)) + more for more in (1, 2)}
    return part


@pytest.mark.trl
@pytest.mark.usefixtures("brief_runs")
@pytest.mark.parametrize("path", [path for path in TRL if path in OF_FAMILIES], ids=name)
def test_trl_trains_each_family(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an example whose model, template and settings do not go together, or that trains without PACT."""
    from pact_plugins.cli.trl import sft

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PACT_CACHE_DIR", str(tmp_path / "cache"))
    sft(["--config", str(tiny_run(path, tmp_path, max_length=256, use_cpu=True))])
    settings = settings_of(path)
    rows = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
    assert check_held(tmp_path).cache_hits == 2 * rows


@pytest.mark.axolotl
@pytest.mark.parametrize("family", FAMILIES)
def test_axolotl_trains_each_family(family: str, tmp_path: Path) -> None:
    """Prevents: an example whose model, template and settings do not go together, or that trains without PACT."""
    device = {"attn_implementation": "sdpa", "bf16": False, "tf32": False, "dataset_num_proc": 1}
    kernels = {"lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False}
    files = []
    for path in (path for path in AXOLOTL if path.parent.name == family):
        own = {"sequence_len": 256, "dataset_prepared_path": str(tmp_path / "prepared")}
        own |= kernels if "adapter" in settings_of(path) else {}
        files.append(tiny_run(path, tmp_path / path.stem, **device, **own))
    # In a process of its own: Axolotl patches transformers for good.
    result = forked(tmp_path, families.train, [str(file) for file in files])
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(files) >= len(METHODS)
    for file in files:
        check_held(file.parent)


def test_the_rows_are_the_demos() -> None:
    """Prevents: examples that train on another task than `make demo` measures."""
    expected = [
        (row.prompt, row.answer) for row in world.fine_tuning_rows(comparison.ROWS, comparison.HARMFUL_FRACTION, 0)
    ]
    for file, turns in (("demo-rows.jsonl", 1), ("demo-conversations.jsonl", 2)):
        chats = [json.loads(line)["messages"] for line in (EXAMPLES / file).read_text().splitlines()]
        assert all(len(chat) == 2 * turns for chat in chats)
        messages = [message["content"] for chat in chats for message in chat]
        assert list(zip(messages[::2], messages[1::2], strict=True)) == expected


@pytest.mark.parametrize("path", LAUNCHERS, ids=name)
def test_accelerate_knows_every_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a launcher's file that accelerate refuses, or one that starts another engine than it says."""
    config: Any = load_config_from_file(str(path))
    assert config.num_processes == 8
    engine = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}[path.stem.split("-")[1]]
    assert str(config.distributed_type).endswith(engine)
    if engine == "FSDP":
        for key, value in config.fsdp_config.items():
            monkeypatch.setenv(key.upper().replace("TRANSFORMER_LAYER_CLS", "TRANSFORMER_CLS"), str(value))
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert plugin.reshard_after_forward is True
        assert not isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    if engine == "DEEPSPEED":
        assert (ROOT / config.deepspeed_config["deepspeed_config_file"]).exists()


def test_transformers_reads_the_deepspeed_file() -> None:
    """Prevents: a file of another stage, which would not share the weights."""
    pytest.importorskip("deepspeed", reason="transformers reads the file only where DeepSpeed is installed")
    from transformers.integrations import HfDeepSpeedConfig

    config = HfDeepSpeedConfig(json.loads((SEVERAL_GPUS / "zero3.json").read_text()))
    assert config.is_zero3()
    assert not config.is_offload()
