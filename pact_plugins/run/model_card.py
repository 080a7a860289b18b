"""The section "Safety" of the model card that hosts write: what the report says, and the digest of the evidence."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from pact_plugins.run.evidence import EVIDENCE
from pact_plugins.run.report.write import FOLDER
from pact_plugins.storage import files

CARD = "README.md"
_START, _END = "<!-- pact: safety -->", "<!-- pact: end -->"


def add_safety(folder: Path) -> None:
    """Puts the section into the card in a run's output folder, in place of an older one.

    Without a card or a report there is nothing to do.
    """
    card, report = folder / CARD, folder / FOLDER / "report.json"
    if not (card.exists() and report.exists()):
        return
    text = re.sub(rf"\n*{_START}.*?{_END}\n*", "\n", card.read_text(encoding="utf-8"), flags=re.DOTALL)
    files.write_text(card, f"{text.rstrip()}\n\n{_section(folder, report)}\n")


def _section(folder: Path, report: Path) -> str:
    found = json.loads(report.read_text(encoding="utf-8"))
    lines = [_START, "", "## Safety", "", *(f"{_plain(v['sentence'])}\n" for v in found["verdicts"])]
    behaviour = found["behaviour"]
    if behaviour:
        names = behaviour["names"]
        lines += [f"| prompts | measure | {' | '.join(names)} |", f"|---|---|{'---:|' * len(names)}"]
        for line in behaviour["lines"]:
            what = f"{Path(line['prompt_set']).name}, {line['kind']}"
            measure = line["measure"].replace("_", " ") + (f" ({line['judge']})" if line["judge"] else "")
            shares = " | ".join(f"{rate['share']:.1%}" for rate in line["rates"])
            lines.append(f"| {_plain(what)} | {_plain(measure)} | {shares} |")
        lines.append("")
    digest = hashlib.sha256((folder / EVIDENCE).read_bytes()).hexdigest()
    lines += [
        f"Trained under [PACT](https://arxiv.org/abs/2603.07445). The report stands in `{FOLDER}/report.html`, the "
        f"evidence in `{EVIDENCE}` (SHA-256 `{digest}`); `pact verify` compares it with these weights. The numbers are "
        "about these prompts, asked once, without an attacker; they do not say that a model is safe.",
        "",
        _END,
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text as Markdown shows it literally."""
    return re.sub(r"([\\`*_\[\]|<>#])", r"\\\1", " ".join(text.split()))
