"""The report as an HTML page and as Markdown. What models said is untrusted: every value is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pact_plugins import __version__
from pact_plugins.evaluation.measure import Rate
from pact_plugins.evaluation.records import record_of
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.run.report.contents import Contents, Line, Reply, Sample
from pact_plugins.run.report.plots import Plot
from pact_plugins.run.report.summary import Summary
from pact_plugins.run.report.verdict import RULES, Verdict

LONGEST = 1200
"""Characters of an answer that are shown; the rest stands in the evaluation's files."""


@dataclass(frozen=True)
class Page:
    """What is on it; `plots` is None where they could not be drawn."""

    contents: Contents
    verdicts: Sequence[Verdict]
    summaries: Sequence[Summary]
    plots: Sequence[Plot] | None

    def html(self) -> str:
        """Self-contained: no script, no font, no picture from anywhere else."""
        # Ours alone: matplotlib wrote the drawing, and escaped the names in it.
        drawn = [{**vars(p), "svg": Markup(p.svg)} for p in self.plots or ()]
        return self._rendered(_environment(autoescape=True), "page.html.j2", plots=drawn)

    def markdown(self) -> str:
        """The same as GitHub reads it, with the drawings in files of their own."""
        environment = _environment(autoescape=False, finalize=_escaped)
        text = self._rendered(environment, "page.md.j2", plots=self.plots or ())
        return re.sub(r"\n{3,}", "\n\n", text)

    def _rendered(self, environment: jinja2.Environment, template: str, **plots: Any) -> str:
        contents, behaviour = self.contents, self.contents.behaviour
        lead = contents.lead or {name: name for name in (behaviour.names if behaviour else ())}
        pairs = zip(self.verdicts, self.summaries, strict=True)
        open_, folded = _split(behaviour.samples if behaviour else ())
        return environment.get_template(template).render(
            contents=contents,
            verdicts=self.verdicts,
            summaries=[s for v, s in pairs if not behaviour or v.model in lead],
            lead=lead,
            samples=open_,
            more_samples=folded,
            warnings=[*contents.notes, *(behaviour.warnings if behaviour else ())],
            plots_drawn=self.plots is not None,
            rules=RULES,
            version=__version__,
            badges=_badges,
            zip=zip,
            **plots,
        )


def _environment(*, autoescape: bool, finalize: Callable[[Any], Any] | None = None) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = environment.filters
    filters.update(
        percent=lambda share: f"{share:.1%}",
        interval=_interval,
        p_value=lambda p: f"{p:.2g}" if p >= 0.001 else "<0.001",
        groupby_set=_by_set,
        record=record_of,
        by_weight=_by_weight,
        token=_token,
        placed=_placed,
        words=partial(_words, escaped=escape if autoescape else _escaped),
        shortened=lambda text: text if len(text) <= LONGEST else f"{text[:LONGEST]} …",
        sections=_sections,
        verbatim=Markup,
    )
    return environment


def _split(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The first of each prompt set, to be seen at once, and the others."""
    first = {(s.prompt_set, s.kind): s for s in reversed(samples)}
    return [s for s in samples if s is first[s.prompt_set, s.kind]], [
        s for s in samples if s is not first[s.prompt_set, s.kind]
    ]


def _badges(reply: Reply, kind: str) -> Markup:
    """What was made of an answer; the class says whether that is good, to a prompt of this kind."""
    good = {"harmful": {"refusal"}, "task": {"correct"}}.get(kind, {"compliance", "other"})
    neutral = {"cannot judge", "partial"}
    parts = [(b.rpartition(": ")[2], b) for b in reply.badges]
    return Markup(" ").join(
        Markup('<span class="badge {}">{}</span>').format(
            "good" if last in good else "" if last in neutral or last.startswith("score ") else "bad", b
        )
        for last, b in parts
    )


def _words(text: str, escaped: Callable[[str], str]) -> Markup:
    """Words of ours, with what stands between backticks as code, and folders by their names."""
    parts = list(map(escaped, _placed(text).split("`")))
    parts[1:-1:2] = [f"<code>{part}</code>" for part in parts[1:-1:2]]
    return Markup("".join(parts))


def _placed(value: Any) -> str:
    """With the last part of absolute paths alone: where a folder lies says nothing elsewhere."""
    return re.sub(r"(?<![\w:/.])/(?:[^\s/:;,'\"]+/)+([^\s/:;,'\"]+)", r"…/\1", str(value))


def _interval(rate: Rate) -> str:
    return f"{100 * rate.low:.1f}, {100 * rate.high:.1f}"


def _by_set(lines: Iterable[Line]) -> list[tuple[tuple[str, str], list[Line]]]:
    return [(key, list(group)) for key, group in groupby(lines, key=lambda line: (line.prompt_set, line.kind))]


def _by_weight(tokens: SafetyTokens) -> list[tuple[str, float]]:
    return sorted(zip(tokens.texts, tokens.weights, strict=True), key=lambda pair: -pair[1])


def _token(text: str) -> str:
    """With its spaces and line breaks visible."""
    return text.replace(" ", "␣").replace("\n", "↵") or "(empty)"


def _sections(about: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Nested facts as titled lists of keys and values."""
    single = [(k, v) for k, v in about.items() if not isinstance(v, Mapping)]
    nested = [(k, list(_flat(v))) for k, v in about.items() if isinstance(v, Mapping)]
    return [*([("run", [(k, str(v)) for k, v in single])] if single else []), *nested]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in facts.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif isinstance(value, int):
            yield name, f"{value:,}"
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        else:
            yield name, "none" if value is None else str(value)


def _escaped(value: Any) -> str:
    """A value as Markdown shows it literally: no HTML, no emphasis, no link, no further cell or line."""
    if isinstance(value, Markup):
        return str(value)
    text = html.escape(str(value), quote=False)
    text = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)
    text = text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")
    return re.sub(r"\s*[\r\n]+\s*", "<br>", text)
