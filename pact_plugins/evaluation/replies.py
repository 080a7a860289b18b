"""What served judges reply, kept in a file as it comes: nothing that was paid for is asked again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from io import BufferedWriter
from pathlib import Path

from pact_plugins.errors import PactError

FILE = "judge_replies.jsonl"
"""In the folder of an evaluation."""


@dataclass(frozen=True)
class Reply:
    """One reply.

    Attributes:
        text: as it came.
        read, written: tokens of request and reply, as the server counts them; None where it does not.
        repeats: requests before the one that was answered.
    """

    text: str
    read: int | None
    written: int | None
    repeats: int


class Replies:
    """The replies in one folder, each under the digest of what was asked of whom; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / FILE if folder is not None else None
        self._file: BufferedWriter | None = None

    def read(self) -> dict[str, Reply]:
        """All replies of the file. A last line that was not finished is cut off.

        Raises:
            PactError: a line is none of ours.
        """
        if self.path is None or not self.path.exists():
            return {}
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        found: dict[str, Reply] = {}
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
                found[row["key"]] = Reply(row["text"], row["read"], row["written"], row["repeats"])
            except (ValueError, KeyError, TypeError) as error:
                raise PactError(
                    expected=f"replies of judges in {self.path}",
                    got=f"in line {number} {type(error).__name__}: {error}",
                    consequence="Verdicts would have been read from something else.",
                    remedy="Remove the line, or the file: what is missing is asked again.",
                ) from error
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        return found

    def add(self, key: str, judge: str, reply: Reply) -> None:
        """Writes one reply, for good."""
        if self.path is None:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        row = {"key": key, "judge": judge, **asdict(reply)}
        self._file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file until the next reply."""
        if self._file is not None:
            self._file.close()
            self._file = None
