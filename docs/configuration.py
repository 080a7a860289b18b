"""Writes the page `configuration.md` from the schema: `python -m docs.configuration`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pact_plugins import config
from pact_plugins.storage import files

PAGE = Path(__file__).with_name("configuration.md")

BLOCKS: dict[str, type[BaseModel]] = {
    "pact": config.PactConfig,
    **{f"pact.{key}": block for key, block in config.BLOCKS.items()},
}

_HEAD = """# Configuration

The same keys, with the same meaning, in an Axolotl YAML file, in a file for `pact sft`, and in Python:

```yaml
pact:
  weight: 0.3
  eval: {limit: 96}
```

```python
PactCallback(trainer, weight=0.3, eval={"limit": 96})
```

`pact: true` is all defaults, `pact: false` an explicit off. `PactCallback(trainer)` is `pact: true`; in place of single
settings it takes a `PactConfig` or a dict.

A key that is not on this page is an error, as is a value outside its bounds, and a setting that another one would make
idle: nothing that is written down is ignored. `pact check run.yaml` reads a file without starting its run. Why the
defaults are what they are: [method card](method-card.md).

This page is made from the schema: `python -m docs.configuration`.
"""


def page() -> str:
    """The reference of every key, in Markdown."""
    parts = [_HEAD]
    for name, block in BLOCKS.items():
        doc = (block.__doc__ or "").strip().splitlines()[0]
        parts += [f"## `{name}`", f"\n{doc}\n", "| key | values | default | what it does |", "|---|---|---|---|"]
        parts += [*_rows(block), ""]
    return "\n".join(parts)


def _rows(block: type[BaseModel]) -> Iterator[str]:
    properties: dict[str, Any] = block.model_json_schema()["properties"]
    for key, field in block.model_fields.items():
        assert field.default is not PydanticUndefined, "every key has a default"
        words = (field.description or "").replace("|S|", "\\|S\\|")
        yield f"| `{key}` | {_values(properties[key])} | {_default(field.default, words)} | {words} |"


def _values(schema: dict[str, Any]) -> str:
    """What may stand behind a key, with its bounds."""
    if "anyOf" in schema:
        members = [_values(member) for member in schema["anyOf"] if member.get("type") != "null"]
        return ", or ".join(dict.fromkeys(members))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return "a block"
    if schema["type"] == "array":
        items = schema["items"].get("anyOf", [schema["items"]])
        if "enum" in items[0]:
            return f"a list out of {_values(items[0])}"
        return f"a list of {' and '.join(f'{_values(item)}s' for item in items)}"
    words = {"boolean": "`true` or `false`", "integer": "integer", "number": "number", "string": "text"}
    bounds = {
        "exclusiveMinimum": "above {}",
        "minimum": "at least {}",
        "exclusiveMaximum": "below {}",
        "maximum": "at most {}",
    }
    name = "path" if schema.get("format") == "path" else words[schema["type"]]
    return ", ".join([name, *(text.format(f"{schema[b]:g}") for b, text in bounds.items() if b in schema)])


def _default(value: Any, words: str) -> str:
    if value is None:
        return "see right" if "Default:" in words else "none"
    if isinstance(value, BaseModel):
        return "its own"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`[{', '.join(value)}]`" if isinstance(value, tuple) else f"`{value}`"


if __name__ == "__main__":
    files.write_text(PAGE, page())
