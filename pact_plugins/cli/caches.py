"""`pact cache`."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pact_plugins.cli.group import Commands, Result, prints_result
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError

if TYPE_CHECKING:
    from pact_plugins.storage.cache import Store


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

    With what they were computed with, and when a run last used them.

    \b
    Example:
      pact cache info
    """
    from pact_plugins.storage.folder import size_of, unfinished

    folder = folder or PactConfig().cache_folder
    found, damaged = _opened(folder)
    for error in damaged.values():
        click.echo(f"cannot be used: {error}", err=True)
    begun = {path: size_of(path) for path in unfinished(folder)}
    rows = [_about(store) for store in found]
    rows += [{"folder": str(path), "bytes": size} for path, size in begun.items()]
    return Result(rows, partial(_show, folder, found, begun))


def _opened(folder: Path) -> tuple[list[Store], dict[str, str]]:
    """The stores in a folder, and what is wrong with those that cannot be opened."""
    from pact_plugins.storage.folder import opened, stores

    found: list[Store] = []
    damaged: dict[str, str] = {}
    for path in stores(folder):
        try:
            if store := opened(path):
                found.append(store)
        except PactError as error:
            damaged[str(path)] = str(error)
    return found, damaged


def _about(store: Store) -> dict[str, Any]:
    return {
        "folder": str(store.folder),
        "bytes": store.size,
        "identity": store.identity.model_dump(),
        "documents": store.documents,
        "values": {view: sum(s.manifest.values[view] for s in store.segments) for view in store.identity.views},
        "segments": len(store.segments),
        "used": f"{datetime.fromtimestamp(store.folder.stat().st_mtime):%Y-%m-%d}",
    }


def _show(folder: Path, found: list[Store], begun: dict[Path, int]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{len(found)} reference cache{'' if len(found) == 1 else 's'} in {folder}"
    if not found and not begun:
        click.echo(title)
        return
    table = Table(title=escape(title), title_justify="left")
    differing = {entry for store in found for entry in found[0].identity.differences(store.identity)}
    entries = ["model", *sorted(differing - {"model"})]
    for header in ("folder", "of", *entries, "sequences", "values", "MiB", "last used"):
        table.add_column(escape(header), overflow="fold")
    for about, store in zip(map(_about, found), found, strict=True):
        cells = (escape(_in_short(about["identity"][entry])) for entry in entries)
        sizes = (f"{about['documents']:,}", f"{sum(about['values'].values()):,}", f"{about['bytes'] / 2**20:.1f}")
        table.add_row(escape(store.folder.name), ", ".join(about["values"]), *cells, *sizes, about["used"])
    for path, size in begun.items():
        name = escape(str(path.relative_to(folder)))
        table.add_row(name, "not finished", *[""] * (len(entries) + 2), f"{size / 2**20:.1f}", "")
    Console().print(table)


def _in_short(value: Any) -> str:
    """An entry of an identity; of a digest, its beginning."""
    text = "" if value is None else str(value)
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
    folder = folder or PactConfig().cache_folder
    found, damaged = _opened(folder)
    intact: list[str] = []
    for store in found:
        try:
            store.verify()
            intact.append(str(store.folder))
        except PactError as error:
            damaged[str(store.folder)] = str(error)

    def show() -> None:
        for path in intact:
            click.echo(f"intact: {path}")
        for error in damaged.values():
            click.echo(f"damaged: {error}")
        advice = ": remove them, and the next run computes their rows again" if damaged else ""
        click.echo(f"{len(intact)} intact, {len(damaged)} damaged in {folder}{advice}.")

    return Result({"intact": intact, "damaged": damaged}, show, holds=not damaged)


@cache.command()
@_CACHE_DIR
@click.option("--older-than", type=click.FloatRange(min=0), default=0, metavar="DAYS", help="Only unused for as long.")
@click.option("--model", default="", metavar="PREFIX", help="Only of models whose fingerprint (`info`) begins so.")
@click.option(
    "--down-to",
    type=click.FloatRange(min=0),
    default=0,
    metavar="GB",
    help="Only as many, the longest unused first, as leave so much.",
)
@click.option("--yes", is_flag=True, help="Do not ask first.")
@prints_result
def clear(folder: Path | None, older_than: float, model: str, down_to: float, yes: bool) -> Result:
    """Remove caches, finished or not: all, or some.

    Those that a process is building stay.

    \b
    Example:
      pact cache clear --yes
      pact cache clear --older-than 30 --down-to 50 --yes
    """
    from pact_plugins.storage.folder import Chosen
    from pact_plugins.storage.folder import clear as remove

    folder = folder or PactConfig().cache_folder
    chosen = Chosen(older_than, model, int(down_to * 1e9))
    if not yes:
        which = f"{len(chosen.of(folder))} caches"
        question = f"A run can only be resumed while its cache is there. Remove {which} in {folder}?"
        click.confirm(question, abort=True, err=True)
    removed, busy = remove(folder, chosen)
    for path in busy:
        click.echo(f"in use: {path}", err=True)
    value = {"removed": [str(path) for path in removed], "in_use": [str(path) for path in busy]}
    return Result(value, lambda: click.echo(f"{len(removed)} removed from {folder}"))
