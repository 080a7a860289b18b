"""PACT, safety-preserving fine-tuning, as a pluggable loss and callback for Axolotl and TRL.

Importing the package loads neither torch nor a trainer: names are fetched when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pact_plugins.config import GateConfig, PactConfig
    from pact_plugins.errors import PactError
    from pact_plugins.method.safety_tokens import SafetyTokens
    from pact_plugins.run.callback import PactCallback

__version__ = "0.1.0"
__all__ = ["GateConfig", "PactCallback", "PactConfig", "PactError", "SafetyTokens"]

_HOMES = {
    "GateConfig": "config",
    "PactCallback": "run.callback",
    "PactConfig": "config",
    "PactError": "errors",
    "SafetyTokens": "method.safety_tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
