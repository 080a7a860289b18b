"""Writes the page `command-line.md` from the commands themselves: `python -m docs.command_line`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from pact_plugins.cli import main
from pact_plugins.storage import files

PAGE = Path(__file__).with_name("command-line.md")

_HEAD = """# Command line

`pact --help` lists the commands in the order of the work; the help of each, below, says what it reads and writes, with
an example. `python -m pact_plugins` is the same program, for launchers that start a module.

## Exit codes

| code | means |
|---|---|
| 0 | done; of `pact check`, `pact verify` and `pact cache verify`: the answer is yes |
| 1 | the answer is no, or an error: its message says what was expected, what was there, what follows and what to do |
| 2 | wrong use: an unknown command or option, a value out of bounds, a file or folder that is not there |
| 130 | interrupted (Ctrl-C) |

`pact check` and `pact verify` answer about everything that is there: a file that cannot be read is not sound, damaged
evidence is none. So 1 is a "no", with its reasons on standard output. A path that is not there is 2, and standard
output stays empty, as it does if the program itself fails. A script that must not go on in any of these cases asks for
0:

```bash
pact check run.yaml || exit
pact sft --config run.yaml || exit
pact verify outputs/run --json > verdict.json
```

`pact sft` ends as the script of TRL does where PACT has no objection.

## For scripts and logs

With `--json` a command prints its result as JSON. Standard output holds the result alone, as JSON or not: warnings,
progress bars and what hosts print go to standard error. Bars are drawn on a terminal only, and not with `--json`;
`TQDM_DISABLE=1` switches them off everywhere. `NO_COLOR=1` leaves colours out, `COLUMNS` sets the width of tables.
`pact sft` prints what TRL prints, where TRL prints it.

## Shell completion

Commands, options, their choices and file names complete with the tab key. For bash, zsh and fish, in this order, the
line for `~/.bashrc`, `~/.zshrc` and `~/.config/fish/completions/pact.fish`:

```bash
eval "$(_PACT_COMPLETE=bash_source pact)"
eval "$(_PACT_COMPLETE=zsh_source pact)"
_PACT_COMPLETE=fish_source pact | source
```

## Commands

The help of each, as it is printed. This page is made from it: `python -m docs.command_line`.
"""


def page() -> str:
    """How the commands are used, in Markdown."""
    return "\n".join([_HEAD, *_helps(main, None, "pact")])


def _helps(command: click.Command, parent: click.Context | None, name: str) -> Iterator[str]:
    """The help of a command and of those below it, as a terminal of 80 columns shows it."""
    context = click.Context(command, parent=parent, info_name=name, terminal_width=78)
    yield f"### `{context.command_path}`\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for inner, found in command.commands.items():
            yield from _helps(found, context, inner)


if __name__ == "__main__":
    files.write_text(PAGE, page())
