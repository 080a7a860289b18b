"""What SECURITY.md promises of the package's own source: nothing in it runs what it reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import pact_plugins
from pact_plugins.preflight import run_file

PACKAGE = Path(pact_plugins.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "subprocess", "pty"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "os.startfile"),
    *("torch.load", "torch.save", "torch.hub.load"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all"),
}
FORBIDDEN_SETTINGS = {"trust_remote_code", "allow_pickle", "shell"}
"""Keywords that may only be given as `False`."""


def promises_broken(source: str) -> Iterator[str]:
    """Every place at which a module could run something that it was given, or load it through pickle."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"import {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.Call):
            yield from _call_broken(node)
        elif isinstance(node, ast.Dict):
            yield from (
                f"'{key.value}': ..."
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and key.value in FORBIDDEN_SETTINGS and not _is_false(value)
            )


def _call_broken(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in FORBIDDEN_CALLS:
        yield name
    if name == "yaml.load" and [ast.unparse(a) for a in call.args[1:]] != ["_KeysOnce"]:
        yield ast.unparse(call)
    if (
        name.endswith("Environment")
        and _is_false(given.get("autoescape", ast.Constant(False)))
        and "finalize" not in given
    ):
        yield f"{name} without escaping"
    yield from (f"{k}=..." for k in FORBIDDEN_SETTINGS & given.keys() if not _is_false(given[k]))


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    """Prevents a file, a model's name or a model's words from running in the process that reads them."""
    assert not list(promises_broken(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "import subprocess", "eval(text)", "exec(text)"),
        *("os.system(text)", "torch.load(path)", "np.load(path, allow_pickle=True)", "run(command, shell=True)"),
        *("AutoModel.from_pretrained(name, trust_remote_code=True)", "options = {'trust_remote_code': trusted}"),
        *("yaml.load(text)", "yaml.load(text, yaml.Loader)", "yaml.unsafe_load(text)", "jinja2.Environment()"),
        "jinja2.Environment(autoescape=False)",
    ],
)
def test_the_check_sees_each(source: str) -> None:
    """Prevents a check that finds nothing because it looks for nothing."""
    assert list(promises_broken(source))


def test_run_files_make_no_objects() -> None:
    """Prevents a YAML file from making any object of Python's."""
    assert issubclass(run_file._KeysOnce, yaml.SafeLoader)


def test_templates_escape_by_themselves() -> None:
    """Prevents a value in the report's page that was excepted from escaping."""
    for template in PACKAGE.rglob("*.html.j2"):
        assert not re.search(r"\|\s*safe\b|autoescape false", template.read_text(encoding="utf-8"))
