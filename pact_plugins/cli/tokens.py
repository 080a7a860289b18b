"""`pact tokens` and `pact inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from pact_plugins.cli.group import Commands
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.safety_tokens import SafetyTokens

_PATH = click.Path(dir_okay=False, path_type=Path)


@click.group(cls=Commands, invoke_without_command=True)
@click.option("--model", help="The chat model: a folder or a name on the hub.")
@click.option("--base", help="The model before alignment: finds the tokens by the paper's contrast.")
@click.option("--out", type=_PATH, default="tokens.json", show_default=True)
@click.option("--top-k", type=click.IntRange(1, 4096), default=50, show_default=True, help="Number of candidates.")
@click.option("--language", "languages", multiple=True, default=("en",), show_default=True, help="Of shipped prompts.")
@click.option("--harmful", type=_PATH, help="Your own harmful prompts, one on each line. Needs --harmless.")
@click.option("--harmless", type=_PATH, help="As many harmless prompts that look like them.")
@click.option("--add", multiple=True, metavar="TEXT", help="A token that is held besides.")
@click.option("--exclude", multiple=True, metavar="TEXT", help="A token that is not held.")
@click.option("--explain", is_flag=True, help="Show every token with its interval and an example.")
@click.pass_context
def tokens(
    context: click.Context,
    model: str | None,
    base: str | None,
    out: Path,
    top_k: int,
    add: tuple[str, ...],
    exclude: tuple[str, ...],
    explain: bool,
    **prompts: Any,
) -> None:
    """Find the safety tokens of a model, or compare two files of them.

    Example: pact tokens --model my-chat-model --out tokens.json --explain
    """
    if context.invoked_subcommand is not None:
        return
    if model is None:
        raise click.UsageError("Missing option '--model'.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pact_plugins import discovery
    from pact_plugins.loading import pretrained
    from pact_plugins.own_answers import Prompts
    from pact_plugins.tokens_table import show

    config = PactConfig.parse({"prompts": {key: value for key, value in prompts.items() if value is not None}})
    assert config is not None, "a block switches PACT on"
    asked = Prompts.of(config.prompts)
    consequence = "The safety tokens could not be found."
    # As saved: a run finds its tokens in its own precision, whose rounding moves weights a little, and the order.
    aligned = pretrained(AutoModelForCausalLM, model, consequence=consequence, dtype="auto")
    tokenizer = pretrained(AutoTokenizer, model, consequence=consequence)
    if base is None:
        found = discovery.discover(aligned, tokenizer, asked, top_k=top_k)
    else:
        unaligned = pretrained(AutoModelForCausalLM, base, consequence=consequence, dtype="auto")
        found = discovery.discover_against_base(aligned, unaligned, tokenizer, asked, top_k=top_k)
    found = found.changed(add, exclude, tokenizer)
    found.save(out)
    console = Console()
    if explain:
        show(found, str(out), console)
        return
    console.print(f"{len(found.ids)} safety tokens, {len(found.positive)} of them held: {out}")
    for doubt in found.doubts:
        console.print(f"warning: {doubt}", highlight=False, markup=False)


@tokens.command()
@click.argument("first", type=_PATH)
@click.argument("second", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Compare two files of safety tokens of the same tokenizer.

    Example: pact tokens diff before.json after.json
    """
    from pact_plugins.tokens_table import show_difference

    a, b = SafetyTokens.load(first), SafetyTokens.load(second)
    if a.tokenizer != b.tokenizer:
        raise PactError(
            expected="two files of the same tokenizer",
            got=f"{first}, of {a.vocabulary_size:,} tokens, and {second}, of another with {b.vocabulary_size:,}",
            consequence="Equal ids would be unrelated tokens.",
            remedy="Compare tokens of models that share their tokenizer.",
        )
    if as_json:
        click.echo(json.dumps({"first": a.held, "second": b.held}))
    else:
        show_difference(a, b, Console())


@click.command()
@click.argument("path", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--html", type=_PATH, help="Write the table as a page, too.")
def inspect(path: Path, as_json: bool, html: Path | None) -> None:
    """Show a file of safety tokens: weights, intervals over other prompts, examples.

    Example: pact inspect tokens.json --html tokens.html
    """
    from pact_plugins.tokens_table import show

    found = SafetyTokens.load(path)
    if not as_json or html:
        console = Console(record=html is not None, width=160 if html else None, stderr=as_json)
        show(found, str(path), console)
        if html:
            console.save_html(str(html))
    if as_json:
        known = asdict(found.stability) if found.stability else {}
        columns = {k: v for k, v in known.items() if isinstance(v, tuple)}
        rows = zip(found.ids, found.texts, found.weights, *columns.values(), strict=True)
        click.echo(json.dumps([dict(zip(("id", "text", "weight", *columns), row, strict=True)) for row in rows]))
