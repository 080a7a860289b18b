"""`pact cache`."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pact_plugins.cli.group import Commands
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError


@click.group(cls=Commands)
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
