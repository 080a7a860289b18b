"""The page of model families: what is constrained of conversations of every shape, under published tokenizers.

`python -m tests.families_page` writes its rows anew: those of Axolotl's templates where Axolotl is installed, and the
others where the newest TRL is.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pact_plugins.storage import files
from tests.conversations import MASKS, SHAPES, found, left_alone, row
from tests.published import FAMILIES

PAGE = Path(__file__).parents[1] / "docs" / "families.md"

_HEAD = """# Model families

What PACT constrains under stand-ins for the tokenizers of model families (`tests/published.py`), and the chat
templates that TRL and Axolotl ship, or one of the project's own that writes the same markers. Flags and names of
{checked} of the {families} families were compared with public copies of their files, or with what makes them (the
last column says which); those of {partly} in part; those of {unchecked} are written down from knowledge. The rest of
each stand-in is one token a byte, with tokens that join blanks and line breaks as those of Llama 3 and Qwen do. A
family is tried with every shape of conversation that its template has:

{shapes}

Each is tried with these tokens trained on:

{masks}

*Supervised* are the tokens of assistants that are trained on: their own words, thoughts and calls of tools. A token
that joins the end of the header with blanks that an answer begins with is the header's.
*Constrained* are those of them under the safety term. *Outside* are constrained tokens of users, systems and tools, and
of the ends of their turns: none may be.

This page is made by `python -m tests.families_page` in both environments, and tested to be up to date.

| family | template | shapes | constrained / supervised | outside | flags checked against |
|---|---|---|---|---|---|
"""


def page() -> str:
    """All of it; the rows that are not told here are kept."""
    lists = ("\n".join(f"- {name}" for name in names) for names in (SHAPES, MASKS))
    head = _HEAD.format(**dict(zip(("shapes", "masks"), lists, strict=True)), families=len(FAMILIES), **_checked())
    kept = {row.split(" | ")[0]: row for row in PAGE.read_text(encoding="utf-8").splitlines(keepends=True)}
    return head + "".join(line(name) if told_here(name) else kept.get(f"| {name}", "") for name in FAMILIES)


def _checked() -> dict[str, int]:
    """How many families were compared with public files, in part, and not."""
    unchecked = sum(family.source is None for family in FAMILIES.values())
    partly = sum(family.source is not None and family.unseen is not None for family in FAMILIES.values())
    return {"checked": len(FAMILIES) - unchecked - partly, "partly": partly, "unchecked": unchecked}


def told_here(name: str) -> bool:
    """Whether this environment is the one whose templates a family's row is made with."""
    return bool(find_spec("axolotl")) == FAMILIES[name].template.startswith("axolotl/")


def line(name: str) -> str:
    """The row of one family."""
    rows = [r for shape in SHAPES.values() if (r := row(name, shape)) is not None]
    counts = np.zeros(3, int)
    for r in rows:
        for labels in MASKS.values():
            supervised, constrained = found(name, r, labels(r))
            own = supervised & r.of("assistant")
            counts += [(constrained & own).sum(), own.sum(), (constrained & left_alone(r)).sum()]
    family = FAMILIES[name]
    template = f"`{family.template}`" if "{" not in family.template else "own"
    shapes = f"{len(rows)} of {len(SHAPES)}"
    checked = (family.source or "none found") + (f", but not {family.unseen}" if family.unseen else "")
    return f"| {name} | {template} | {shapes} | {counts[0]:,} / {counts[1]:,} | {counts[2]} | {checked} |\n"


if __name__ == "__main__":
    files.write_text(PAGE, page())
