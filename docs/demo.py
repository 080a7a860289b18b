"""Takes over what `make demo` wrote: `python -m docs.demo` copies the README's picture and the figures of its table."""

from __future__ import annotations

import json
from pathlib import Path

from pact_plugins.storage import files

DOCS = Path(__file__).parent
FIGURES, PICTURE = DOCS / "demo.json", DOCS / "demo.svg"


def take(report: Path) -> None:
    """Copies from the folder of a demo."""
    found = json.loads((report / "report.json").read_text(encoding="utf-8"))
    behaviour = found["behaviour"]
    rates = [
        {
            **{key: line[key] for key in ("prompt_set", "kind", "measure", "judge")},
            **{name: rate["share"] for name, rate in zip(behaviour["names"], line["rates"], strict=True)},
        }
        for line in behaviour["lines"]
    ]
    kept = {key: found[key] for key in ("seed", "steps", "harmful_fraction")}
    files.write_text(FIGURES, json.dumps({**kept, "rates": rates}, indent=1) + "\n")
    files.write_text(PICTURE, (report / "rates.svg").read_text(encoding="utf-8"))


if __name__ == "__main__":
    take(DOCS.parent / "demo-report")
