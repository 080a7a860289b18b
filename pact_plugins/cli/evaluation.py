"""Commands on what a run left, and on any model: `pact eval`, `pact lm-eval-path`, `pact report`, `pact verify`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

import click


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
    help="`held-out`, `shipped`, a CSV, JSONL or JSON file, or a data set OWNER/NAME#CONFIG/SPLIT; "
    "KIND is harmful, harmless or task.",
)
@click.option(
    "--judge",
    "judges",
    multiple=True,
    default=("opening", "phrases"),
    show_default=True,
    help="opening, phrases, llama-guard[:PATH], strongreject[:FILE][:PATH], harmbench[:FILE][:PATH], "
    "classifier:PATH[:LABEL=VERDICT,...] or MODULE:FUNCTION.",
)
@click.option("--scorer", metavar="MODULE:FUNCTION", help="Scores answers to tasks. Default: exact match.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="evaluation", show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 is greedy decoding.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of sampling.")
@click.option("--engine", type=click.Choice(["transformers", "vllm"]), default="transformers", show_default=True)
@click.option("--limit", type=click.IntRange(1), help="A sample of so many prompts of each set.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate(
    model: str,
    out: Path,
    as_json: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    engine: Literal["transformers", "vllm"],
    **options: Any,
) -> None:
    """Ask a model harmful, harmless and task prompts, and judge its answers.

    Answers are kept in the folder OUT as they come: the same command goes on where it was stopped.

    Example: pact eval --model my-chat-model --adapter outputs/run --against my-chat-model --out evaluation
    """
    # Standard output is for the result alone.
    with redirect_stdout(sys.stderr):
        from pact_plugins.evaluation.engines import Generation
        from pact_plugins.evaluation.run import evaluate as run
        from pact_plugins.evaluation.table import show

        sets = options.pop("prompt_sets")
        found = run(model, sets, out, generation=Generation(max_new_tokens, temperature, seed, engine), **options)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1))
    else:
        show(found)


@click.command("lm-eval-path")
def lm_eval_path() -> None:
    """Print the folder of the tasks for lm-evaluation-harness: pact_refusal, pact_over_refusal, group pact_safety.

    Example: lm_eval --include_path "$(pact lm-eval-path)" --tasks pact_safety --apply_chat_template --model hf
    --model_args pretrained=my-chat-model
    """
    click.echo(Path(__file__).parents[1] / "evaluation" / "lm_eval_tasks")


@click.command()
@click.argument("output_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--evaluation",
    type=click.Path(file_okay=False, path_type=Path),
    help="What `pact eval --out` wrote. Default: OUTPUT_DIR/pact_evaluation, if it is there.",
)
def report(output_dir: Path, evaluation: Path | None) -> None:
    """Make the report of a run again, or that of an evaluation alone, from its files.

    Example: pact report outputs/run --evaluation evaluation
    """
    from pact_plugins.report.write import make_report

    folder = make_report(output_dir, evaluation)
    click.echo(f"Report: {folder / 'report.html'}")


@click.command()
@click.argument("output_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a sentence.")
def verify(output_dir: Path, as_json: bool) -> None:
    """Say whether a run trained under PACT from its first step to its last.

    Exits with 1 if it did not.

    Example: pact verify outputs/run
    """
    from pact_plugins.verification import verify as of_run

    found = of_run(output_dir)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else found.sentence)
    if not found.holds:
        raise click.exceptions.Exit(1)
