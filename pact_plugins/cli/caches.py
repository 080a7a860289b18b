"""`pact cache`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pact_plugins.cli.group import Commands, Result, prints_result
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError

if TYPE_CHECKING:
    from pact_plugins.storage.cache import ReferenceCache


@click.group(cls=Commands)
def cache() -> None:
    """Show, check and remove reference caches.

    A run keeps there what the model was before its first step, and finds it again the next time.
    """


_CACHE_DIR = click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the caches live. Default: as without `pact.cache_dir`.",
)


@cache.command()
@_CACHE_DIR
@prints_result
def info(folder: Path | None) -> Result:
    """List the caches, finished or not.

    With model and views, and whatever else tells them apart.

    \b
    Example:
      pact cache info
    """
    from pact_plugins.storage.cache import ReferenceCache
    from pact_plugins.storage.folder import finished, size_of, unfinished

    folder = folder or PactConfig().cache_folder
    opened: list[ReferenceCache] = []
    for path in finished(folder):
        try:
            opened.append(ReferenceCache(path, None))
        except PactError as error:
            click.echo(f"cannot be used: {error}", err=True)
    begun = {path: size_of(path) for path in unfinished(folder)}
    rows = [{"folder": str(c.folder), "bytes": c.size, **c.manifest} for c in opened]
    rows += [{"folder": str(path), "bytes": size} for path, size in begun.items()]
    return Result(rows, partial(_show, folder, opened, begun))


def _show(folder: Path, opened: list[ReferenceCache], begun: dict[Path, int]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pact_plugins.storage.cache import differences

    title = f"{len(opened)} reference cache{'' if len(opened) == 1 else 's'} in {folder}"
    if not opened and not begun:
        click.echo(title)
        return
    table = Table(title=escape(title), title_justify="left")
    identities = [c.manifest["identity"] for c in opened]
    differing = {entry for other in identities for entry in differences(identities[0], other)}
    entries = ["model", "views", *sorted(differing - {"model", "views"})]
    for header in ("folder", *entries, "sequences", "answer tokens", "MiB"):
        table.add_column(escape(header), overflow="fold")
    for c, identity in zip(opened, identities, strict=True):
        about = (escape(_in_short(identity.get(entry))) for entry in entries)
        m = c.manifest
        sizes = (f"{m['documents']:,}", f"{m['answer_tokens']:,}", f"{c.size / 2**20:.1f}")
        table.add_row(escape(c.folder.name), *about, *sizes)
    for path, size in begun.items():
        table.add_row(escape(path.name), "", "not finished", *[""] * len(entries), f"{size / 2**20:.1f}")
    Console().print(table)


def _in_short(value: Any) -> str:
    """An entry of an identity; of a digest, its beginning."""
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text[:8] if len(text) == 32 else text


@cache.command("verify")
@_CACHE_DIR
@prints_result
def verify_caches(folder: Path | None) -> Result:
    """Compare every cache with its checksums.

    Reads all of them. Exits with 1 if one is damaged.

    \b
    Example:
      pact cache verify
    """
    from pact_plugins.storage.cache import ReferenceCache
    from pact_plugins.storage.folder import finished

    folder = folder or PactConfig().cache_folder
    intact: list[str] = []
    damaged: dict[str, str] = {}
    for path in finished(folder):
        try:
            ReferenceCache(path, None).verify()
            intact.append(str(path))
        except PactError as error:
            damaged[str(path)] = str(error)

    def show() -> None:
        for path in intact:
            click.echo(f"intact: {path}")
        for error in damaged.values():
            click.echo(f"damaged: {error}")
        advice = ": remove them, and the next run builds them again" if damaged else ""
        click.echo(f"{len(intact)} intact, {len(damaged)} damaged in {folder}{advice}.")

    return Result({"intact": intact, "damaged": damaged}, show, holds=not damaged)


@cache.command()
@_CACHE_DIR
@click.option("--yes", is_flag=True, help="Do not ask first.")
@prints_result
def clear(folder: Path | None, yes: bool) -> Result:
    """Remove the caches, finished or not.

    Those that a process is building stay.

    \b
    Example:
      pact cache clear --yes
    """
    from pact_plugins.storage.folder import clear as remove

    folder = folder or PactConfig().cache_folder
    if not yes:
        question = f"A run can only be resumed while its cache is there. Remove all caches in {folder}?"
        click.confirm(question, abort=True, err=True)
    removed, busy = remove(folder)
    for path in busy:
        click.echo(f"in use: {path}", err=True)
    value = {"removed": [str(path) for path in removed], "in_use": [str(path) for path in busy]}
    return Result(value, lambda: click.echo(f"{len(removed)} removed from {folder}"))
