"""The README and the pages of docs/ say what the code says: their snippets run, what they name is there."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import runpy
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from docs import command_line, configuration, demo
from pact_plugins import PactCallback
from pact_plugins.cli import main
from pact_plugins.config import PactConfig
from pact_plugins.demo import comparison
from pact_plugins.method import openings
from pact_plugins.run.report.verdict import least_prompts
from tests.test_house import ORDER

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

NEEDS_A_TRAINER = {"configuration.md": 'PactCallback(trainer, weight=0.3, eval={"limit": 96})'}
"""Blocks of Python that cannot run, because they begin in the middle of a script: page and first line."""
SCRIPTS = {"tutorial-trl.md": "import torch"}
"""Blocks that are a file of example_configs too, which `test_examples_run` runs: page and first line."""

BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)
REPOSITORY = re.compile(
    r"(?<![\w/.~-])(?:\./)?((?:docs|tests|benchmarks|example_configs|requirements|pact_plugins)/[\w./-]*\w)"
)


@dataclass(frozen=True)
class Code:
    """A block of a page: what language it says it is in, and its text."""

    page: Path
    language: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        return self.page.name, self.text.splitlines()[0]


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return BLOCK.sub("", _text(page))


def _blocks(page: Path) -> Iterator[Code]:
    """Fenced blocks, and indented ones, whose language is not said."""
    yield from (Code(page, language, text) for language, text in BLOCK.findall(_text(page)))
    for block in INDENTED.findall(_prose(page)):
        if block.strip():
            yield Code(page, "", re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip("\n") + "\n")


def _inline(page: Path) -> list[str]:
    return [re.sub(r"\s+", " ", text) for text in INLINE.findall(_prose(page))]


BLOCKS = [block for page in PAGES for block in _blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def _name(value: Any) -> str:
    return value.name if isinstance(value, Path) else f"{value.page.name}: {value.text.splitlines()[0]}"


def test_the_configuration_page_is_the_schema() -> None:
    """Prevents a reference of keys, bounds or defaults that no longer hold."""
    shown = configuration.PAGE.read_text(encoding="utf-8")
    assert shown == configuration.page(), "run `python -m docs.configuration`"
    assert all(f"| `{key}` |" in shown for key in PactConfig.model_fields)


@pytest.mark.trl
def test_the_command_line_page_is_the_help() -> None:
    """Prevents a page of options that no longer hold. Needs the pinned release of click, which lays the help out."""
    assert _text(command_line.PAGE) == command_line.page(), "run `python -m docs.command_line`"


def test_the_readme_shows_the_demo() -> None:
    """Prevents a table that is not the shipped demo's, or that lacks one of its runs."""
    readme = _text(ROOT / "README.md")
    rates = json.loads(demo.FIGURES.read_text(encoding="utf-8"))["rates"]
    shown = re.findall(r"^\| `(\w+)`: [^|]*\| (.*) \|$", readme, re.MULTILINE)

    def cell(run: str, measure: str, kind: str) -> str:
        return ", ".join(f"{r[run]:.1%}" for r in rates if (r["measure"], r["kind"]) == (measure, kind))

    columns = [
        ("refusal_rate", "harmful"),
        ("affirmative_opening_rate", "harmful"),
        ("over_refusal_rate", "harmless"),
        ("task_accuracy", "task"),
    ]
    assert shown == [(run, " | ".join(cell(run, *column) for column in columns)) for run in comparison.IN_WORDS]
    assert f"]({demo.PICTURE.relative_to(ROOT)})" in readme


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.key[0] == "README.md" and b.language == "diff"], ids=_name)
def test_the_readme_changes_real_files(block: Code) -> None:
    """Prevents a change that fits no file that runs, but for settings, which the README leaves at their defaults."""
    lines = {line[1:] for line in block.text.splitlines()} - {"..."}
    texts = [_text(path) for path in (ROOT / "example_configs").rglob("*") if path.is_file()]
    assert any(
        lines <= set(re.sub(r"PactCallback\(trainer, .*\)\)", "PactCallback(trainer))", t).splitlines()) for t in texts
    )


def test_the_metrics_are_those_of_the_callback() -> None:
    """Prevents a number in the log that no page explains."""
    assert PactCallback.__doc__ is not None
    logged = re.findall(r"`(pact/\w+)`", PactCallback.__doc__)
    assert sorted(logged) == sorted({*re.findall(r"`(pact/\w+)`", _text(ROOT / "docs" / "metrics.md"))})


@pytest.mark.parametrize("block", [b for b in PYTHON if b.key not in SCRIPTS.items()], ids=_name)
def test_python_runs(block: Code) -> None:
    """Prevents a snippet that fails where it is pasted."""
    code = compile(block.text, block.page.name, "exec")
    if block.key not in NEEDS_A_TRAINER.items():
        exec(code, {"__name__": "snippet"})


@pytest.mark.parametrize("block", [b for b in PYTHON if b.key in SCRIPTS.items()], ids=_name)
def test_scripts_are_files(block: Code) -> None:
    """Prevents a script that was mended in one of its two places."""
    assert block.text in [_text(path).partition('"""\n\n')[2] for path in (ROOT / "example_configs").glob("*.py")]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the top of the repository, to be written into."""
    for folder in ("pact_plugins", "example_configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PACT_CACHE_DIR", str(tmp_path / "cache"))
    # Commands of a notebook are those of this environment.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def _check_protected(run: Path) -> None:
    from pact_plugins.run.verification import verify

    assert verify(run).holds
    assert (run / "pact_report" / "report.html").exists()


@pytest.mark.trl
def test_the_script_trains(checkout: Path) -> None:
    """Prevents a tutorial whose run does not start, or is not under PACT."""
    runpy.run_path("example_configs/trl_script.py", run_name="__main__")
    _check_protected(checkout / "outputs" / "first-run")


@pytest.mark.trl
def test_the_notebook_runs(checkout: Path) -> None:
    """Prevents a notebook with a cell that fails, or whose story is not what its cells show."""
    import nbformat
    from nbclient import NotebookClient

    notebook: Any = nbformat.read("example_configs/trl_notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without results"
    all_three = "print(*(answers['harmful'] for answers in (before, plain, protected)), sep='|')"
    notebook.cells.append(nbformat.v4.new_code_cell(all_three))
    NotebookClient(notebook, timeout=300).execute()
    _check_protected(checkout / "outputs" / "trl-notebook" / "pact")
    said = notebook.cells[-1].outputs[0].text.split("|")
    assert [openings.is_refusal(answer) for answer in said] == [True, False, True], said


def test_what_cannot_run_is_still_there() -> None:
    """Prevents an exception that outlives its snippet, and then excuses another one."""
    assert {*NEEDS_A_TRAINER.items(), *SCRIPTS.items()} <= {block.key for block in PYTHON}


def _settings(page: Path) -> Iterator[Any]:
    """Everything on a page that stands behind a key `pact`, as YAML reads it."""
    for block in _blocks(page):
        text = re.sub(r"^[+ ]", "", block.text, flags=re.MULTILINE) if block.language == "diff" else block.text
        if block.language in ("", "yaml", "diff") and re.search(r"^pact:", text, re.MULTILINE):
            start = text if block.language == "yaml" else text[text.index("pact:") :].splitlines()[0]
            yield yaml.safe_load(start)["pact"]
    yield from _inline_settings(_inline(page))


def _inline_settings(texts: Iterable[str]) -> Iterator[Any]:
    """Those of the texts that set a key of the block, as YAML reads them."""
    for text in texts:
        if text.partition(": ")[0] in {"pact", *PactConfig.model_fields} and ": " in text:
            written = yaml.safe_load(text)
            yield written.get("pact", written)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_settings_are_those_of_the_schema(page: Path) -> None:
    """Prevents a block that stops the run of whoever copies it, and a key that there is not."""
    for value in _settings(page):
        config = PactConfig.parse(value)
        assert (config is None) == (value is False)
        asked = config.active_eval if config else None
        assert not (asked and asked.limit) or asked.limit >= least_prompts(), "a report that can never say it held"
    for key in re.findall(r"^pact\.([a-z_.]+)$", "\n".join(_inline(page)), re.MULTILINE):
        block, *inner = key.split(".")
        assert block in PactConfig.model_fields
        assert not inner or inner[0] in configuration.BLOCKS[f"pact.{block}"].model_fields


def _messages() -> Iterator[str]:
    """Every string of the package that is written as one, so without those into which a value is put."""
    for path in (ROOT / "pact_plugins").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        yield from (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_settings_in_messages_are_those_of_the_schema() -> None:
    """Prevents a remedy that the next run refuses."""
    advised = [*_inline_settings(text for message in _messages() for text in INLINE.findall(message))]
    assert {"prompts": {"harmful": "FILE", "harmless": "FILE"}} in advised
    for value in advised:
        PactConfig.parse(value)


def test_how_many_prompts_are_needed_is_told() -> None:
    """Prevents a number that the rules have outgrown."""
    page = Path("docs/report.md").read_text(encoding="utf-8")
    assert f"{least_prompts()} prompts of a set are the least" in page
    assert f"{least_prompts('harmful')} harmful ones" in page


def _commands(page: Path) -> Iterator[list[str]]:
    """Commands of this project on a page, as lists of words."""
    shown = "\n".join(b.text for b in _blocks(page) if b.language in ("", "bash", "text")).replace("\\\n", " ")
    for line in [*shown.splitlines(), *_inline(page)]:
        found = re.search(r"(?:^|--no-python |\$\()(?=(?:pact|axolotl pact-train|make|python -m) )", line)
        if found:
            yield line[found.end() :].partition(" #")[0].partition(")")[0].split()


COMMANDS = [pytest.param(words, id=f"{page.name}: {' '.join(words)}") for page in PAGES for words in _commands(page)]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_exist(words: list[str]) -> None:
    """Prevents a command, an option, a target or a module that a reader types in vain."""
    program, *rest = words
    options = {word.partition("=")[0] for word in rest if word.startswith("--")}
    if program == "make":
        assert all(re.search(rf"^{t}:", _text(ROOT / "Makefile"), re.MULTILINE) for t in rest)
    elif program == "python":
        assert find_spec(rest[1]), rest[1]
        sources = [find_spec(rest[1]), find_spec(f"{rest[1]}.__main__") if _is_package(rest[1]) else None]
        source = "".join(_text(Path(s.origin)) for s in sources if s and s.origin)
        assert all(f'"{option}"' in source for option in options), options
    elif program == "axolotl":
        assert f"{rest[0]} = " in _text(ROOT / "pyproject.toml")
    else:
        command: click.Command = main
        while isinstance(command, click.Group) and rest and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        assert not isinstance(command, click.Group) or not rest or rest[0].startswith("-"), f"no command {rest[0]}"
        known = {option for parameter in command.params for option in parameter.opts}
        passes_on = command.context_settings.get("ignore_unknown_options")
        assert passes_on or options <= {*known, "--help"}, options - known


def _is_package(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


def test_commands_are_found() -> None:
    """Prevents a search that finds nothing, and then nothing wrong."""
    programs = [words[0] for page in PAGES for words in _commands(page)]
    assert programs.count("pact") > 40
    assert {"make", "python", "axolotl"} <= {*programs}
    assert sum(1 for page in PAGES for _ in _settings(page)) > 10


def test_extras_exist() -> None:
    """Prevents an installation that silently leaves out what a page asks for: pip only warns of an unknown extra."""
    shown = [e for page in PAGES for e in re.findall(r'(?:pact-plugins|"\.)\[([\w,-]+)\]', _text(page))]
    assert len(shown) > 2
    for extra in ",".join(shown).split(","):
        assert re.search(rf"^{extra} = \[", _text(ROOT / "pyproject.toml"), re.MULTILINE), extra


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_paths_exist(page: Path) -> None:
    """Prevents a page that names files which were moved."""
    named = {path for path in REPOSITORY.findall(_text(page)) if not path.startswith("docs/_build")}
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    """Prevents links that are dead where the pages are read as files, on a code host."""
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target


def _anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.*)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_names_of_the_code_exist(page: Path) -> None:
    """Prevents pages that point to functions and classes which were renamed."""
    for text in _inline(page):
        name = text.removeprefix("pact_plugins.").partition("(")[0]
        first, *rest = name.split(".")
        of_a_host = first == "axolotl" or name == "trl.SFTTrainer"
        is_file = rest[-1:] and rest[-1] in ("md", "html", "json", "jsonl", "py", "safetensors", "yaml")
        if rest and first in ORDER and re.fullmatch(r"[\w.]+", name) and not of_a_host and not is_file:
            _resolve(f"pact_plugins.{first}", rest)


def _resolve(module: str, names: list[str]) -> None:
    """Fails unless `names` lead from a module to something in it."""
    value: Any = importlib.import_module(module)
    for name in names:
        known = hasattr(value, name) or name in getattr(value, "__annotations__", {})
        value = getattr(value, name, None) if known else importlib.import_module(f"{value.__name__}.{name}")
