"""What holds of every command: its help, how it ends, what it prints where, and what the shell completes."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pact_plugins.cli import main
from pact_plugins.demo import ALIGNED_MODEL
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.model import progress as bars
from pact_plugins.model.progress import progress
from pact_plugins.run import verification
from tests import tiny
from tests.brief import few_prompts
from tests.contract.commands import shortened

WORKFLOW = [
    "tokens",
    "inspect",
    "cache",
    "estimate",
    "check",
    "audit",
    "sft",
    "eval",
    "report",
    "compare",
    "verify",
    "demo",
]
WITHOUT_JSON = {"sft", "lm-eval-path"}
"""The first prints what TRL prints, the second one line for other commands."""


def every(group: click.Group = main) -> Iterator[tuple[str, click.Command]]:
    """All commands that do something, under the words that start them."""
    for name, command in group.commands.items():
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", found) for inner, found in every(command))


COMMANDS = dict(every())


def pact(*arguments: str, columns: int = 80) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="pact", terminal_width=columns)


def started(*arguments: str, **settings: str) -> subprocess.Popen[str]:
    """The command in a process of its own, as a shell without a terminal starts it."""
    command = [sys.executable, "-m", "pact_plugins", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings},
        # A shell lets what it starts in the background ignore Ctrl-C, and processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "tokens.json"
    SafetyTokens.build([40, 41], [0.6, 0.2], tiny.tokenizer(), {"method": "test"}).save(path)
    return str(path)


@pytest.mark.parametrize("columns", [80, 60])
def test_the_help_fits_a_screen(columns: int) -> None:
    """Prevents a first page that scrolls away, that cuts its sentences off, or that shows another order of work."""
    lines = pact("--help", columns=columns).stdout.splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= columns
    commands = lines[lines.index("Commands:") + 1 :]
    assert [line.split()[0] for line in commands] == WORKFLOW
    assert all(line.endswith(".") and not line.endswith("..") for line in commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    """Prevents a command that can only be understood from its source, or a result that no script can read."""
    shown = pact(*name.split(), "--help").stdout
    assert f"pact {name}" in shown.partition("\n  Example:\n    ")[2].partition("Options:")[0]
    assert ("--json" in shown) == (name not in WITHOUT_JSON)
    assert all(option.help for option in COMMANDS[name].params if isinstance(option, click.Option))
    assert max(map(len, shown.splitlines())) <= 80


def test_a_module_and_no_arguments() -> None:
    """Prevents `python -m pact_plugins` from being another command, and `pact` alone from saying nothing."""
    bare = pact()
    assert bare.output == pact("--help").output
    module = started()
    assert "".join(module.communicate(timeout=60)) == bare.output


def test_help_and_completion_load_no_torch() -> None:
    """Prevents seconds of waiting for a page of text, and at each press of the tab key."""
    code = """if True:
        import sys
        from click.shell_completion import BashComplete
        from pact_plugins.cli import main
        main(["eval", "--help"], standalone_mode=False)
        names = [item.value for item in BashComplete(main, {}, "pact", "_PACT_COMPLETE").get_completions([], "e")]
        print(names, {"torch", "transformers", "trl", "numpy"} & {*sys.modules})
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "['estimate', 'eval'] set()"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pact ver", {"verify"}),
        ("pact cache ", {"info", "verify", "clear"}),
        ("pact eval --max", {"--max-new-tokens"}),
        ("pact eval --engine ", {"transformers", "vllm"}),
        ("pact tokens --language e", {"en", "es"}),
    ],
)
def test_the_shell_completes(words: str, expected: set[str]) -> None:
    """Prevents a documented completion that completes nothing."""
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_PACT_COMPLETE": "bash_complete"}
    out, error = started(**asked).communicate(timeout=60)
    assert {line.partition(",")[2] for line in out.splitlines()} == expected, error


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    """Prevents a start-up file that fails."""
    out, _ = started(_PACT_COMPLETE=f"{shell}_source").communicate(timeout=60)
    assert f"_PACT_COMPLETE={shell}_complete" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("verify FOLDER", 1, "NOT under PACT"),
        ("verify FOLDER/none", 2, "does not exist"),
        ("verify FOLDER/empty", 2, "is a file"),
        ("check FOLDER/empty", 1, "a readable YAML file"),
        ("check FOLDER/none", 2, "does not exist"),
        ("inspect FOLDER/empty", 1, "a file written by `pact tokens`"),
        ("inspect FOLDER/none", 2, "does not exist"),
        ("inspect FOLDER", 2, "is a directory"),
        ("report FOLDER", 1, "a run under PACT"),
        ("estimate FOLDER/empty", 1, "a readable YAML file"),
        ("audit FOLDER/none", 2, "does not exist"),
        ("sft --config FOLDER/none", 1, "a readable YAML file"),
        ("cache info --dir FOLDER/none", 2, "does not exist"),
        ("cache verify --dir FOLDER", 0, "0 intact, 0 damaged"),
        ("tokens", 2, "--model"),
        ("tokens --model m --language klingon", 2, "'en', 'ar'"),
        ("tokesn --model m", 2, "No such command 'tokesn'"),
        ("eval --modle m", 2, "Did you mean"),
    ],
)
def test_exit_codes(arguments: str, code: int, words: str, tmp_path: Path) -> None:
    """Prevents a script that takes a misspelt path for a verdict, or an error for success; and any stack trace."""
    (tmp_path / "empty").touch()
    result = pact(*arguments.replace("FOLDER", str(tmp_path)).split())
    assert words in result.output
    assert result.exit_code == code
    assert isinstance(result.exception, SystemExit | None)


@pytest.mark.parametrize("command", ["check", "verify"])
def test_a_verdict_is_always_there_to_read(command: str, tmp_path: Path) -> None:
    """Prevents exit code 1 of a verdict "no" from being mistaken for that of an error, which prints no result."""
    (tmp_path / "empty").touch()
    result = pact(command, str(tmp_path / "empty" if command == "check" else tmp_path), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["sound" if command == "check" else "holds"] is False
    missing = pact(command, str(tmp_path / "none"), "--json")
    assert (missing.exit_code, missing.stdout) == (2, "")


def test_a_file_that_cannot_be_written(token_file: str, tmp_path: Path) -> None:
    """Prevents a stack trace where a folder is missing."""
    result = pact("inspect", token_file, "--html", str(tmp_path / "none" / "page.html"))
    assert result.exit_code == 1
    assert result.stderr == f"Error: {tmp_path / 'none' / 'page.html'}: No such file or directory.\n"


def test_an_error_of_ours_keeps_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a bug from being shown as a mistake of the user's, without its place."""
    monkeypatch.setattr(verification, "verify", lambda _folder, **_: [][0])
    assert isinstance(pact("verify", str(tmp_path)).exception, IndexError)


def test_what_is_printed_on_the_way_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents JSON that a host's line makes unreadable."""
    found = verification.Verification(tmp_path, ("nothing is there",), None)
    monkeypatch.setattr(verification, "verify", lambda _folder, **_: print("a host says hello") or found)
    result = pact("verify", str(tmp_path), "--json")
    assert json.loads(result.stdout)["faults"] == ["nothing is there"]
    assert result.stderr == "a host says hello\n"


def test_ctrl_c(tmp_path: Path) -> None:
    """Prevents a stack trace, or success, of an evaluation that was interrupted, and answers that are lost."""
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt\n" + "".join(f"How do I open lock number {i}?\n" for i in range(20_000)))
    out = tmp_path / "out"
    arguments = ("--model", str(ALIGNED_MODEL), "--prompts", f"{prompts}:harmless", "--out", str(out))
    process = started("eval", *arguments)
    answers = out / "answers.jsonl"
    until = time.monotonic() + 300
    while not (answers.exists() and answers.stat().st_size) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "Interrupted."
    assert printed == ""
    assert "Traceback" not in errors
    assert answers.stat().st_size


@pytest.mark.parametrize("command", ["inspect", "lm-eval-path"])
def test_a_reader_that_leaves(command: str, token_file: str) -> None:
    """Prevents a stack trace under `pact inspect tokens.json | head -1`: of a table, and of a line."""
    process = started(command, *([token_file] if command == "inspect" else []))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=60)


@pytest.mark.parametrize(
    ("terminal", "switch", "drawn"), [(True, None, True), (False, None, False), (True, "1", False)]
)
def test_progress_bars_are_for_terminals(
    terminal: bool, switch: str | None, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents bars in logs and under `--json`, bars in results, and none where someone waits."""
    stream, result = io.StringIO(), io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", result)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    if switch is not None:
        monkeypatch.setenv("TQDM_DISABLE", switch)
    assert list(progress("abc", "PACT: counting", 3)) == ["a", "b", "c"]
    assert ("PACT: counting" in stream.getvalue()) == drawn
    assert result.getvalue() == ""


def test_logs_get_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: minutes of silence where there is no terminal, or a line for every item."""
    stream, clock = io.StringIO(), iter(range(0, 1000, 20))
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(bars, "monotonic", lambda: next(clock))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    list(progress(range(5), "PACT: counting", 6, done=1))
    lines = ["PACT: counting: 3 of 6, about 1 min left", "PACT: counting: 5 of 6, about 0 min left"]
    assert stream.getvalue().splitlines() == lines
    list(progress(range(5), "PACT: counting", 5, False))
    assert stream.getvalue().splitlines() == lines


def test_logs_hold_no_bars(tmp_path: Path) -> None:
    """Prevents control characters in logs, also of bars that other libraries draw."""
    few = ("--limit", "2", "--max-new-tokens", "4", "--out", str(tmp_path))
    process = started("eval", "--model", str(ALIGNED_MODEL), *few, "--json")
    out, errors = process.communicate(timeout=300)
    assert json.loads(out)["measurements"]
    assert not {"\r", "\x1b", "█", "━"} & {*errors}, errors
    assert "TQDM_DISABLE" not in os.environ


@pytest.mark.demo
def test_the_examples_are_a_workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents an example that a newcomer pastes in vain, and a result that is not JSON."""
    pytest.importorskip("trl")
    monkeypatch.setenv("PACT_CACHE_DIR", str(tmp_path / "cache"))
    few_prompts(monkeypatch)
    (tmp_path / "my-chat-model").symlink_to(ALIGNED_MODEL)
    changes = {"model_name_or_path": "my-chat-model", "output_dir": "outputs/run"}
    shortened(tmp_path, "trl-demo-lora.yaml", **changes).rename(tmp_path / "run.yaml")
    monkeypatch.chdir(tmp_path)
    left_out = {"lm-eval-path", "demo"}  # for another program; minutes, and tests of its own
    names = [name for name in COMMANDS if name not in left_out]
    for name in sorted(names, key=lambda name: name.startswith("cache")):  # which are there after a run
        if name == "tokens diff":
            for copy in ("before.json", "after.json"):
                Path(copy).write_bytes(Path("tokens.json").read_bytes())
        if name == "compare":
            shutil.copytree("outputs/run", "outputs/plain")
        for line in (COMMANDS[name].help or "").partition("Example:\n")[2].replace("\\\n", " ").strip().splitlines():
            program, *words = shlex.split(line)
            result = pact(*words, *([] if name in WITHOUT_JSON else ["--json"]))
            assert program == "pact"
            assert result.exit_code == 0, f"{name}: {result.output}"
            assert name in WITHOUT_JSON or json.loads(result.stdout) is not None
    assert Path("outputs/run/pact_report/report.html").exists()
    assert Path("evaluation/evaluation.json").exists()
