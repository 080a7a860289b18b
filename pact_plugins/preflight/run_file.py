"""The YAML file that a run is started with, for `pact sft` or for Axolotl."""

from __future__ import annotations

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

_UNSERVED = {
    "rl": "Preference and reinforcement trainers have no supervised answers to constrain.",
    "reward_model": "A reward model has no answers of its own to constrain.",
    "process_reward_model": "A reward model has no answers of its own to constrain.",
    "context_parallel_size": "Answers would be cut between processes.",
    "sequence_parallel_degree": "Answers would be cut between processes.",
    "tensor_parallel_size": "The head would be cut between processes.",
    "expert_parallel_size": "It was not tried whether the reference would be computed from whole weights.",
}
"""Keys of either host that PACT cannot serve, and why."""


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


def unserved(settings: Mapping[str, Any]) -> dict[str, str]:
    """The keys among the settings that PACT cannot serve, unless they are off or 1, and why."""
    return {key: why for key, why in _UNSERVED.items() if settings.get(key) not in (None, False, 1)}


def host_of(settings: dict[str, Any], path: Path, asked: Host | None = None) -> Host:
    """Which host a run file is for, by its keys.

    Args:
        settings: of the file.
        path: of the file, for errors.
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
