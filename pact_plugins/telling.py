"""What a run prints for people. A stream that cannot take it must not end the run, nor cost its weights."""

from __future__ import annotations

import logging
import sys
from typing import Any, cast

from rich.console import Console

logger = logging.getLogger(__name__)


class _Replacing:
    """A stream, with an escape for each character that its encoding lacks: a log may be in any code page."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> Any:
        encoding = self._stream.encoding or "utf-8"
        return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def tell(what: Any, console: Console | None = None, **how: Any) -> None:
    """Prints anything that rich prints, and how; on standard output, unless there is a console for it."""
    try:
        console = console or Console(file=cast(Any, _Replacing(sys.stdout) if sys.stdout else None))
        console.print(what, **how)
    except (OSError, ValueError, SystemExit) as error:  # a closed stream, a full disk; rich exits where nobody reads
        logger.warning("PACT: what it tells about this run cannot be shown (%s: %s).", type(error).__name__, error)
