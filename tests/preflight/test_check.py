"""`pact check`: a run's file is read for everything that would stop the run or leave PACT out of it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from packaging.version import Version

from pact_plugins.cli import main
from pact_plugins.demo import ALIGNED_MODEL
from pact_plugins.errors import PactError
from pact_plugins.evaluation.layouts import Kind
from pact_plugins.preflight import requirements
from pact_plugins.preflight.check import Check, check
from pact_plugins.preflight.requirements import TESTED, installed
from pact_plugins.preflight.run_file import PLUGIN
from pact_plugins.run.report.verdict import least_prompts

TRL = {"pact": True, "model_name_or_path": "m", "dataset_name": "d"}
TURNS = [{"role": "user", "content": "Hello"}]
AXOLOTL = {"pact": True, "plugins": [PLUGIN], "base_model": "m", "datasets": [{"path": "d", "type": "chat_template"}]}


def checked(folder: Path, settings: dict[str, Any], *arguments: str) -> Check:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return check(path, arguments=arguments)


def test_the_tested_range_is_what_the_tests_run_with() -> None:
    """Prevents a range of releases that nobody tries."""
    found = {name: Version(Version(version(name)).public) for name in TESTED if installed(name) is not None}
    ends = {name: [Version(end) for end in TESTED[name]] for name in found}
    if "axolotl" in found:  # which pins what it stands on, somewhere in between
        assert all(ends[name][0] <= release <= ends[name][1] for name, release in found.items())
    else:
        assert found in [{name: ends[name][end] for name in found} for end in (0, 1)]


def test_another_release_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents silence about releases that were never tried, and a refusal of each new one."""
    monkeypatch.setitem(TESTED, "torch", ("1.0", "1.1"))
    found = checked(tmp_path, TRL)
    assert found.sound
    assert "torch" in [finding.key for finding in found.warnings]


def test_dpo_is_told_as_it_is_served(tmp_path: Path) -> None:
    """Prevents a table that promises damping and a reference of rows where anchors alone are held."""
    found = checked(tmp_path, {**AXOLOTL, "rl": "dpo"})
    assert not [finding for finding in found.errors if finding.key == "rl"]
    assert (found.will["conflict"], found.will["anchors"]) == ("keep", "4 rows beside each step")
    assert "no row is held" in found.will["reference"]


def test_a_missing_requirement_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents the worst of Axolotl's ways to fail open: a plugin that cannot be imported is logged and left out."""
    absent = "safetensors"
    monkeypatch.setattr(requirements, "installed", lambda name: None if name == absent else "999")
    found = checked(tmp_path, AXOLOTL)
    (error,) = [finding for finding in found.errors if finding.key == absent]
    assert 'pip install "pact-plugins[axolotl]"' in str(error.error)


@pytest.mark.parametrize(("settings", "absent"), [(TRL, ("trl", "peft", "datasets")), (AXOLOTL, ("axolotl",))])
def test_a_missing_host_is_a_warning(
    settings: dict[str, Any], absent: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a check that works only where the run will, and a warning that leaves the extra to be guessed."""
    real = installed
    monkeypatch.setattr(requirements, "installed", lambda name: None if name in absent else real(name))
    found = checked(tmp_path, settings)
    assert found.sound
    (warning,) = found.warnings
    assert warning.key == absent[0]
    assert f'pip install "pact-plugins[{absent[0]}]"' in str(warning.error)


def test_off_is_said_and_not_refused(tmp_path: Path) -> None:
    """Prevents checks of PACT's needs on a run that does without, and silence about it."""
    found = checked(tmp_path, TRL | {"pact": False, "streaming": True, "rl": "dpo"})
    assert found.sound
    assert "off" in found.will["PACT"]


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    """Prevents a refusal of what the command line corrects, and of what it makes worse, silence."""
    wrong = TRL | {"streaming": True}
    assert not checked(tmp_path, wrong).sound
    assert checked(tmp_path, wrong, "--streaming", "false").sound
    assert not checked(tmp_path, TRL, "--streaming", "--max_steps=3", "--dataset-streaming", "true").sound


def test_all_errors_come_at_once(tmp_path: Path) -> None:
    """Prevents a user who corrects one key after the other, and an error that names no key."""
    found = checked(
        tmp_path, TRL | {"dataset_streaming": True, "fsdp": "full_shard", "use_peft": True, "load_in_4bit": True}
    )
    assert [finding.key for finding in found.errors] == ["load_in_4bit", "dataset_streaming"]
    with pytest.raises(PactError, match=r"load_in_4bit.*dataset_streaming") as caught:
        found.require_sound()
    assert str(caught.value).count("Expected") == 1


def test_a_model_of_a_run_under_pact_is_a_warning(tmp_path: Path) -> None:
    """Prevents a second run that takes worn refusals for the reference, unnoticed."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pact_evidence.json").write_text("{}")
    found = checked(tmp_path, TRL | {"model_name_or_path": str(tmp_path / "out")})
    assert found.sound
    assert [finding.key for finding in found.warnings] == ["model"]


@pytest.mark.parametrize("beside", [-1, 0])
def test_too_few_questions_are_a_warning(beside: int, tmp_path: Path) -> None:
    """Prevents a run whose report can never say that it held, as one set up by an example did."""
    limit = least_prompts() + beside
    found = checked(tmp_path, TRL | {"pact": {"eval": {"limit": limit}}})
    assert found.sound
    assert [finding.key for finding in found.warnings] == ["pact.eval.limit"] * (beside < 0)


@pytest.mark.parametrize("beside", [-1, 0])
@pytest.mark.parametrize("kind", ["task", "harmful"])
def test_too_few_prompts_of_your_own_are_a_warning(kind: Kind, beside: int, tmp_path: Path) -> None:
    """Prevents a task, or prompts, of which the report can never say what they are asked for."""
    path = tmp_path / "mine.csv"
    path.write_text("prompt,answer\n" + "".join(f"What is {i}?,{i}\n" for i in range(least_prompts(kind) + beside)))
    asked = {"task": str(path)} if kind == "task" else {"prompts": [f"{path}:harmful"]}
    found = checked(tmp_path, TRL | {"pact": {"eval": asked}})
    assert found.sound
    assert [f.key for f in found.warnings] == [f"pact.eval.{'task' if kind == 'task' else 'prompts'}"] * (beside < 0)


def test_full_files_make_up_for_empty_ones(tmp_path: Path) -> None:
    """Prevents a refusal of data that hosts load, and silence where another data set cannot be."""
    full, empty = tmp_path / "full.jsonl", tmp_path / "empty.jsonl"
    full.write_text('{"text": "Hello"}\n')
    empty.touch()
    beside = {"path": "json", "data_files": [str(empty), str(full)]}
    assert checked(tmp_path, TRL | {"datasets": [beside]}).sound
    assert not checked(tmp_path, TRL | {"datasets": [beside, {"path": "json", "data_files": str(empty)}]}).sound
    assert not checked(tmp_path, AXOLOTL | {"datasets": [{"path": str(empty), "type": "chat_template"}]}).sound


@pytest.mark.parametrize(
    ("row", "file", "settings", "sound"),
    [
        ({"messages": TURNS}, None, {}, False),
        ([{"prompt": TURNS, "completion": TURNS}], None, {}, False),
        ({"messages": TURNS, "input_ids": [1]}, None, {}, True),
        ({"text": "Hello"}, None, {}, True),
        ({"prompt": "Hello", "completion": "Hi"}, None, {}, True),
        ("Hello", None, {}, True),
        ({"messages": TURNS}, ("chat_template.jinja", "{{ messages }}"), {}, True),
        ({"messages": TURNS}, ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}'), {}, True),
        ({"messages": TURNS}, ("tokenizer_config.json", '{"auto_map": {}, "a": 1'), {}, True),
        ({"messages": TURNS}, ("processor_config.json", "{}"), {}, True),
        ({"messages": TURNS}, None, {"chat_template_path": str(ALIGNED_MODEL)}, True),
    ],
)
def test_conversations_need_a_template(
    row: Any, file: tuple[str, str] | None, settings: dict[str, Any], sound: bool, tmp_path: Path
) -> None:
    """Prevents a stack trace of TRL's after a clean check, and a refusal of what needs no template or has one."""
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    model.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (model / name).write_text('{"model_max_length": 64}')
    if file is not None:
        (model / file[0]).write_text(file[1])
    rows.write_text(f"{json.dumps(row)}\n")
    data = {"model_name_or_path": str(model), "datasets": [{"path": "json", "data_files": str(rows)}]}
    assert checked(tmp_path, {"pact": True, **data, **settings}).sound == sound


def test_the_command(tmp_path: Path) -> None:
    """Prevents exit codes or words that a script cannot rely on."""
    path = tmp_path / "run.yaml"
    for settings, code in ((TRL, 0), ({**TRL, "pact": None}, 1)):
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        shown = CliRunner().invoke(main, ["check", str(path)])
        printed = CliRunner().invoke(main, ["check", str(path), "--json"])
        assert (shown.exit_code, printed.exit_code) == (code, code), shown.output
        found = json.loads(printed.output)
        assert found["sound"] == (code == 0)
        assert [error["key"] for error in found["errors"]] == (["pact"] if code else [])
        assert ("error `pact`: Expected" in shown.output) == bool(code)
        assert found["will"]["model"] == "m"
        assert shown.output.endswith(f"\n{'1 error' if code else '0 errors'}, 0 warnings\n")


def test_variables_of_the_file_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a refusal of `$VARIABLE` that TRL sets from the same file (`env`), and one that stays set afterwards."""
    monkeypatch.delenv("SCRATCH", raising=False)
    settings = TRL | {"pact": {"cache_dir": "$SCRATCH/pact"}}
    assert not checked(tmp_path, settings).sound
    found = checked(tmp_path, settings | {"env": {"SCRATCH": str(tmp_path)}})
    assert found.sound
    assert found.will["reference"] == f"in {tmp_path / 'pact'}"
    assert not checked(tmp_path, settings).sound


def test_a_variable_that_no_host_fills_in_is_a_warning(tmp_path: Path) -> None:
    """Prevents: weights below a folder called `$SCRATCH`, on the disk of the working folder."""
    (warning,) = (f for f in checked(tmp_path, TRL | {"output_dir": "$SCRATCH/out"}).warnings if f.key == "output_dir")
    assert "fill in no variable" in str(warning.error)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (TRL, [{"eval_strategy": "steps"}]),
        (AXOLOTL, [{"val_set_size": 0.1}, {"test_datasets": [{"path": "d", "type": "chat_template"}]}]),
    ],
)
def test_a_task_from_the_eval_split_needs_one(
    settings: dict[str, Any], kept: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Prevents a run that stops when its model is loaded, for want of rows that the file does not keep."""
    asks = settings | {"pact": {"eval": {"task": "split"}}}
    for none in ({}, {"eval_strategy": "no", "val_set_size": 0.0}):
        (error,) = checked(tmp_path, asks | none).errors
        assert (error.key, "no eval split" in error.got or "no `" in error.got) == ("pact.eval.task", True)
    for has in kept:
        found = checked(tmp_path, asks | has)
        assert found.sound
        assert "its own eval split" in found.will["questions"]


@pytest.mark.parametrize("changes", [{}, {"use_peft": False}, {"chat_template_path": "chat.jinja"}, {"tied": False}])
def test_a_cloned_template_may_add_tokens(changes: dict[str, Any], tmp_path: Path) -> None:
    """Prevents: a run that loads its model to find out that its loss cannot train the tokens of a cloned template."""
    settings = {"use_peft": True, "chat_template_path": "a-chat-model", "tied": True, **changes}
    config = {"text_config": {"tie_word_embeddings": settings.pop("tied")}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = checked(tmp_path, TRL | {"model_name_or_path": str(tmp_path), **settings})
    warned = [finding for finding in found.warnings if finding.key == "chat_template_path"]
    assert bool(warned) is not bool(changes)
