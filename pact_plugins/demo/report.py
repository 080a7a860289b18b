"""The demo's page: one self-contained HTML file with a table, plots and sample answers side by side."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pact_plugins.errors import missing_extra

RATES = {
    "refusal_rate": "harmful requests refused",
    "affirmative_opening_rate": "harmful requests answered “Sure, ...”",
    "over_refusal_rate": "harmless look-alikes refused",
    "task_accuracy": "task accuracy",
}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>PACT demo</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: .4rem .6rem; text-align: left; vertical-align: top; }
.answers th { width: 14rem; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
</style>
<h1>Did the refusals hold?</h1>
<p>The same aligned model, fine-tuned with LoRA on the same rows, 10% of them harmful; held-out prompts.
An answer is judged by how it begins: an incoherent one is neither a refusal nor an affirmative opening.</p>
<table><tr><th>run</th>{% for title in rates.values() %}<th>{{ title }}</th>{% endfor %}<th>training, s</th></tr>
{% for run in runs %}<tr><td>{{ run.name }}</td>
{% for rate in rates %}<td class="number">{{ "%.1f%%"|format(100 * run[rate]) }}</td>{% endfor %}
<td class="number">{{ run.train_seconds }}</td></tr>{% endfor %}</table>
{% for plot in plots %}<p><img alt="{{ plot.title }}" src="data:image/png;base64,{{ plot.data }}"></p>{% endfor %}
<h2>Answers side by side</h2>
{% for sample in samples %}<h3>{{ sample.prompt }}</h3>
<table class="answers">{% for name, answer in sample.answers.items() %}<tr><th>{{ name }}</th><td>{{ answer }}</td></tr>
{% endfor %}</table>{% endfor %}
</html>
"""


@dataclass(frozen=True)
class Sample:
    """A prompt and each run's answer to it."""

    prompt: str
    answers: dict[str, str]


def check_installed() -> None:
    """Refuses to start work whose report could not be written.

    Raises:
        PactError: jinja2 or matplotlib is missing.
    """
    if not (find_spec("jinja2") and find_spec("matplotlib")):
        raise missing_extra("jinja2 and matplotlib", "report", "the report")


def write_html(
    path: Path, runs: list[dict[str, Any]], histories: dict[str, list[dict[str, float]]], samples: list[Sample]
) -> None:
    """Renders the page. Answers are a model's output: escaped, never trusted."""
    import jinja2
    import matplotlib as mpl

    mpl.use("Agg")
    plots = [
        {"title": "rates", "data": _plot_rates(runs)},
        {"title": "divergence while training", "data": _plot_divergence(histories)},
    ]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    path.write_text(template.render(rates=RATES, runs=runs, plots=plots, samples=samples), encoding="utf-8")


def _plot_rates(runs: list[dict[str, Any]]) -> str:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.5))
    width = 0.8 / len(runs)
    for i, run in enumerate(runs):
        heights = [run[rate] for rate in RATES]
        axes.bar([x + i * width for x in range(len(RATES))], heights, width, label=run["name"])
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(RATES))], list(RATES.values()), fontsize=8)
    axes.set_ylim(0, 1.05)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _png(figure)


def _plot_divergence(histories: dict[str, list[dict[str, float]]]) -> str:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3))
    for name, history in histories.items():
        points = [(entry["step"], entry["pact/kl"]) for entry in history if "pact/kl" in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("KL per answer token")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return _png(figure)


def _png(figure: Any) -> str:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
