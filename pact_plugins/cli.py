"""The command `pact`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pact_plugins import __version__
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError, missing_extra
from pact_plugins.safety_tokens import SafetyTokens

T = TypeVar("T")


class _Commands(click.Group):
    """Shows a `PactError` as a message, in the order in which the work is done."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PactError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands)
@click.version_option(__version__, package_name="pact-plugins")
def main() -> None:
    """PACT: keep a chat model's refusals while fine-tuning it."""


@main.command()
@click.option("--model", required=True, help="The chat model: a folder or a name on the hub.")
@click.option("--base", help="The model before alignment: finds the tokens by the paper's contrast.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default="tokens.json", show_default=True)
@click.option("--top-k", type=click.IntRange(1, 4096), default=50, show_default=True, help="Number of candidates.")
def tokens(model: str, base: str | None, out: Path, top_k: int) -> None:
    """Find the safety tokens of a model.

    Example: pact tokens --model my-chat-model --base my-base-model --out tokens.json
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pact_plugins import discovery
    from pact_plugins.loading import pretrained

    consequence = "The safety tokens could not be found."
    # As saved: a run finds its tokens in its own precision, whose rounding moves weights a little, and the order.
    aligned = pretrained(AutoModelForCausalLM, model, consequence=consequence, dtype="auto")
    tokenizer = pretrained(AutoTokenizer, model, consequence=consequence)
    if base is None:
        found = discovery.discover(aligned, tokenizer, top_k=top_k)
    else:
        unaligned = pretrained(AutoModelForCausalLM, base, consequence=consequence, dtype="auto")
        found = discovery.discover_against_base(aligned, unaligned, tokenizer, top_k=top_k)
    found.save(out)
    Console().print(f"{len(found.ids)} safety tokens, {len(found.positive)} of them held: {out}")


@main.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def inspect(path: Path, as_json: bool) -> None:
    """Show a file of safety tokens.

    Example: pact inspect tokens.json
    """
    found = SafetyTokens.load(path)
    if as_json:
        rows = zip(found.ids, found.texts, found.weights, strict=True)
        click.echo(json.dumps([{"id": i, "text": text, "weight": weight} for i, text, weight in rows]))
        return
    table = Table(title=f"{path}: {len(found.ids)} safety tokens, {len(found.positive)} held", title_justify="left")
    for header in ("id", "token", "weight"):
        table.add_column(header, justify="left" if header == "token" else "right")
    for i, text, weight in zip(found.ids, found.texts, found.weights, strict=True):
        table.add_row(str(i), escape(repr(text)), f"{weight:.4f}" if weight else "not held")
    console = Console()
    console.print(table)
    for key, value in found.provenance.items():
        console.print(f"{key}: {value}", highlight=False, markup=False)


@main.group(cls=_Commands)
def cache() -> None:
    """Show, check and remove reference caches."""


_CACHE_DIR = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the caches live. Default: as without `pact.cache_dir`.",
)


@cache.command()
@_CACHE_DIR
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def info(folder: Path | None, as_json: bool) -> None:
    """List the caches, finished or not.

    Example: pact cache info
    """
    from pact_plugins.cache_folder import finished, size_of, unfinished
    from pact_plugins.reference import ReferenceCache

    folder = folder or PactConfig().cache_folder
    opened: list[ReferenceCache] = []
    for path in finished(folder):
        try:
            opened.append(ReferenceCache(path, None))
        except PactError as error:
            click.echo(f"cannot be used: {error}", err=True)
    begun = unfinished(folder)
    if as_json:
        rows = [{"folder": str(c.folder), "bytes": c.size, **c.manifest} for c in opened]
        click.echo(json.dumps([*rows, *({"folder": str(path), "bytes": size_of(path)} for path in begun)]))
        return
    table = Table(title=f"{len(opened)} reference caches", title_justify="left")
    for header in ("folder", "model", "views", "sequences", "answer tokens", "MiB"):
        table.add_column(header, overflow="fold")
    for c in opened:
        m, identity = c.manifest, c.manifest["identity"]
        sizes = (f"{m['documents']:,}", f"{m['answer_tokens']:,}", f"{c.size / 2**20:.1f}")
        table.add_row(escape(str(c.folder)), identity["model"][:8], ", ".join(identity["views"]), *sizes)
    for path in begun:
        table.add_row(escape(str(path)), "", "not finished", "", "", f"{size_of(path) / 2**20:.1f}")
    Console().print(table)


@cache.command("verify")
@_CACHE_DIR
def verify_caches(folder: Path | None) -> None:
    """Read every cache and compare it with its checksums.

    Example: pact cache verify
    """
    from pact_plugins.cache_folder import finished
    from pact_plugins.reference import ReferenceCache

    damaged = 0
    for path in finished(folder or PactConfig().cache_folder):
        try:
            ReferenceCache(path, None).verify()
        except PactError as error:
            damaged += 1
            click.echo(f"damaged: {error}", err=True)
        else:
            click.echo(f"intact: {path}")
    if damaged:
        raise click.ClickException(f"{damaged} damaged: remove them, and the next run builds them again.")


@cache.command()
@_CACHE_DIR
@click.confirmation_option(prompt="A run can only be resumed while its cache is there. Remove all caches?")
def clear(folder: Path | None) -> None:
    """Remove the caches, finished or not, except those that a process is building.

    Example: pact cache clear --yes
    """
    from pact_plugins.cache_folder import clear as remove

    removed, busy = remove(folder or PactConfig().cache_folder)
    for path in busy:
        click.echo(f"in use: {path}", err=True)
    click.echo(f"{len(removed)} removed")


@main.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def check(path: Path, as_json: bool) -> None:
    """Show what the run of a file will do, and everything in it that would stop it or leave PACT out.

    Exits with 1 if there are errors. `pact sft` and `axolotl pact-train` ask the same before they start.

    Example: pact check run.yaml
    """
    from pact_plugins.check_table import show
    from pact_plugins.checking import check as of_file

    found = of_file(path)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1))
    else:
        show(found)
    if not found.sound:
        raise click.exceptions.Exit(1)


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sft(arguments: tuple[str, ...]) -> None:
    """Fine-tune like `trl sft`, with the key `pact` in the file.

    Example: pact sft --config run.yaml
    """
    from pact_plugins.trl import sft as run

    run(arguments)


@main.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def estimate(path: Path, as_json: bool) -> None:
    """Show what PACT will cost in the run of a file for `pact sft` or Axolotl.

    Loads model and data as the run would, and stops before its first step. Of what the run would write, only the
    host's own tokenised data set stays.

    Example: pact estimate run.yaml
    """
    # Standard output is for the estimate alone: hosts take the stream for their logs when they are imported.
    with redirect_stdout(sys.stderr):
        from pact_plugins.cost_report import show
        from pact_plugins.estimate import estimate as of_trainer

        estimated = _in_place_of_training(path, of_trainer, "`pact estimate`")
    if as_json:
        click.echo(json.dumps(estimated.as_dict(), indent=1))
    else:
        show(estimated)


@main.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the listed answers as JSON lines.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="List the answers whose conflict is above this. Default: `pact.conflict_threshold` of the file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def audit(path: Path, out: Path | None, threshold: float | None, as_json: bool) -> None:
    """List the training rows whose answers the model would refuse to give.

    Loads model and data as the run of a file for `pact sft` or Axolotl would, computes the reference (the run finds it
    again), and stops before the first step.

    Example: pact audit run.yaml --out audit.jsonl
    """
    # Standard output is for the audit alone: hosts take the stream for their logs when they are imported.
    with redirect_stdout(sys.stderr):
        from pact_plugins.audit import audit as of_trainer
        from pact_plugins.audit_table import show

        found = _in_place_of_training(path, partial(of_trainer, threshold=threshold), "`pact audit`")
        if out is not None:
            found.save(out)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1))
    else:
        show(found)


def _in_place_of_training(path: Path, act: Callable[[Any, PactConfig], T], command: str) -> T:
    """What `act` makes of the trainer and the settings of a file's run, which is stopped before its first step."""
    from pact_plugins.check_table import require_sound

    host = require_sound(path)
    if find_spec(host) is None:
        raise missing_extra(host, host, f"{command} of this file")
    if host == "trl":
        from pact_plugins.trl import in_place_of_training
    else:
        from pact_plugins.axolotl import in_place_of_training
    return in_place_of_training(path, act)


@main.command("eval")
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


@main.command("lm-eval-path")
def lm_eval_path() -> None:
    """Print the folder of the tasks for lm-evaluation-harness: pact_refusal, pact_over_refusal, group pact_safety.

    Example: lm_eval --include_path "$(pact lm-eval-path)" --tasks pact_safety --apply_chat_template --model hf
    --model_args pretrained=my-chat-model
    """
    click.echo(Path(__file__).parent / "evaluation" / "lm_eval_tasks")


@main.command()
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


@main.command()
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


@main.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="demo-report", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def demo(out: Path, seed: int) -> None:
    """Fine-tune a tiny chat model with and without PACT, and compare.

    Example: pact demo --out demo-report
    """
    from pact_plugins.demo.comparison import run

    run(out, seed=seed)
