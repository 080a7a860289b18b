"""Safety tokens: lists, files, and what finds them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from pact_plugins.config import PromptsConfig
from pact_plugins.method import discovery
from pact_plugins.method.contrast import Contrast
from pact_plugins.method.prompting import Prompts
from pact_plugins.method.safety_tokens import SafetyTokens, Stability
from pact_plugins.storage import files
from tests import tiny
from tests.bad_inputs.case import BadInput, Begun, config, given, trainer_on, written

TOKENIZER = tiny.tokenizer()
_FILE = r"`pact tokens`.*; got {} on .*tokens\.json"


def _of_list(*tokens: int | str) -> Begun:
    return _held(list(tokens))


def _held(
    tokens: list[int | str] | None = None,
    tokenizer: Any = TOKENIZER,
    model: Callable[[], Any] = tiny.llama,
    **more: Any,
) -> Begun:
    """A run that holds these tokens, or those of `tokens.json`, which were made for the tiny tokenizer."""

    def make(folder: Path) -> Any:
        if tokens is None:
            _made([50, 200], [1.0, 1.0]).save(folder / "tokens.json")
        named = folder / "tokens.json" if tokens is None else tokens
        return trainer_on(folder, tokenizer=tokenizer, model=model), config(folder, safety_tokens=named, **more)

    return Begun(make)


def _made(ids: list[int], weights: list[float]) -> SafetyTokens:
    return SafetyTokens.build(ids, weights, TOKENIZER, {})


def _larger() -> Any:
    """The tokenizer with a token more than when the safety tokens were found."""
    other = copy.deepcopy(TOKENIZER)
    other.add_tokens(["<|new|>"])
    return other


def _cut() -> Any:
    model = tiny.llama()
    model.resize_token_embeddings(128)
    return model


def _in_file(make_file: Callable[[Path], Any]) -> Begun:
    """A run whose safety tokens are in a file."""

    def make(folder: Path) -> Any:
        make_file(folder / "tokens.json")
        return trainer_on(folder), config(folder, safety_tokens=folder / "tokens.json")

    return Begun(make)


def _edited(change: Callable[[dict[str, Any]], Any], *, sign: bool = False) -> Begun:
    """A file of safety tokens whose content was changed by hand, with its old checksum or with a new one."""

    def make_file(path: Path) -> None:
        _made([50, 60], [1.0, 0.5]).save(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        if sign:
            del content["checksum"]
            files.write(path, content)
        else:
            path.write_text(json.dumps(content), encoding="utf-8")

    return _in_file(make_file)


def _bare_tokenizer() -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="<|end|>")


def _of_a_model_that_refuses_nothing(_folder: Path) -> None:
    known = Stability((1.0, 1.0), (0.5, 0.5), (1.0, 1.0), ("", ""), 0.6, 0.02)
    replace(_made([50, 60], [1.0, 0.5]), stability=known).require_refusals()


def _own_prompts(harmful: str, harmless: str | None) -> Callable[[Path], Any]:
    """The user's own prompts, in two files; None for one that is not there."""

    def act(folder: Path) -> Any:
        for name, lines in (("harmful", harmful), ("harmless", harmless)):
            if lines is not None:
                (folder / f"{name}.txt").write_text(lines, encoding="utf-8")
        return Prompts.of(PromptsConfig(harmful=folder / "harmful.txt", harmless=folder / "harmless.txt"))

    return act


INPUTS = [
    BadInput("An id that the tokenizer does not have", _of_list(50, 9999), r"`pact\.safety_tokens`.*got 9999"),
    BadInput("A negative id", _of_list(-1), r"`pact\.safety_tokens`.*got -1"),
    BadInput("A text of several tokens", _of_list("Sorry"), r"`pact\.safety_tokens`.*got 'Sorry'"),
    BadInput("A text of no token", _of_list(""), r"`pact\.safety_tokens`.*got ''"),
    BadInput("No token in a list", given(SafetyTokens.of_list, [], TOKENIZER), r"at least one; got 0"),
    BadInput("No such tokens file", _in_file(lambda _path: None), _FILE.format(r"\w+Error")),
    BadInput("A folder in place of the tokens file", SafetyTokens.load, r"`pact tokens`.*; got \w+Error on"),
    BadInput("A tokens file that is empty", written("", "tokens.json", SafetyTokens.load), _FILE.format(r"\w+Error")),
    BadInput(
        "A tokens file of another kind", written("[1, 2]", "tokens.json", SafetyTokens.load), _FILE.format(r"\w+")
    ),
    BadInput(
        "A tokens file that is no text", written(b"\xff\xfe", "tokens.json", SafetyTokens.load), _FILE.format(r"\w+")
    ),
    BadInput(
        "A tokens file edited by hand", _edited(lambda c: c["ids"].append(7)), _FILE.format(r"\w+") + ".*checksum"
    ),
    BadInput("A tokens file of another format", _edited(lambda c: c.update(format=99), sign=True), r"format.*99"),
    BadInput("Tokens that stand twice in a file", _edited(lambda c: c.update(ids=[7, 7]), sign=True), r"distinct ids"),
    BadInput("Fewer weights than tokens", _edited(lambda c: c["weights"].pop(), sign=True), r"as many ids as weights"),
    BadInput("A weight that is not finite", given(_made, [50], [float("inf")]), r"finite weights.*; got \[inf\]"),
    BadInput("A negative weight", given(_made, [50], [-1.0]), r"weights that are not negative; got \[-1\.0\]"),
    BadInput("Tokens without any weight", given(_made, [50, 60], [0.0, 0.0]), r"positive weight; got 2 candidates"),
    BadInput(
        "A stability of fewer tokens",
        lambda _folder: replace(_made([50, 60], [1.0, 0.5]), stability=Stability((1.0,), (0.0,), (1.0,), ("",), 1.0)),
        r"a stability of each token; got 1 for 2",
    ),
    BadInput(
        "A token that is added and excluded",
        _held([50, 60], safety_tokens_add=[70], safety_tokens_exclude=["a", 70]),
        r"either added or excluded; got .* in both",
    ),
    BadInput(
        "Every token excluded",
        _held([50], safety_tokens_exclude=[50]),
        r"something to hold; got nothing",
    ),
    BadInput(
        "A model that hardly refuses",
        _of_a_model_that_refuses_nothing,
        r"declines at least 20% of the harmful prompts; got 2%.*`pact\.safety_tokens`",
    ),
    BadInput("More harmful than harmless prompts", _own_prompts("a\nb\n", "c\n"), r"as many .*; got 2 in .* and 1 in"),
    BadInput("Prompt files that are empty", _own_prompts("\n", ""), r"at least one.*; got 0 in .* and 0 in"),
    BadInput("A prompt file that is not there", _own_prompts("a", None), r"harmless\.txt; got FileNotFoundError"),
    BadInput("Tokens made for another tokenizer", _held(tokenizer=_larger()), r"has 263 tokens; got .*of 262 tokens"),
    BadInput("Embeddings cut down after the tokens were made", _held(model=_cut), r"head, 128; got 200"),
    BadInput(
        "Tokens to be found without a chat template",
        lambda _folder: discovery.discover(tiny.llama(), _bare_tokenizer()),
        r"a tokenizer with a chat template; got one without",
    ),
    BadInput(
        "A contrast that finds nothing",
        given(discovery.to_safety_tokens, Contrast(*torch.zeros(2, 3, len(TOKENIZER))), TOKENIZER, {}, []),
        r"tokens that the model prefers when it refuses; got none",
    ),
    BadInput(
        "The aligned model as its own base model",
        lambda _folder: discovery.discover_against_base(tiny.llama(), tiny.llama(), TOKENIZER),
        r"a base model that differs.*the same weights twice",
    ),
    BadInput(
        "A base model with another vocabulary",
        lambda _folder: discovery.discover_against_base(tiny.llama(), tiny.llama(vocab_size=300), TOKENIZER),
        r"262 output tokens; got .* with 300",
    ),
]
