"""Pages that are made from the code say what the code says."""

from __future__ import annotations

from docs import configuration
from pact_plugins.config import PactConfig


def test_the_configuration_page_is_the_schema() -> None:
    """Prevents a reference of keys, bounds or defaults that no longer hold."""
    shown = configuration.PAGE.read_text(encoding="utf-8")
    assert shown == configuration.page(), "run `python -m docs.configuration`"
    assert all(f"| `{key}` |" in shown for key in PactConfig.model_fields)
