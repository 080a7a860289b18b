"""Commands on what a run left, and on any model: `pact eval`, `pact report`, `pact compare`, `pact verify`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pact_plugins.cli.group import Result, prints_result

if TYPE_CHECKING:
    from pact_plugins.run.report.write import Written

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("eval")
@click.option("--model", required=True, help="The model to evaluate: a folder or a name on the hub.")
@click.option("--adapter", help="A PEFT adapter on top of it: a folder or a name on the hub.")
@click.option("--against", help="The model to compare with, usually the one before fine-tuning.")
@click.option(
    "--prompts",
    "prompt_sets",
    multiple=True,
    default=("held-out",),
    show_default=True,
    metavar="SOURCE[:KIND[:COLUMN]]",
    help="`held-out`, `held-out-how-to`, `shipped`, a CSV, JSONL or JSON file, or a data set OWNER/NAME#CONFIG/SPLIT; "
    "KIND is harmful, harmless or task.",
)
@click.option(
    "--judge",
    "judges",
    multiple=True,
    help="Default: stance. Others: endpoint:MODEL[:WORD=VERDICT,...], opening, phrases, llama-guard[:PATH], "
    "classifier:PATH[:LABEL=VERDICT,...] or MODULE:FUNCTION.",
)
@click.option(
    "--judge-url",
    metavar="URL",
    help="The server of an endpoint judge, as http://localhost:8000/v1. Default: OPENAI_BASE_URL. A key is read from "
    "OPENAI_API_KEY alone.",
)
@click.option(
    "--judge-prompt",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Its rubric: a file with {prompt} and {response}.",
)
@click.option(
    "--judge-requests", type=click.IntRange(1), default=8, show_default=True, help="Requests to it at the same time."
)
@click.option(
    "--judge-timeout",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds of each.",
)
@click.option("--system", metavar="TEXT", help="A system prompt, for all prompts that have none of their own.")
@click.option(
    "--scorer",
    default="exact",
    show_default=True,
    metavar="SCORER",
    help="Scores answers to tasks: exact, normalised, last-number, f1, regex:PATTERN or MODULE:FUNCTION.",
)
@click.option("--out", type=_FOLDER, default="evaluation", show_default=True, help="The folder of what is written.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True, help="Of each answer.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 is greedy decoding.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of sampling.")
@click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    show_default=True,
    help="What writes the answers.",
)
@click.option("--limit", type=click.IntRange(1), help="A sample of so many prompts of each set.")
@prints_result
def evaluate(
    model: str,
    out: Path,
    judge_url: str | None,
    judge_prompt: Path | None,
    judge_requests: int,
    judge_timeout: float,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    engine: Literal["transformers", "vllm"],
    **options: Any,
) -> Result:
    """Ask a model, and judge its answers.

    Prompts are harmful, harmless or tasks. Writes answers, verdicts and rates into the folder --out, answers as they
    come: the same command goes on where it was stopped. For lm-evaluation-harness see `pact lm-eval-path --help`.

    \b
    Example:
      pact eval --model my-chat-model --adapter outputs/run \\
        --against my-chat-model
    """
    from pact_plugins.evaluation.engines import Generation
    from pact_plugins.evaluation.judges import DEFAULT_JUDGES, Serving
    from pact_plugins.evaluation.run import evaluate as run
    from pact_plugins.evaluation.table import show

    sets, judges = options.pop("prompt_sets"), options.pop("judges") or DEFAULT_JUDGES
    serving = Serving(judge_url, judge_prompt, at_once=judge_requests, timeout=judge_timeout)
    generation = Generation(max_new_tokens, temperature, seed, engine)
    found = run(model, sets, out, judges=judges, serving=serving, generation=generation, **options)
    return Result(found.as_dict(), partial(show, found))


@click.command("lm-eval-path", hidden=True)
def lm_eval_path() -> None:
    """Print the folder of the tasks for lm-evaluation-harness.

    They are pact_refusal and pact_over_refusal, and their group pact_safety.

    \b
    Example:
      lm_eval --include_path "$(pact lm-eval-path)" --tasks pact_safety \\
        --apply_chat_template --model hf --model_args pretrained=my-chat-model
    """
    click.echo(Path(__file__).parents[1] / "evaluation" / "lm_eval_tasks")


@click.command()
@click.argument("output_dir", type=_FOLDER_THERE)
@click.option(
    "--evaluation",
    type=_FOLDER_THERE,
    help="What `pact eval --out` wrote. Default: OUTPUT_DIR/_pact_evaluation, if it is there.",
)
@prints_result
def report(output_dir: Path, evaluation: Path | None) -> Result:
    """Make the report of a run again.

    Reads the files of a run, or of an evaluation alone. Writes a page, Markdown and JSON into OUTPUT_DIR/pact_report.

    \b
    Example:
      pact report outputs/run --evaluation evaluation
    """
    from pact_plugins.run.report.write import make_report

    return _reported(make_report(output_dir, evaluation))


@click.command()
@click.argument("runs", type=_FOLDER_THERE, nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--out", type=_FOLDER, default=Path("pact_comparison"), show_default=True, help="The folder of the page.")
@prints_result
def compare(runs: tuple[Path, ...], out: Path) -> Result:
    """Put several runs side by side.

    Each RUN is an output folder with an evaluation in it, or an evaluation's own folder, as of a run without PACT; all
    of the same prompts, judges and model before fine-tuning.

    \b
    Example:
      pact compare outputs/plain outputs/run
    """
    from pact_plugins.run.report.compare import comparison_of
    from pact_plugins.run.report.write import write_report

    return _reported(write_report(comparison_of(runs), out))


def _reported(written: Written) -> Result:
    """The files of a report, and its verdicts."""
    others = [path for path in (written.folder / "report.md", written.folder / "report.json") if path.exists()]
    value = {"files": [*map(str, (*written.pages, *others))], "verdicts": [*map(asdict, written.verdicts)]}
    return Result(value, lambda: click.echo(written.line))


@click.command()
@click.argument("output_dir", type=_FOLDER_THERE)
@click.option("--merged", type=_FOLDER_THERE, help="Weights that should be its adapter merged into --base.")
@click.option("--base", metavar="MODEL", help="The model before the run, for --merged.")
@prints_result
def verify(output_dir: Path, merged: Path | None, base: str | None) -> Result:
    """Say whether weights trained under PACT.

    Reads the evidence that a run left in OUTPUT_DIR, the trainer's own records, and the weights there: under PACT from
    first step to last, and still the same? A checkpoint will do, too. Exits with 1 if not.

    \b
    Example:
      pact verify outputs/run
    """
    from pact_plugins.run.verification import verify as of_run

    if (merged is None) != (base is None):
        raise click.UsageError("--merged and --base go together.")
    found = of_run(output_dir, merged=merged, base=base)
    return Result(found.as_dict(), lambda: click.echo(found.sentence), holds=found.holds)
