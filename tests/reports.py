"""Reports of runs in which something else is tested."""

from __future__ import annotations

import pytest


def without_page(patch: pytest.MonkeyPatch) -> None:
    """As where the extra `report` is not installed: plots take longer to draw than a tiny model to train."""
    patch.setattr("pact_plugins.report.write._lacking", lambda: ["jinja2", "matplotlib"])
