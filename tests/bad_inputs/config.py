"""The `pact:` block, and the files that hold it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pact_plugins.cli import trl
from pact_plugins.config import PactConfig
from pact_plugins.preflight import dry_run
from pact_plugins.preflight.check import check, require_sound
from pact_plugins.preflight.run_file import host_of, read_run_file
from tests.bad_inputs.case import BadInput, given, written

NAN = float("nan")


def _block(name: str, value: Any, message: str) -> BadInput:
    return BadInput(name, given(PactConfig.parse, value), message)


def _caches_below_nothing(_folder: Path) -> None:
    with patch.dict(os.environ, {"PACT_CACHE_DIR": "$NO_SUCH/pact"}):
        PactConfig.parse(True)


BLOCKS = [
    _block("A misspelt key", {"wieght": 2}, r"`pact\.wieght`.*Did you mean `weight`"),
    _block("A misspelt key of the gate", {"gate": {"slop": 2}}, r"`pact\.gate\.slop`.*Did you mean `slope`"),
    _block("A misspelt key of the probe", {"probe": {"evry": 2}}, r"`pact\.probe\.evry`.*Did you mean `every`"),
    _block("A misspelt key of the evaluation", {"eval": {"judge": ["opening"]}}, r"`pact\.eval\.judge`.*`judges`"),
    _block("Prompts of one kind", {"prompts": {"harmful": "h.txt"}}, r"`pact\.prompts`.*`harmful` and `harmless`"),
    _block("A language without prompts", {"prompts": {"languages": ["xx"]}}, r"`pact\.prompts\.languages`.*xx"),
    _block("A key that is no text", {1: 2}, r"`pact\.1`"),
    _block("An unknown objective", {"objective": "papre"}, r"`pact\.objective`.*papre"),
    _block("An unknown way to handle conflicts", {"conflict": "dampen"}, r"`pact\.conflict`.*dampen"),
    _block("A weight of zero", {"weight": 0}, r"`pact\.weight`.*greater than 0"),
    _block("A weight beyond all reason", {"weight": 1e6}, r"`pact\.weight`.*less than or equal to 1000"),
    _block("A weight that is no number", {"weight": NAN}, r"`pact\.weight`.*finite"),
    _block("A weight in words", {"weight": "much"}, r"`pact\.weight`.*much"),
    _block("A temperature of zero", {"objective": "paper", "temperature": 0}, r"`pact\.temperature`.*greater than 0"),
    _block("An infinite temperature", {"objective": "paper", "temperature": float("inf")}, r"`pact\.temperature`"),
    _block("A conflict threshold that is no probability", {"conflict_threshold": 2}, r"`pact\.conflict_threshold`"),
    _block("Fewer anchors than none", {"anchors": -1}, r"`pact\.anchors`.*greater than or equal to 0"),
    _block("More anchors than a step can carry", {"anchors": 1000}, r"`pact\.anchors`.*less than or equal to 64"),
    _block("A gate that counts all of the probability", {"gate": {"mass": 1}}, r"`pact\.gate.*less than 1"),
    _block("An unknown prefix of the gate", {"gate": {"prefix": "bso"}}, r"`pact\.gate\.prefix`.*Did you mean `bos`"),
    _block(
        "A prefix that the paper's objective has not",
        {"objective": "paper", "gate": {"prefix": "bos"}},
        r"no `gate\.prefix: bos` under `objective: paper`",
    ),
    _block("No candidates for safety tokens", {"top_k": 0}, r"`pact\.top_k`.*greater than or equal to 1"),
    _block("An empty list of safety tokens", {"safety_tokens": []}, r"`pact\.safety_tokens.*at least 1"),
    _block("Safety tokens that are truth values", {"safety_tokens": [True]}, r"`pact\.safety_tokens.*True"),
    _block("Safety tokens that are fractions", {"safety_tokens": [1.5]}, r"`pact\.safety_tokens.*1\.5"),
    _block("No safety tokens at all", {"safety_tokens": None}, r"`pact\.safety_tokens`"),
    _block("Two sources of safety tokens", {"base_model": "b", "safety_tokens": [1]}, r"`base_model`.*`safety_tokens`"),
    _block("A probe that never looks", {"probe": {"every": 0}}, r"`pact\.probe.*greater than or equal to 1"),
    _block("A probe that can never stop the run", {"probe": {"stop_below": 0}}, r"`pact\.probe.*greater than 0"),
    _block("An evaluation without judges", {"eval": {"judges": []}}, r"`pact\.eval\.judges`.*at least 1"),
    _block("One prompt set in place of a list", {"eval": {"prompts": "held-out"}}, r"`pact\.eval\.prompts`"),
    _block("A path with a variable that is not set", {"cache_dir": "$NO_SUCH/pact"}, r"`pact\.cache_dir`.*`\$NO_SUCH`"),
    _block(
        "The home folder of nobody", {"safety_tokens": "~no-such-user/t.json"}, r"`pact\.safety_tokens`.*home folder"
    ),
    BadInput("A default folder that cannot be known", _caches_below_nothing, r"`\$NO_SUCH`.*`PACT_CACHE_DIR`"),
    _block("`pact:` with nothing behind it", None, r"`pact:`.*None"),
    _block("`pact:` in words", "on please", r"`pact:`.*on please"),
    _block("`pact:` as a list", [True], r"`pact:`.*\[True\]"),
]


def _run_file(name: str, content: str | bytes, message: str, read: Any = read_run_file) -> BadInput:
    return BadInput(name, written(content, "run.yaml", read), message)


def _settings(path: Path) -> PactConfig:
    return dry_run.config_of(read_run_file(path))


def _host(path: Path) -> str:
    return host_of(read_run_file(path), path)


def _trl(name: str, settings: str, message: str) -> BadInput:
    """A file for `pact sft`, all in order but for `settings`."""
    return _checked(name, f"model_name_or_path: m\ndataset_name: d\n{settings}\n", message)


def _axolotl(name: str, settings: str, message: str, plugins: str = "pact_plugins.axolotl.PactPlugin") -> BadInput:
    """A file for Axolotl, all in order but for `settings` and `plugins`."""
    lines = ["base_model: m", "datasets: [{path: d, type: chat_template}]", f"plugins: [{plugins}]", settings]
    return _checked(name, "\n".join(lines) + "\n", message)


def _on_rows(name: str, rows: str, message: str) -> BadInput:
    """A run on these rows, of a model in a folder without a chat template."""

    def act(folder: Path) -> None:
        (folder / "m").mkdir()
        for file in ("config.json", "tokenizer_config.json"):
            (folder / "m" / file).write_text('{"model_max_length": 64}')
        (folder / "rows.jsonl").write_text(rows)
        run = folder / "run.yaml"
        data = f"datasets: [{{path: json, data_files: {folder}/rows.jsonl}}]"
        run.write_text(f"pact: true\nmodel_name_or_path: {folder}/m\n{data}\n")
        check(run).require_sound()

    return BadInput(name, act, message)


def _sft(path: Path) -> None:
    trl.sft(["--config", str(path)])


def _pact_train(path: Path) -> None:
    """What `axolotl pact-train` asks first."""
    require_sound(path, "axolotl")


def _checked(name: str, content: str, message: str) -> BadInput:
    return _run_file(name, content, message, lambda path: check(path).require_sound())


def _task_without_answers(folder: Path) -> None:
    (folder / "t.csv").write_text("prompt\nWhy?\n")
    path = folder / "run.yaml"
    path.write_text(f"model_name_or_path: m\ndataset_name: d\npact: {{eval: {{task: {folder / 't.csv'}}}}}\n")
    check(path).require_sound()


def _below_a_file(settings: str) -> Callable[[Path], None]:
    """A run with these settings, filled in with a file that is where a folder should be."""

    def act(folder: Path) -> None:
        run = folder / "run.yaml"
        run.write_text(f"model_name_or_path: m\ndataset_name: d\n{settings.format(run)}\n")
        check(run).require_sound()

    return act


def _launched_by_fsdp1(folder: Path) -> None:
    (folder / "a.yaml").write_text("distributed_type: FSDP\nfsdp_config: {fsdp_reshard_after_forward: FULL_SHARD}\n")
    run = folder / "run.yaml"
    run.write_text(f"pact: true\nmodel_name_or_path: m\ndataset_name: d\naccelerate_config: {folder}/a.yaml\n")
    check(run).require_sound()


RUN_FILES = [
    BadInput("No such file", lambda folder: read_run_file(folder / "run.yaml"), r"run\.yaml; got FileNotFoundError"),
    BadInput("A folder in place of a file", read_run_file, r"a readable YAML file .*; got IsADirectoryError"),
    _run_file("An empty file", "", r"run\.yaml; got a file that holds NoneType"),
    _run_file("A list in place of keys", "- pact: true\n", r"run\.yaml; got a file that holds list"),
    _run_file("A word in place of keys", "pact\n", r"run\.yaml; got a file that holds str"),
    _run_file("A tab in place of spaces", "pact:\n\tweight: 2\n", r"run\.yaml; got ScannerError.*'\\t'"),
    _run_file("A key that stands twice", "pact: true\nlr: 1\npact: false\n", r"run\.yaml; got .*key `pact` twice"),
    _run_file("A setting that stands twice", "pact: {weight: 1, weight: 2}\n", r"run\.yaml; got .*key `weight` twice"),
    _run_file("Two documents in one file", "pact: true\n---\npact: false\n", r"run\.yaml; got ComposerError"),
    _run_file("Quotes that are not closed", 'pact: "true\n', r"run\.yaml; got ScannerError"),
    _run_file("An object of Python", "pact: !!python/name:os.system\n", r"run\.yaml; got ConstructorError"),
    _run_file("A date that is none", "seed: 2026-13-01\n", r"run\.yaml; got ValueError: month"),
    _run_file("Brackets without end", "a: " + "[" * 4000, r"run\.yaml; got RecursionError"),
    _run_file("A file in UTF-16", "pact: true\n".encode("utf-16"), r"run\.yaml; got UnicodeDecodeError"),
    _run_file("A zero byte", b"pact: \x00\n", r"run\.yaml; got ReaderError"),
    _run_file("A file for no known host", "pact: true\nmodel: m\n", r"the keys pact, model in .*run\.yaml", _host),
    BadInput("`pact sft` without a file", given(trl.sft, ["--max_steps", "1"]), r"`--config FILE`|pip install"),
    _run_file(
        "`pact sft` of a file for Axolotl",
        "pact: true\nbase_model: m\ndatasets: [{path: d, type: chat_template, field_messages: turns}]\n",
        r"a file for `trl sft`; got one for Axolotl\..*`axolotl pact-train .*run\.yaml`",
        _sft,
    ),
    _run_file(
        "`axolotl pact-train` of a file for TRL",
        "pact: true\nmodel_name_or_path: m\ndatasets: [{path: d}]\n",
        r"a file for Axolotl; got one for `trl sft`\..*`pact sft --config .*run\.yaml`",
        _pact_train,
    ),
    _run_file(
        "A key that TRL does not know",
        "pact: true\nmodel_name_or_path: m\ndataset_name: d\nouput_dir: out\n",
        r"keys that TRL knows; got `ouput_dir`\..*Did you mean `output_dir`",
        _sft,
    ),
    _run_file(
        "A file for the launcher that is not there",
        "pact: true\nmodel_name_or_path: m\ndataset_name: d\naccelerate_config: zero4\n",
        r"`accelerate_config` to be a file.*zero4",
        _sft,
    ),
    _run_file(
        "`pact estimate` of a run without PACT", "pact: false\n", r"a run with PACT; got `pact: false`", _settings
    ),
    _run_file(
        "`pact estimate` of a run that continues another",
        "pact: true\nresume_from_checkpoint: out\n",
        r"`resume_from_checkpoint: out`",
        _settings,
    ),
]

_AT_HOME = "pact: true\ndatasets: [{path: json, data_files: ~/}]"

CHECKED = [
    _trl("A file for `pact sft` without `pact`", "", r"the key `pact` in .*run\.yaml; got no such key"),
    _trl("The key `pact` with nothing behind it", "pact:", r"`pact:` with nothing behind it"),
    _trl("The key `pact` misspelt", "pakt: true", r"got `pakt`\. .*without PACT\. Did you mean `pact`"),
    _trl("The key `pact` in capitals", "PACT: true", r"got `PACT`\. .*Did you mean `pact`"),
    _axolotl("The plugin without the key", "seed: 1", r"the key `pact` in .*run\.yaml; got no such key"),
    _axolotl("The key without the plugin", "pact: true", r"`plugins: \[pact.*ignore `pact:` and train without", ""),
    _axolotl("The plugin misspelt", "pact: true", r"got `pact_plugins\.PactPlugin`", "pact_plugins.PactPlugin"),
    _axolotl("Preference training", "pact: true\nrl: kto", r"got `rl: kto`"),
    _axolotl(
        "Rows with noise in place of words",
        "pact: true",
        r"got Axolotl's DiffusionPlugin \(`plugins`\)\. .*noised rows",
        "axolotl.integrations.diffusion.DiffusionPlugin, pact_plugins.axolotl.PactPlugin",
    ),
    _axolotl(
        "Training at a service",
        "pact: true",
        r"got Axolotl's HatcheryPlugin \(`plugins`\)\. .*other machines",
        "axolotl.integrations.hatchery.HatcheryPlugin, pact_plugins.axolotl.PactPlugin",
    ),
    _axolotl(
        "A teacher, damped",
        "pact: true\nkd_trainer: true",
        r"got Axolotl's KDPlugin together with `pact\.conflict: damp`.*`pact\.conflict: keep`",
        "axolotl.integrations.kd.KDPlugin, pact_plugins.axolotl.PactPlugin",
    ),
    _axolotl("An adapter that changes what is read", "pact: true\nadapter: llama-adapter", r"ADAPTION_PROMPT"),
    _trl("An adapter on the head", "pact: true\nlora_target_modules: [q_proj, lm_head]", r"a LoRA adapter on the head"),
    _trl(
        "Streaming data",
        "pact: true\ndataset_streaming: true",
        r"a streaming data set together with weights that are trained whole.*LoRA",
    ),
    _trl("Data that are not there", "pact: true\ndatasets: [{path: json, data_files: rows.jsonl}]", r"rows\.jsonl"),
    _on_rows("Data of zero bytes", "", r"rows in .*rows\.jsonl; got zero bytes"),
    _on_rows(
        "Conversations for a model without a chat template",
        '{"messages": [{"role": "user", "content": "Hello"}]}\n',
        r"a chat template in .*rows\.jsonl; got neither .*`chat_template_path`",
    ),
    _trl("Data in a home folder that the host does not look into", _AT_HOME, r"~/.* to be there"),
    _trl("A template that is not there", "pact: true\nchat_template_path: t.jinja", r"t\.jinja to be there"),
    _trl("Prompts that are not there", "pact: {eval: {prompts: [p.csv]}}", r"p\.csv to be there; got no such file"),
    BadInput("A task without expected answers", _task_without_answers, r"an expected answer in every row of .*t\.csv"),
    _trl("Own prompts that are not there", "pact: {prompts: {harmful: h.txt, harmless: g.txt}}", r"h\.txt to be there"),
    _trl("Safety tokens that are not there", "pact: {safety_tokens: tokens.json}", r"tokens\.json"),
    BadInput(
        "Caches below a file", _below_a_file("pact: {{cache_dir: {}/pact}}"), r"to write .*; got .*, which is a file"
    ),
    BadInput("An output folder below a file", _below_a_file("pact: true\noutput_dir: {}/out"), r" in `output_dir`"),
    BadInput("FSDP1 by the launcher", _launched_by_fsdp1, r"got FSDP1 \(`accel.*`fsdp_version: 2`"),
    _trl("A checkpoint that is not there", "pact: true\noutput_dir: o\nresume_from_checkpoint: o/1", r"a checkpoint"),
    _trl(
        "Going on with a run without evidence",
        "pact: true\noutput_dir: .\nresume_from_checkpoint: true",
        r"pact_evidence\.json",
    ),
    _trl("Two mistakes in one file", "pakt: true\nPACT: true", r"got `pakt`; `PACT`|got `PACT`; `pakt`"),
]
