"""The YAML file that a run is started with, for `pact sft` or for Axolotl."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from yaml.composer import ComposerError

from pact_plugins.errors import PactError

Host = Literal["trl", "axolotl"]

PLUGIN = "pact_plugins.axolotl.PactPlugin"
"""What a file for Axolotl lists under `plugins`."""

_STARTED_BY: dict[Host, tuple[str, str]] = {
    "trl": ("`trl sft`", "pact sft --config"),
    "axolotl": ("Axolotl", "axolotl pact-train"),
}
"""What each host is called, and what starts a file of it under PACT."""


class _KeysOnce(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML loaders silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise ComposerError(None, None, f"found the key `{key.value}` twice", key.start_mark)
                seen.add((key.tag, key.value))
        return node


def read_run_file(path: Path) -> dict[str, Any]:
    """The settings of a YAML file that a run is started with.

    Raises:
        PactError: no such file, no YAML file of settings, or a key twice.
    """
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), _KeysOnce)
        if isinstance(settings, dict):
            return settings
        got = f"a file that holds {type(settings).__name__} in place of keys"
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        got = f"{type(error).__name__}: {error}"
    raise PactError(
        expected=f"a readable YAML file {path}",
        got=got,
        consequence="Nothing was started.",
        remedy="Correct the path or the file.",
    )


def block(settings: Any) -> Mapping[str, Any]:
    """A block of settings, or of the file that is named in its place; empty where there is none to be read."""
    if isinstance(settings, str) and (path := Path(settings)).is_file():
        read = yaml.safe_load if path.suffix in (".yaml", ".yml") else json.loads
        try:
            settings = read(path.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError):
            return {}
    return settings if isinstance(settings, dict) else {}


def options(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings among the arguments of a command: `--key value`, `--key=value`, or `--key` for true."""
    found: dict[str, Any] = {}
    for argument, following in pairwise([*arguments, "--"]):
        if argument.startswith("--"):
            key, equals, value = argument.removeprefix("--").partition("=")
            text = value if equals else "true" if following.startswith("--") else following
            found[key.replace("-", "_")] = yaml.safe_load(text)
    return found


@contextmanager
def variables(settings: Mapping[str, Any]) -> Generator[None]:
    """Within, the environment variables that a file for TRL sets (`env`), as TRL's script sets them."""
    own = settings.get("env")
    before = dict(os.environ)
    os.environ.update({str(key): str(value) for key, value in own.items()} if isinstance(own, dict) else {})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def host_of(settings: dict[str, Any], path: Path, asked: Host | None = None) -> Host:
    """Which host a run file is for, by its keys.

    Args:
        asked: the host that was started with it, which goes where the keys do not say.

    Raises:
        PactError: it is for another host than the one that was started, or for none that is known.
    """
    host = asked
    if "plugins" in settings or {"base_model", "datasets"} <= settings.keys():
        host = "axolotl"
    elif "model_name_or_path" in settings:
        host = "trl"
    if host is None:
        raise PactError(
            expected="a file for Axolotl (`plugins`, `base_model`, `datasets`) or for `pact sft` "
            "(`model_name_or_path`)",
            got=f"the keys {', '.join(map(str, settings)) or '(none)'} in {path}",
            consequence="It is not known how the run would load its model and data.",
            remedy="Name the file that you train with.",
        )
    if asked is not None and host != asked:
        name, command = _STARTED_BY[host]
        raise PactError(
            expected=f"a file for {_STARTED_BY[asked][0]}",
            got=f"one for {name}",
            consequence="Nothing was started.",
            remedy=f"Start it with `{command} {path}`.",
        )
    return host
