"""The shape of the package: rooms in one order, imports along it, and what is optional stays optional."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from pkgutil import iter_modules

import pytest

import pact_plugins
from tests.conftest import DEAREST, PINS

PACKAGE = Path(pact_plugins.__file__).parent
DOCS = PACKAGE.parent / "docs"

ORDER = [
    "errors",
    "config",
    "chat",
    "model",
    "storage",
    "method",
    "evaluation",
    "run",
    "preflight",
    "axolotl",
    "demo",
    "cli",
    "__main__",
]
"""Each may import the ones before it."""

ROOMS = [name for name in ORDER if (PACKAGE / name).is_dir()]
AT_MOST = 12
"""Names at the top of the package: more, and nobody sees the whole."""

MAY_IMPORT_TRL = {"demo", "cli"}
MAY_IMPORT_AXOLOTL = {"axolotl"}

FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def _room(path: Path) -> str:
    """What a file belongs to, of `ORDER`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _name(path: Path) -> str:
    """Full name of the module that a file is."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in FILES}


def _nodes(path: Path, *, in_functions: bool) -> Iterator[ast.AST]:
    """All parts of a module; those of functions, which run later than its import, if wanted."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        yield node
        if in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)


def _imports(path: Path, *, in_functions: bool = True) -> Iterator[str]:
    """Full names of everything that a file imports; relative imports are spelt out."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in _nodes(path, in_functions=in_functions):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (prefix, node.module) if part)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _own(path: Path) -> Iterator[list[str]]:
    """What a file imports of this package, as parts: a room or module at its top, and what of it."""
    for name in _imports(path):
        top, *parts = name.split(".")
        # `from pact_plugins import __version__` names an attribute, not a module.
        if top == "pact_plugins" and parts and (parts[0] in ORDER or not hasattr(pact_plugins, parts[0])):
            yield parts


def _public(room: str) -> list[str]:
    return list(importlib.import_module(f"pact_plugins.{room}").__all__)


def _contents(room: str) -> set[str]:
    """Modules and packages in a room."""
    return {found.name for found in iter_modules([str(PACKAGE / room)])}


def test_the_top_is_seen_at_a_glance() -> None:
    """Prevents: a module beside the rooms, a room without a place in the order, and an order of what is gone."""
    beside = {"py.typed", "__pycache__", "__init__.py"}
    top = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name not in beside}
    assert top == {*ORDER}
    assert len([name for name in top if not name.startswith("__")]) <= AT_MOST


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_along_the_order(path: Path) -> None:
    """Prevents: a cycle of rooms, or a low-level module that quietly comes to depend on a trainer."""
    room = _room(path)
    assert {parts[0] for parts in _own(path)} <= {*ORDER[: ORDER.index(room) + 1]}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_are_entered_by_their_doors(path: Path) -> None:
    """Prevents: use of what a room keeps to itself, which then can no longer change with that room alone."""
    private = {
        f"{room}.{what[0]}" for room, *what in _own(path) if room in ROOMS and what and what[0] not in _public(room)
    }
    assert not {name for name in private if name.partition(".")[0] != _room(path)}


@pytest.mark.parametrize("room", ROOMS)
def test_doors_are_used(room: str) -> None:
    """Prevents: rooms that offer what nobody asks for, or what there is not."""
    entered = {
        what[0] for path in FILES if _room(path) != room for other, *what in _own(path) if other == room and what
    }
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(rf"pact_plugins\.{room}\.(\w+)", page))
    modules = _contents(room)
    assert modules & {*_public(room)} == modules & (entered | documented)
    assert all(hasattr(sys.modules[f"pact_plugins.{room}"], name) for name in {*_public(room)} - modules)


def test_no_module_waits_for_itself() -> None:
    """Prevents: modules of one room that can only be read together. What a function imports when called is no part."""
    graph = {
        name: {m for i in _imports(path, in_functions=False) for m in _module_of(i) if m != name}
        for name, path in MODULES.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


def _module_of(imported: str) -> Iterable[str]:
    """The module that an imported name is, or is in."""
    for name in (imported, imported.rpartition(".")[0]):
        if name in MODULES:
            return [name]
    return []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_trainers_are_imported_in_their_own_modules(path: Path) -> None:
    """Prevents: an import of an optional trainer that only fails on a machine that does not have it."""
    roots = {name.split(".")[0] for name in _imports(path)}
    assert "trl" not in roots or _room(path) in MAY_IMPORT_TRL
    assert "axolotl" not in roots or _room(path) in MAY_IMPORT_AXOLOTL


def test_loss_is_torch_alone() -> None:
    """Prevents: settings or models entering the maths, which then can be tested only with a trainer."""
    roots = {name.split(".")[0] for name in _imports(PACKAGE / "method" / "loss.py")}
    assert "torch" in roots
    assert roots - set(sys.stdlib_module_names) == {"torch"}


def _shown(pattern: str, text: str) -> list[str]:
    return re.findall(pattern, text, re.MULTILINE)


def test_the_architecture_is_the_order() -> None:
    """Prevents: a page that shows another order than imports have, or leaves a room or a module out."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rooms = page.partition("## Rooms")[2].partition("\n## ")[0]
    assert _shown(r"^\| `(\w+)(?:/|\.py)` \|", rooms) == ORDER
    for room in ROOMS:
        listed = rooms.partition(f"### {room}/\n")[2].partition("\n### ")[0]
        assert sorted(_shown(r"^- `(\w+)/?`: ", listed)) == sorted(_contents(room)), room


def test_models_are_loaded_in_one_place() -> None:
    """Prevents: a command that refuses, or loads in part, a checkpoint that sees images and that the hosts train."""
    naming = {
        name for name, path in MODULES.items() if "AutoModelForCausalLM" in path.read_text() and _room(path) != "demo"
    }
    assert naming == {"pact_plugins.model.loading"}


def _run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_is_light() -> None:
    """Prevents: `import pact_plugins` in a plugin list failing, or costing seconds, for what is not used."""
    heavy = ("torch", "transformers", "trl", "axolotl", "peft", "datasets")
    rooms = ", ".join(f"pact_plugins.{room}" for room in ROOMS)
    assert _run(f"import sys, pact_plugins, {rooms}; print([m for m in {heavy} if m in sys.modules])") == "[]"


@pytest.mark.parametrize("name", pact_plugins.__all__)
def test_public_names_resolve(name: str) -> None:
    """Prevents: a documented name that only a type checker can see."""
    assert getattr(pact_plugins, name).__name__ == name


def test_core_imports_without_a_trainer() -> None:
    """Prevents: the core needing TRL, Axolotl, PEFT or datasets, which are extras."""
    before = ORDER[: ORDER.index("axolotl")]
    core = ", ".join(name for name, path in MODULES.items() if _room(path) in before and "lm_eval_tasks" not in name)
    blocked = "import sys; sys.modules.update(dict.fromkeys(('trl', 'axolotl', 'datasets', 'peft')))"
    assert _run(f"{blocked}; import {core}; print('ok')") == "ok"


def test_unknown_attribute_is_an_attribute_error() -> None:
    """Prevents: `hasattr(pact_plugins, ...)` raising, or answering yes to anything."""
    assert not hasattr(pact_plugins, "no_such_name")


@pytest.mark.parametrize("name", PINS)
def test_what_runs_in_both_environments_is_there(name: str) -> None:
    """Prevents: a sample of the older releases that was renamed, and then is of nothing."""
    path, _, test = name.partition("::")
    assert f"def {test}" in (Path(__file__).parent / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DEAREST)
def test_what_begins_first_is_there(name: str) -> None:
    """Prevents: an order of files that are not there any more."""
    assert (Path(__file__).parent / name).exists()
