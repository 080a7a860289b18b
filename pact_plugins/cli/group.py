"""How commands are listed, and how their errors are shown."""

from __future__ import annotations

from typing import Any

import click

from pact_plugins.errors import PactError


class Commands(click.Group):
    """Shows a `PactError` as a message, in the order in which the work is done."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PactError as error:
            raise click.ClickException(str(error)) from error
