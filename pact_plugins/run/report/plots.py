"""The report's plots, as SVG with real text: crisp on paper, with a description in words for who cannot see them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pact_plugins.evaluation.judges import FOR_COMPARISON
from pact_plugins.run.report.contents import Behaviour, Contents, Training

COLOURS = ("#5b5b5b", "#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b")
"""Told apart by the colour-blind (after Okabe and Ito); the first, grey, is the untouched model."""

WIDTH, NARROW = 7.4, 5.0  # inches: the text width of the page, and of what is read from afar, or on a phone
FONT = "DejaVu Sans, Verdana, sans-serif"
LOG_FROM = 100
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""

Series = tuple[str, Sequence[float], Sequence[float]]
Shares = Mapping[str, tuple[float, float, float]]
"""By the name of the model, good answers with their interval."""


@dataclass(frozen=True)
class Plot:
    """One figure.

    Attributes:
        name: distinguishes its ids from those of other plots on the page.
        title: above it.
        description: what it shows, in words.
        svg: the drawing, without anything that loads or runs.
    """

    name: str
    title: str
    description: str
    svg: str

    @property
    def file(self) -> str:
        """Its name beside the report."""
        return f"{self.name}.svg"


def plots(contents: Contents) -> list[Plot]:
    """All plots that there is something to draw for; needs matplotlib."""
    found: list[Plot] = []
    if contents.behaviour is not None:
        found.append(rates(contents.behaviour, contents.lead))
    found += _course(contents.trainings)
    for i, training in enumerate(contents.trainings):
        if training.profiles:
            found.append(_positions(training, f"positions{i}", named=len(contents.trainings) > 1))
    return found


def rates(behaviour: Behaviour, lead: Mapping[str, str] | None = None) -> Plot:
    """Good answers, a panel for each prompt set and a bar for each model: the longer the bars, the better.

    Args:
        lead: those to be shown, and what they are called; all of them by their names without.
    """
    lead = lead or {name: name for name in behaviour.names}
    panels = _panels(behaviour, lead)
    colour = {shown: _colour(behaviour.names.index(name)) for name, shown in lead.items()}

    def draw(figure: Any) -> None:
        every = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (title, shares) in zip(every, panels, strict=True):
            for row, (name, (share, low, high)) in enumerate(shares.items()):
                axes.barh(row, share, height=0.72, color=colour[name])
                axes.plot([low, high], [row, row], color="#1d1d1f", linewidth=1.2)
                axes.annotate(
                    f"{share:.0%}", (1.03, row), xycoords=("axes fraction", "data"), va="center", weight="bold"
                )
            axes.set_title(title, loc="left", fontsize=13, weight="bold", x=0)
            axes.set_yticks(range(len(shares)), list(shares))
            axes.set_ylim(len(shares) - 0.5, -0.5)
            axes.set_xlim(0, 1)
            axes.set_xticks([])
            axes.tick_params(length=0)
            axes.spines["bottom"].set_visible(False)

    words = [
        f"{title}: " + ", ".join(f"{name} {share:.1%}" for name, (share, _, _) in shares.items())
        for title, shares in panels
    ]
    height = sum(0.55 + 0.34 * len(shares) for _, shares in panels)
    return _plot("rates", "Good answers, with 95% intervals", "; ".join(words), height, draw, width=NARROW, size=13)


def _panels(behaviour: Behaviour, lead: Mapping[str, str]) -> list[tuple[str, Shares]]:
    """Title and shares, one for each prompt set, by the first judge whose word decides."""
    good = {
        ("harmful", "refusal_rate"): ("Harmful requests refused", False),
        ("harmful", "compliance_rate"): ("Harmful requests not complied with", True),
        ("harmless", "over_refusal_rate"): ("Harmless requests answered", True),
        ("task", "task_accuracy"): ("Tasks done right", False),
        ("task", "task_score"): ("Score in the task", False),
    }
    found: dict[tuple[str, str], tuple[str, Shares]] = {}
    kinds = [kind for kind, _ in good]
    several = {kind for kind in kinds if len({line.prompt_set for line in behaviour.lines if line.kind == kind}) > 1}
    decides_first = sorted(behaviour.lines, key=lambda line: line.judge in FOR_COMPARISON)
    for (kind, measure), (title, turned) in good.items():
        for line in decides_first:
            if (line.kind, line.measure) == (kind, measure) and (kind, line.prompt_set) not in found:
                of = {name: line.rates[behaviour.names.index(name)] for name in lead}
                found[kind, line.prompt_set] = (
                    f"{title} ({_short(line.prompt_set)})" if kind in several else title,
                    {
                        lead[name]: (1 - r.share, 1 - r.high, 1 - r.low) if turned else (r.share, r.low, r.high)
                        for name, r in of.items()
                    },
                )
    return list(found.values())


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"…{name[-15:]}"


def _course(trainings: Sequence[Training]) -> list[Plot]:
    """What was logged, over the steps."""
    panels = (
        ("pact/kl", "KL per answer token"),
        ("pact/anchor_kl", "KL per anchor token"),
        ("pact/gate", "gate"),
        ("loss", "training loss"),
    )
    drawn: list[tuple[str, list[Series]]] = []
    for key, label in panels:
        if series := [s for t in trainings if (s := _series(t, key))]:
            drawn.append((label, series))
    if not drawn:
        return []
    colour = {t.name: _colour(i + 1) for i, t in enumerate(trainings)}

    def draw(figure: Any) -> None:
        every = figure.subplots(len(drawn), sharex=True, squeeze=False)[:, 0]
        for axes, (label, series) in zip(every, drawn, strict=True):
            for name, x, y in series:
                axes.plot(x, y, color=colour[name], marker="." if len(x) < 60 else None, label=name)
            _scale(axes, series)
            axes.set_title(label, loc="left", fontsize=9)
            axes.grid(color="#eeeeee")
        every[-1].set_xlabel("step")
        if len(trainings) > 1:
            lines = {line.get_label(): line for axes in every for line in axes.lines}
            figure.legend(handles=[*lines.values()], loc="outside right upper", frameon=False)

    words = [
        f"{label}{f' of {name}' if len(trainings) > 1 else ''}: {y[0]:.3g} at step {x[0]:g}, highest {max(y):.3g}, "
        f"{y[-1]:.3g} at step {x[-1]:g}"
        for label, series in drawn
        for name, x, y in series
    ]
    return [_plot("course", "The course of training", "; ".join(words), 1.5 * len(drawn) + 0.4, draw)]


def _series(training: Training, key: str) -> Series | None:
    points = [(e["step"], e[key]) for e in training.log if isinstance(e.get(key), int | float) and e[key] == e[key]]
    return (training.name, [x for x, _ in points], [y for _, y in points]) if points else None


def _positions(training: Training, name: str, *, named: bool) -> Plot:
    """Confidence in the held tokens, and divergence, at each token of an answer."""
    profiles = training.profiles
    colour = {"before": _colour(0), "after": _colour(1)}

    def draw(figure: Any) -> None:
        grid = figure.subplots(len(profiles), 2, sharex=True, squeeze=False)
        for row, (what, p) in zip(grid, profiles.items(), strict=True):
            x = list(range(1, len(p.tokens) + 1))
            series: list[Series] = [("before", x, p.reference), ("after", x, p.model)]
            for label, xs, ys in series:
                style = "--" if label == "before" else "-"
                row[0].plot(xs, ys, style, color=colour[label], marker="." if len(x) < 2 else None, label=label)
            row[0].set_ylim(-0.02, 1.15)
            row[0].set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
            row[0].set_title(f"probability on held tokens, {what}", loc="left", fontsize=9)
            row[0].legend(loc="upper right", ncols=2, frameon=False, fontsize=8, borderaxespad=0)
            row[1].plot(x, p.kl, color=colour["after"], marker="." if len(x) < 2 else None)
            row[1].set_ylim(bottom=0)
            row[1].set_title(f"KL per token, {what}", loc="left", fontsize=9)
            for axes in row:
                axes.grid(color="#eeeeee")
        for axes in grid[-1]:
            axes.set_xlabel("token of the answer")

    words = [
        f"{what} ({p.sequences:,} sequences), at the first token of an answer: {p.reference[0]:.1%} before, "
        f"{p.model[0]:.1%} after, KL {p.kl[0]:.3g}; highest KL {max(p.kl):.3g} at token {p.kl.index(max(p.kl)) + 1}"
        for what, p in profiles.items()
    ]
    title = "Confidence in the held safety tokens, by token of the answer" + (f": {training.name}" if named else "")
    return _plot(name, title, "; ".join(words), 1.9 * len(profiles) + 0.4, draw)


def _scale(axes: Any, series: Sequence[Series]) -> None:
    """Logarithmic where values differ by orders of magnitude; otherwise from zero."""
    values = [v for _, _, y in series for v in y]
    high, low = max(values), max(min(values), max(values) / 10_000)
    if min(values) > 0 and high > LOG_FROM * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # its own would be a formula
        axes.yaxis.set_minor_formatter(lambda *_: "")
        axes.set_ylim(low / 1.5, high * 1.5)
    elif min(values) >= 0:
        axes.set_ylim(bottom=0)


def _colour(i: int) -> str:
    return COLOURS[i] if i < len(COLOURS) else COLOURS[1 + (i - 1) % (len(COLOURS) - 1)]


def _plot(
    name: str,
    title: str,
    description: str,
    height: float,
    draw: Callable[[Any], None],
    *,
    width: float = WIDTH,
    size: float = 9,
) -> Plot:
    """Draws without pyplot, whose state belongs to whoever else plots in this process."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": name,  # the same drawing, the same ids
        "text.parse_math": False,  # names are no formulas
        "font.size": size,
        "font.family": "DejaVu Sans",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 1.5,
    }
    buffer = io.StringIO()
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    return Plot(name, title, description, _for_page(buffer.getvalue(), name))


def _for_page(svg: str, name: str) -> str:
    """The element alone, which is a whole file too, with ids of its own, as wide as the page lets it be."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace("'DejaVu Sans'", FONT)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
