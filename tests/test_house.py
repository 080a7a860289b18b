"""The shape of the package: imports run along the flow, and what is optional stays optional."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pact_plugins

PACKAGE = Path(pact_plugins.__file__).parent

FLOW = [
    "errors",
    "ranks",
    "config_errors",
    "config",
    "run_file",
    "sharding",
    "fingerprints",
    "artefacts",
    "loading",
    "telling",
    "chat_template",
    "chat_format",
    "turns",
    "answers",
    "dataset",
    "model_support",
    "forward",
    "openings",
    "refusals",
    "own_answers",
    "asking",
    "anchors",
    "safety_tokens",
    "contrast",
    "discovery",
    "finding",
    "loss",
    "token_losses",
    "subset_head",
    "layer_states",
    "harm_probe",
    "parity",
    "probe",
    "tensor_files",
    "reference",
    "cache_writer",
    "cache_folder",
    "evidence",
    "weights",
    "building",
    "objective",
    "agreement",
    "profile",
    "cost",
    "cost_report",
    "coverage",
    "damping",
    "preparation",
    "evaluation",
    "report",
    "host_trainer",
    "recording",
    "reporting",
    "binding",
    "probing",
    "callback",
    "before_training",
    "requirements",
    "run_checks",
    "remarks",
    "checking",
    "check_table",
    "tokens_table",
    "guards",
    "estimate",
    "audit",
    "audit_table",
    "verification",
    "launching",
    "trl",
    "axolotl",
    "demo",
    "cli",
    "__main__",
]
"""Each module may import the ones before it."""

MAY_IMPORT_TRL = {"launching", "trl", "demo", "cli"}
MAY_IMPORT_AXOLOTL = {"axolotl"}

FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def _module(path: Path) -> str:
    """The part of the flow that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    """Full names of everything that a file imports, at any depth; relative imports are spelt out."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (prefix, node.module) if part)
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _own(path: Path) -> set[str]:
    """The package's modules that a file imports."""
    names = {name.split(".")[1] for name in _imports(path) if name.startswith("pact_plugins.")}
    # `from pact_plugins import __version__` names an attribute, not a module.
    return {name for name in names if name in FLOW or not hasattr(pact_plugins, name)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_along_the_flow(path: Path) -> None:
    """Prevents: a cycle, or a low-level module that quietly comes to depend on a trainer."""
    module = _module(path)
    assert module in FLOW, "a module without a place in FLOW: give it one"
    allowed = {*FLOW[: FLOW.index(module)], *([module] if path.parent != PACKAGE else [])}
    assert _own(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_trainers_are_imported_in_their_own_modules(path: Path) -> None:
    """Prevents: an import of an optional trainer that only fails on a machine that does not have it."""
    roots = {name.split(".")[0] for name in _imports(path)}
    module = _module(path)
    assert "trl" not in roots or module in MAY_IMPORT_TRL
    assert "axolotl" not in roots or module in MAY_IMPORT_AXOLOTL


def test_loss_is_torch_alone() -> None:
    """Prevents: settings or models entering the maths, which then can be tested only with a trainer."""
    roots = {name.split(".")[0] for name in _imports(PACKAGE / "loss.py")}
    assert "torch" in roots
    assert roots - set(sys.stdlib_module_names) == {"torch"}


def test_flow_is_up_to_date() -> None:
    """Prevents: a check against modules that were renamed, which would allow anything."""
    missing = {name for name in FLOW if not (PACKAGE / f"{name}.py").exists() and not (PACKAGE / name).is_dir()}
    assert not missing


def _run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_is_light() -> None:
    """Prevents: `import pact_plugins` in a plugin list failing, or costing seconds, for what is not used."""
    heavy = ("torch", "transformers", "trl", "axolotl", "peft", "datasets")
    assert _run(f"import sys, pact_plugins; print([m for m in {heavy} if m in sys.modules])") == "[]"


@pytest.mark.parametrize("name", pact_plugins.__all__)
def test_public_names_resolve(name: str) -> None:
    """Prevents: a documented name that only a type checker can see."""
    assert getattr(pact_plugins, name).__name__ == name


def test_core_imports_without_a_trainer() -> None:
    """Prevents: the core needing TRL, Axolotl, PEFT or datasets, which are extras."""
    core = ", ".join(f"pact_plugins.{m}" for m in FLOW[: FLOW.index("callback")])
    blocked = "import sys; sys.modules.update(dict.fromkeys(('trl', 'axolotl', 'datasets', 'peft')))"
    assert _run(f"{blocked}; import {core}; print('ok')") == "ok"


def test_unknown_attribute_is_an_attribute_error() -> None:
    """Prevents: `hasattr(pact_plugins, ...)` raising, or answering yes to anything."""
    assert not hasattr(pact_plugins, "no_such_name")
