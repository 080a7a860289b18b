"""What a run prints never ends it."""

from __future__ import annotations

import io
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.table import Table

from pact_plugins.cli import main
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.model.progress import tell
from tests import tiny


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_code_page_is_enough(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a run that ends because its log cannot show a token."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    table = Table("token")
    table.add_row("'\u0120I\u4e2d\ud800'")
    tell(table)
    shown = written.getvalue().decode(encoding)
    assert ("\u0120I\u4e2d" if encoding == "utf-8" else r"\u0120I\u4e2d") in shown
    assert r"\ud800" in shown


def _full() -> io.TextIOWrapper:
    return Path("/dev/full").open("w", encoding="utf-8")


def _nobody_reads() -> io.TextIOWrapper:
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def _closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [_full, _nobody_reads, _closed])
def test_a_stream_that_fails_is_said(
    stream: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prevents a run that ends at its table or at its report's line, the weights not yet saved."""
    monkeypatch.setattr(sys, "stdout", stream())
    with caplog.at_level(logging.WARNING):
        tell("all is well")
    assert "cannot be shown" in caplog.text


def test_no_stream_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a run without a terminal or a log, such as a service's, from ending at its table."""
    monkeypatch.setattr(sys, "stdout", None)
    tell("all is well")


def test_commands_show_tokens_in_any_code_page(tmp_path: Path) -> None:
    """Prevents a command whose result cannot be seen in a log."""
    tokens = SafetyTokens.of_list([40, 41], tiny.tokenizer())
    replace(tokens, texts=("\u4e2d", "\u0120I")).save(tmp_path / "t.json")
    shown = CliRunner(charset="cp1252").invoke(main, ["inspect", str(tmp_path / "t.json")])
    assert shown.exit_code == 0, shown.output
    assert r"\u4e2d" in shown.output
