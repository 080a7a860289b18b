"""Everything that can be wrong with the file of a run, each a generator of findings; `check.check` asks them all.

The file is read, nothing is loaded: they work without the host that the file is for.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.method.asking import Asked
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.preflight.requirements import unmet, untested
from pact_plugins.preflight.run_file import PLUGIN, Host, block
from pact_plugins.run.evidence import Evidence

_WITHOUT_A_REQUIREMENT = {
    "axolotl": "PACT could not be imported; Axolotl would train on without it.",
    "trl": "The run could stop where it needs it.",
}
_TEMPLATE_FILES = ("*chat_template*", "*processor_config.json", "tekken.json")
"""Files of a model folder that are or may hold a chat template, beside the tokenizer's settings."""
STREAMING = ("streaming", "dataset_streaming", "pretraining_dataset")
"""Keys of both hosts by which a data set streams."""
DPO = ("dpo", "ipo")
"""What Axolotl trains by TRL's DPOTrainer, by its key `rl`."""
_LONGEST_ROW = 2**20
"""Characters of a first row that are read: a file of JSON may be one line."""
_FILE_ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".yaml", ".yml", ".safetensors", ".jinja")


@dataclass(frozen=True)
class Finding:
    """What is wrong with one key of a file.

    Attributes:
        key: as in the file; empty if it is about the whole file.
        error: what was expected, what is there, what follows, what to do.
    """

    key: str
    error: PactError

    @classmethod
    def of(cls, key: str, expected: str, got: str, consequence: str, remedy: str) -> Finding:
        return cls(key, PactError(expected=expected, got=got, consequence=consequence, remedy=remedy))

    @property
    def got(self) -> str:
        """What is there, with the key where the words do not name it."""
        return self.error.got if self.key in str(self.error) else f"{self.error.got} (`{self.key}`)"

    def as_dict(self) -> dict[str, str]:
        """Its words, one by one."""
        return {"key": self.key, **self.error.words}


@dataclass(frozen=True)
class Run:
    """A file with what the checks need of it."""

    path: Path
    host: Host
    settings: Mapping[str, Any]
    config: PactConfig | None

    @property
    def pact(self) -> PactConfig:
        """The settings of PACT, which only runs under it are asked for."""
        assert self.config is not None
        return self.config

    @property
    def model(self) -> str | None:
        return self.settings.get("base_model" if self.host == "axolotl" else "model_name_or_path")

    @property
    def adapter(self) -> str:
        if self.host == "axolotl":
            return str(self.settings.get("adapter") or "none: full fine-tuning")
        if not self.settings.get("use_peft"):
            return "none: full fine-tuning"
        return "qlora" if self.settings.get("load_in_4bit") or self.settings.get("load_in_8bit") else "lora"

    @property
    def data(self) -> list[str]:
        """Names and files of its data sets."""
        found = [self.settings.get("dataset_name")]
        return [str(name) for name in found if name] + [name for entry in self.datasets for name in _files(entry)]

    @property
    def datasets(self) -> list[dict[str, Any]]:
        """The entries under `datasets`."""
        return [entry for entry in self.settings.get("datasets") or [] if isinstance(entry, dict)]

    @property
    def holds_rows(self) -> bool:
        """Whether answers of its data set are held, or anchors alone."""
        return not (self.host == "axolotl" and self.settings.get("rl") in DPO)

    @property
    def streams(self) -> bool:
        return any(self.settings.get(key) for key in STREAMING)

    @property
    def output_dir(self) -> Path | None:
        folder = self.settings.get("output_dir")
        # As transformers reads it.
        return Path(os.path.expanduser(str(folder))) if folder else None


def misspelt(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Keys that no host knows and that look like ours."""
    for key in map(str, settings):
        plain = re.sub(r"[^a-z]", "", key.lower())
        if key != "pact" and (plain == "pact" or difflib.get_close_matches(plain, ["pact"], cutoff=0.75)):
            yield Finding.of(
                key,
                expected="the key `pact`",
                got=f"`{key}`",
                consequence="Its settings would be ignored, and the run would train without PACT.",
                remedy="Did you mean `pact`?",
            )


def plugin(run: Run) -> Iterator[Finding]:
    """Axolotl's two ways of training on without a plugin: not listed, or listed under a name that it cannot import."""
    plugins = [str(name) for name in run.settings.get("plugins") or []]
    if PLUGIN in plugins:
        return
    near = [name for name in plugins if "pact" in name.lower()]
    yield Finding.of(
        "plugins",
        expected=f"`plugins: [{PLUGIN}]` in {run.path}",
        got=f"`{near[0]}`" if near else "a file that does not list it",
        consequence="Axolotl would ignore `pact:` and train without PACT.",
        remedy=f"Write `{PLUGIN}`." if near else "Add that line.",
    )


def environment(host: Host) -> tuple[list[Finding], list[Finding]]:
    """Packages that are missing or too old, and those outside the tested range or not there to be looked at."""
    lacking = list(unmet(host))
    absent = any(name == host and found is None for name, _, found in lacking)
    errors = [
        Finding.of(
            name,
            expected=f"`{wanted}` in this environment",
            got=found or "no such package",
            consequence=_WITHOUT_A_REQUIREMENT[host],
            remedy=f'Run `pip install "pact-plugins[{host}]"`.',
        )
        # Where the host is not, what comes with it need not be either.
        for name, wanted, found in (unmet("") if absent else lacking)
    ]
    warnings = [
        Finding.of(
            host,
            expected=f"`{host}`, which this file is for",
            got="no such package in this environment",
            consequence="What it would say of the file was not asked.",
            remedy=f'Check the file where it will run, or run `pip install "pact-plugins[{host}]"`.',
        )
    ] * absent
    warnings += [
        Finding.of(
            name,
            expected=f"{name} {least} to {greatest}, which are tested",
            got=found,
            consequence="PACT checks itself against the model before the first step, but this release was not tried.",
            remedy="Use a tested release, or look at the first report with care.",
        )
        for name, least, greatest, found in untested()
    ]
    return errors, warnings


def files(run: Run) -> Iterator[Finding]:
    """Files and folders that are not there. Names on the hub are not asked for."""
    asked = run.pact.active_eval
    of_eval = [*asked.prompts, asked.task or "", str(asked.judge_prompt or "")] if asked else []
    named = [("model", run.model), ("datasets", run.data)]
    named += [(key, run.settings.get(key)) for key in ("deepspeed", "chat_template_path", "accelerate_config")]
    named += [("pact.eval", [name.split(":")[0] for name in of_eval])]
    named += [("pact.base_model", run.pact.base_model)]
    own = run.pact.prompts
    named += [("pact.prompts", [str(path) for path in (own.harmful, own.harmless) if path is not None])]
    for key, names in named:
        for name in names if isinstance(names, list) else [names]:
            if isinstance(name, str) and _is_path(name) and not _exists(name):
                yield Finding.of(
                    key,
                    expected=f"{name} to be there",
                    got="no such file or folder",
                    consequence="The run would stop when it asks for it.",
                    remedy="Correct the path; it is relative to the folder in which the run is started, and hosts take "
                    "`~` and `$` as they stand.",
                )


def folders(run: Run) -> Iterator[Finding]:
    """Folders that could not be made, or written to."""
    for key, folder in (("output_dir", run.output_dir), ("pact.cache_dir", run.pact.cache_folder)):
        if folder is None:
            continue
        way = (folder.absolute(), *folder.absolute().parents)
        there = next(path for path in way if os.path.exists(path))
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            yield Finding.of(
                key,
                expected=f"to write files into {folder}",
                got=f"{there}, {'where nobody may write' if there.is_dir() else 'which is a file'}",
                consequence="The run would stop when it keeps something there.",
                remedy=f"Name another folder in `{key}`, or make this one writable.",
            )


def _is_path(name: str) -> bool:
    """Whether a name is meant as a path on this machine, rather than as one on the hub (`name` or `owner/name`)."""
    if "://" in name:
        return False
    return name.startswith(("/", "./", "../", "~")) or name.endswith(_FILE_ENDINGS) or name.count("/") > 1


def _exists(name: str) -> bool:
    path = Path(name)  # no host takes `~` for the home folder in these; `pact:` has its own filled in
    # A pattern such as `data/*.jsonl` names what it matches.
    return path.exists() or ("*" in name and any(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))))


def _files(entry: dict[str, Any]) -> list[str]:
    """What an entry under `datasets` reads: its files, or its name."""
    files = entry.get("data_files") or entry.get("path")
    return [str(name) for name in (files if isinstance(files, list) else [files]) if name]


def empty(run: Run) -> Iterator[Finding]:
    """Data sets of which every file is there and holds nothing; beside full ones, hosts pass over empty JSON files."""
    for entry in run.datasets:
        paths = [Path(name) for name in _files(entry)]
        if paths and all(path.is_file() and not path.stat().st_size for path in paths):
            yield Finding.of(
                "datasets",
                expected=f"rows in {', '.join(map(str, paths))}",
                got="zero bytes",
                consequence="The run would stop when it loads its data.",
                remedy="Write the rows again, or correct the path.",
            )


def template(run: Run) -> Iterator[Finding]:
    """Conversations for TRL whose model has no chat template to render them: asked where both are files that tell."""
    model = Path(run.model or "")
    if run.host != "trl" or run.settings.get("chat_template_path") or not _lacks_template(model):
        return
    # Another loader would read other rows out of the same file, and `columns` may leave the conversations out.
    entries = [entry for entry in run.datasets if entry.get("path") == "json" and not entry.get("columns")]
    names = (name for entry in entries for name in _files(entry))
    name = next((name for name in names if _is_conversation(_first_row(Path(name)))), None)
    if name is not None:
        yield Finding.of(
            "model_name_or_path",
            expected=f"a chat template in {model}, for the conversations in {name}",
            got="neither `chat_template.jinja` nor `chat_template` in `tokenizer_config.json`",
            consequence="The run would stop when it renders them.",
            remedy="Name a chat model, or a template in `chat_template_path`.",
        )


def _lacks_template(model: Path) -> bool:
    """Whether a whole model with its tokenizer is in this folder, and surely no chat template."""
    tokenizer = model / "tokenizer_config.json"
    if not (tokenizer.is_file() and (model / "config.json").is_file()):
        return False
    # A tokenizer with code of its own may render conversations without a template.
    says = block(str(tokenizer))
    return (
        bool(says)
        and not any(says.get(key) for key in ("chat_template", "auto_map"))
        and not any(found for pattern in _TEMPLATE_FILES for found in model.glob(pattern))
    )


def _first_row(path: Path) -> Any:
    """Of a file of JSON, if its first line tells; None if not."""
    try:
        with path.open(encoding="utf-8") as lines:
            row = json.loads(lines.readline(_LONGEST_ROW))
    except (OSError, ValueError, RecursionError):
        return None
    return row[0] if isinstance(row, list) and row else row


def _is_conversation(row: Any) -> bool:
    """Whether TRL takes a row for a conversation, and has yet to tokenize it."""
    if not isinstance(row, dict) or "input_ids" in row:
        return False
    found = [row[key] for key in ("messages", "prompt", "completion") if key in row]
    return bool(found) and all(
        isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0] for turns in found
    )


def tokens(run: Run) -> Iterator[Finding]:
    if isinstance(run.pact.safety_tokens, Path):
        try:
            SafetyTokens.load(run.pact.safety_tokens)
        except PactError as error:
            yield Finding("pact.safety_tokens", error)


def resumed(run: Run) -> Iterator[Finding]:
    """Of a run that goes on from a checkpoint: what it needs of its beginning, which the run itself would look for."""
    key = "resume_from_checkpoint"
    named = run.settings.get(key)
    if run.output_dir is None:
        return
    if not named and run.settings.get("auto_resume_from_checkpoints"):
        key, named = "auto_resume_from_checkpoints", any(run.output_dir.glob("checkpoint-*"))
    if not named:
        return
    if isinstance(named, str) and not Path(named).is_dir():
        yield Finding.of(
            key,
            expected=f"a checkpoint in {named}",
            got="no such folder",
            consequence="The run could not go on.",
            remedy="Correct the path.",
        )
        return
    try:
        evidence = Evidence.load(run.output_dir)
        (evidence.check_same if run.streams else evidence.cache)(run.pact, evidence.identity)
        if evidence.anchors is not None:
            Asked.load(run.pact.cache_folder / evidence.anchors)
    except PactError as error:
        yield Finding(key, error)
