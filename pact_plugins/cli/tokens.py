"""`pact tokens` and `pact inspect`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from pact_plugins.cli.group import Commands, Result, prints_result
from pact_plugins.config import Language, PactConfig
from pact_plugins.errors import PactError

if TYPE_CHECKING:
    from pact_plugins.method.safety_tokens import SafetyTokens

_WRITTEN = click.Path(dir_okay=False, path_type=Path)
_READ = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Commands, invoke_without_command=True)
@click.option("--model", help="The chat model: a folder or a name on the hub.")
@click.option("--base", help="The model before alignment: finds the tokens by the paper's contrast.")
@click.option("--out", type=_WRITTEN, default="tokens.json", show_default=True, help="The file of the tokens.")
@click.option("--top-k", type=click.IntRange(1, 4096), default=50, show_default=True, help="Number of candidates.")
@click.option(
    "--language",
    "languages",
    type=click.Choice(get_args(Language)),
    multiple=True,
    default=("en",),
    show_default=True,
    help="Of shipped prompts; can be repeated.",
)
@click.option("--harmful", type=_READ, help="Your own harmful prompts, one on each line. Needs --harmless.")
@click.option("--harmless", type=_READ, help="As many harmless prompts that look like them.")
@click.option("--add", multiple=True, metavar="TEXT", help="A token that is held besides; can be repeated.")
@click.option("--exclude", multiple=True, metavar="TEXT", help="A token that is not held; can be repeated.")
@click.option("--explain", is_flag=True, help="Show every token with its interval and an example.")
@click.pass_context
@prints_result
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
) -> Result | None:
    """Find a model's safety tokens.

    Lets the model answer the shipped prompts or your own, unless it has: its answers are kept where runs keep their
    caches, and found by the next run. Writes the tokens with their weights to the file --out, which
    `pact.safety_tokens` of a run can name. A run without such a file finds its own.

    \b
    Example:
      pact tokens --model my-chat-model --out tokens.json
    """
    if context.invoked_subcommand is not None:
        return None
    if model is None:
        raise click.UsageError("Missing option '--model'.")
    from transformers import AutoTokenizer

    from pact_plugins.method.finder import Finder
    from pact_plugins.model.fingerprints import model_fingerprint
    from pact_plugins.model.loading import LanguageModel, pretrained

    block = {"prompts": {key: value for key, value in prompts.items() if value is not None}, "top_k": top_k}
    changes = {"safety_tokens_add": add, "safety_tokens_exclude": exclude}
    config = PactConfig.parse({**block, **changes, "base_model": base})
    assert config is not None, "a block switches PACT on"
    consequence = "The safety tokens could not be found."
    # As saved: a run finds its tokens in its own precision, whose rounding moves weights a little, and the order.
    aligned = pretrained(LanguageModel, model, consequence=consequence, dtype="auto")
    tokenizer = pretrained(AutoTokenizer, model, consequence=consequence)
    found = Finder(config, aligned, tokenizer, model_fingerprint(aligned)).tokens()
    found.save(out)
    value = {"file": str(out), "tokens": _rows(found), "warnings": list(found.doubts)}
    return Result(value, partial(_show, found, out, explain))


def _show(found: SafetyTokens, out: Path, explain: bool) -> None:
    if explain:
        from pact_plugins.cli.tokens_table import show

        show(found, str(out))
        return
    click.echo(f"{len(found.ids)} safety tokens, {len(found.positive)} of them held: {out}")
    for doubt in found.doubts:
        click.echo(f"warning: {doubt}")


def _rows(found: SafetyTokens) -> list[dict[str, Any]]:
    """Each token with all that is known of it."""
    known = asdict(found.stability) if found.stability else {}
    columns = {k: v for k, v in known.items() if isinstance(v, tuple)}
    rows = zip(found.ids, found.texts, found.weights, *columns.values(), strict=True)
    return [dict(zip(("id", "text", "weight", *columns), row, strict=True)) for row in rows]


@tokens.command()
@click.argument("first", type=_READ)
@click.argument("second", type=_READ)
@prints_result
def diff(first: Path, second: Path) -> Result:
    """Compare two files of safety tokens.

    Both have to be of the same tokenizer.

    \b
    Example:
      pact tokens diff before.json after.json
    """
    from pact_plugins.cli.tokens_table import show_difference
    from pact_plugins.method.safety_tokens import SafetyTokens

    a, b = SafetyTokens.load(first), SafetyTokens.load(second)
    if a.tokenizer != b.tokenizer:
        raise PactError(
            expected="two files of the same tokenizer",
            got=f"{first}, of {a.vocabulary_size:,} tokens, and {second}, of another with {b.vocabulary_size:,}",
            consequence="Equal ids would be unrelated tokens.",
            remedy="Compare tokens of models that share their tokenizer.",
        )
    return Result({"first": a.held, "second": b.held}, partial(show_difference, a, b))


@click.command()
@click.argument("path", type=_READ, metavar="FILE")
@click.option("--html", type=_WRITTEN, help="Write the table as a page, too.")
@prints_result
def inspect(path: Path, html: Path | None) -> Result:
    """Show a file of safety tokens.

    Reads what `pact tokens` or a run wrote: the weight of each token, its interval over other prompts, an example.

    \b
    Example:
      pact inspect tokens.json --html tokens.html
    """
    import io

    from rich.console import Console

    from pact_plugins.cli.tokens_table import show
    from pact_plugins.method.safety_tokens import SafetyTokens

    found = SafetyTokens.load(path)
    if html:
        page = Console(record=True, width=160, file=io.StringIO())
        show(found, str(path), page)
        page.save_html(str(html))
    return Result(_rows(found), partial(show, found, str(path)))
