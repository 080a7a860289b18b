"""What happens before the first step, in the first run, the second, and a resumed one."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerFast

from pact_plugins.chat.answers import AnswerTokens, Document
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.method import discovery, finder, prompting, reference, safety_tokens
from pact_plugins.method.finder import Finder
from pact_plugins.method.reference import Computed
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.run.cost import Overhead
from pact_plugins.run.preparation import Preparation, evidence_of, prepare, print_summary
from pact_plugins.run.trainer import Start
from pact_plugins.storage.cache import log_probabilities
from pact_plugins.storage.writer import SEGMENTS
from tests import tiny
from tests.rows import conversation, documents, few

WORDS = ["I", "N", "S"]
ROWS = few()
PAPER = {"objective": "paper", "gate": False, "conflict": "damp"}
PARITY = [(1, 8), (1, 8), (2, 8)]
"""Shapes of the parity check: one sequence, without labels and with them, and two through the decoder alone."""


@pytest.fixture(autouse=True)
def short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few prompts, so that finding the tokens takes no time; models of random weights need not refuse them."""
    monkeypatch.setattr(safety_tokens, "LEAST_REFUSALS", 0.0)
    lines = {"harmful": ["bad", "worse"], "harmless": ["good", "better"], "refusals": ["No."]}
    monkeypatch.setattr(prompting, "shipped", lambda name, _language="en": lines[name.split("_")[-1]])


def ready(tmp_path: Path, model: Any = None, docs: list[Document] | None = None, **settings: Any) -> Preparation:
    resumed_from, autocast = settings.pop("resumed_from", None), settings.pop("autocast", nullcontext)
    tokenizer = settings.pop("tokenizer", tiny.tokenizer())
    config = PactConfig.parse({"safety_tokens": WORDS, "anchors": 0, "cache_dir": tmp_path / "cache", **settings})
    assert config is not None
    return prepare(
        Start(
            model or tiny.llama(),
            tokenizer,
            documents(ROWS) if docs is None else docs,
            config,
            resumed_from=resumed_from,
            autocast=autocast,
            show_progress=False,
        )
    )


def test_a_model_that_hardly_refuses_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a run that constrains words such as " of", and reports protection."""
    monkeypatch.setattr(safety_tokens, "LEAST_REFUSALS", 0.2)
    found = discovery.in_answers

    def refusing_little(*args: Any, **settings: Any) -> SafetyTokens:
        tokens = found(*args, **settings)
        assert tokens.stability is not None
        return replace(tokens, stability=replace(tokens.stability, refusals=0.02))

    monkeypatch.setattr(discovery, "in_answers", refusing_little)
    with pytest.raises(PactError, match="declines at least 20% of the harmful prompts; got 2%"):
        ready(tmp_path, safety_tokens="auto")
    assert ready(tmp_path, safety_tokens=WORDS).computed.rows


@contextmanager
def forward_passes(model: Any) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the sequences that go through the model's decoder."""
    shapes: list[tuple[int, ...]] = []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hook = base.get_decoder().register_forward_hook(
        lambda _m, args, kw, _out: shapes.append(tuple((kw["input_ids"] if "input_ids" in kw else args[0]).shape)),
        with_kwargs=True,
    )
    yield shapes
    hook.remove()


def reference_of(p: Preparation) -> np.ndarray:
    return p.objective.reference.look_up(AnswerTokens.of(documents(ROWS[:1]), p.objective.chat)).full


def trained(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    return model


def test_the_second_preparation_only_checks(tmp_path: Path) -> None:
    """Prevents: every run paying for tokens and reference again, which a user would only notice as slowness."""
    with forward_passes(model := tiny.llama()) as first:
        one = ready(tmp_path, model, safety_tokens="auto", anchors=2)
    with forward_passes(model := tiny.llama()) as second:
        two = ready(tmp_path, model, safety_tokens="auto", anchors=2)
    assert (one.computed.rows, two.computed) == (len(ROWS), Computed())
    assert len(first) > 1
    assert second == PARITY
    assert one.objective.tokens == two.objective.tokens
    assert one.identity == two.identity


def test_another_lora_draw_finds_the_cache(tmp_path: Path) -> None:
    """Prevents: LoRA's random start making every run a new model."""
    models = []
    for seed in (1, 2):
        base = tiny.llama()
        torch.manual_seed(seed)
        models.append(peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])))
    assert ready(tmp_path, models[0], safety_tokens="auto").computed.rows
    with forward_passes(models[1]) as passes:
        assert not ready(tmp_path, models[1], safety_tokens="auto").computed.rows
    assert passes == 2 * PARITY, "with the adapter as it begins, and as if trained"


@pytest.mark.parametrize(
    ("change", "rows", "prompts"),
    [
        ({"model": lambda: tiny.llama(seed=1)}, 4, 0),
        ({"docs": lambda: documents(ROWS[:-1])}, 0, 3),
        ({"docs": lambda: documents([*ROWS, conversation(("new", "row"))])}, 1, 4),
        ({"safety_tokens": lambda: ["I", "N"]}, 4, 0),
        ({"gate": lambda: True}, 4, 0),
        ({"gate": lambda: True, "conflict": lambda: "keep"}, 4, 0),
        ({"conflict": lambda: "keep"}, 0, 0),
    ],
    ids=["model", "a row less", "a row more", "tokens", "gate", "gate without harm", "no harm"],
)
def test_what_the_reference_depends_on_is_computed_again(
    tmp_path: Path, change: dict[str, Any], rows: int, prompts: int
) -> None:
    """Prevents: the reference of another model or token list, a probe of other data, and rows computed for nothing."""
    assert ready(tmp_path).computed.rows == len(ROWS)
    computed = ready(tmp_path, **{name: make() for name, make in change.items()}).computed
    assert (computed.rows, computed.prompts) == (rows, prompts)
    assert ready(tmp_path).computed == Computed()


@pytest.mark.parametrize("change", [{"weight": 3}, {"conflict_threshold": 0.9}, PAPER])
def test_other_settings_share_the_reference(tmp_path: Path, change: dict[str, Any]) -> None:
    """Prevents: a sweep over weights computing the same reference once a run."""
    assert ready(tmp_path).computed.rows
    assert not ready(tmp_path, **change).computed.rows


def test_a_gate_of_another_reach_builds_its_own(tmp_path: Path) -> None:
    """Prevents: a longer gate mixing in the full view where the other one is meant; a steeper one building anew."""
    assert ready(tmp_path, gate={"hold": 2}).computed.rows
    assert not ready(tmp_path, gate={"hold": 2, "slope": 3}).computed.rows
    assert ready(tmp_path, gate={"hold": 3}).computed.rows


def test_another_prefix_builds_its_own(tmp_path: Path) -> None:
    """Prevents: a gate that uses the reference after another context than the one in the settings."""
    assert ready(tmp_path, gate=True).computed.rows
    assert not ready(tmp_path, gate={"prefix": "bos"}).computed.rows
    assert ready(tmp_path, gate={"prefix": "header"}).computed.rows
    assert not ready(tmp_path, objective="paper", conflict="damp").computed.rows


@pytest.mark.parametrize("turns", [1, 2])
def test_what_a_template_does_otherwise_is_said(tmp_path: Path, turns: int, caplog: pytest.LogCaptureFixture) -> None:
    """Prevents: a guessed header that nobody sees, and a warning about several answers where there is one."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}<|assistant|>"
        "{% else %}{{ ':' if loop.last }}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = template
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant") * turns]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    config = PactConfig.parse({"safety_tokens": WORDS, "cache_dir": tmp_path, "anchors": 0})
    assert config is not None
    prepare(Start(tiny.llama(), tokenizer, documents([(ids, ids)]), config, show_progress=False))
    said = [record.getMessage() for record in caplog.records if "chat template" in record.getMessage()]
    assert "adds no generation prompt" in said[0]
    assert ["once the conversation goes on" in one for one in said[1:]] == [True] * (turns - 1)


def test_order_and_repetition_of_rows_share_the_reference(tmp_path: Path) -> None:
    """Prevents: a shuffled data set counting as another one."""
    assert ready(tmp_path).computed.rows
    shuffled = ready(tmp_path, docs=documents([*reversed(ROWS), ROWS[0]]))
    assert not shuffled.computed.rows
    assert shuffled.data.sequences == len(ROWS) + 1


def test_a_tokens_file_is_used_as_it_is(tmp_path: Path) -> None:
    """Prevents: `safety_tokens: file` finding tokens of its own."""
    tokens = SafetyTokens.build([7, 70, 9], [0.5, 0.25, 0.0], tiny.tokenizer(), {"method": "by hand"})
    tokens.save(tmp_path / "t.json")
    assert ready(tmp_path, safety_tokens=str(tmp_path / "t.json")).objective.tokens == tokens


def test_wrong_tokens_files_are_refused(tmp_path: Path) -> None:
    """Prevents: another model's tokens, or none at all, being held."""
    with pytest.raises(PactError, match="arbitrary tokens"):
        ready(tmp_path, safety_tokens=str(tmp_path / "missing.json"))
    other = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    other.add_tokens(["<extra>"])
    SafetyTokens.build([7], [1.0], other, {}).save(tmp_path / "other.json")
    with pytest.raises(PactError, match="unrelated tokens"):
        ready(tmp_path, safety_tokens=str(tmp_path / "other.json"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("docs", [[], [([0, 4, 5, 8], [-100, 4, 5, 8])]], ids=["none", "cut before the answer"])
def test_data_without_answers_is_refused(tmp_path: Path, docs: list[Any]) -> None:
    """Prevents: a run that trains without PACT because `max_length` cut every answer off."""
    with pytest.raises(PactError, match=r"at least one answer token") as caught:
        ready(tmp_path, docs=documents(docs))
    assert "max_length" in caught.value.remedy


def test_rows_without_answers_are_counted(tmp_path: Path) -> None:
    """Prevents: rows that train without PACT going unmentioned."""
    p = ready(tmp_path, docs=documents([*ROWS, ([0, 4, 5, 8], [-100, 4, 5, 8])]))
    assert (p.data.sequences, p.data.unanswered) == (len(ROWS) + 1, 1)
    printed = io.StringIO()
    print_summary(p, Console(file=printed, width=200))
    assert "1 of 5 sequences: not constrained" in printed.getvalue()


@pytest.mark.parametrize("settings", [{"gate": True}, {"objective": "paper"}])
def test_the_gate_needs_a_header(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Prevents: a gate that is on in the config and silently off in the run."""
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    config = PactConfig.parse({"safety_tokens": WORDS, "cache_dir": tmp_path, **settings})
    assert config is not None
    with pytest.raises(PactError, match=r"pact\.gate"):
        prepare(Start(tiny.llama(), bare, documents(ROWS), config, show_progress=False))


def test_resuming_without_notes_is_refused(tmp_path: Path) -> None:
    """Prevents: fine-tuned weights becoming the reference."""
    with pytest.raises(PactError, match=r"already fine-tuned: they are no reference\."):
        ready(tmp_path, resumed_from=tmp_path / "run")


def test_resuming_uses_the_old_reference(tmp_path: Path) -> None:
    """Prevents: a resumed run being held to what it had drifted to."""
    first = ready(tmp_path, safety_tokens="auto")
    evidence_of(first).save(tmp_path / "run")
    model = trained(tiny.llama())
    with forward_passes(model) as passes:
        resumed = ready(tmp_path, model, safety_tokens="auto", resumed_from=tmp_path / "run")
    assert passes == PARITY
    assert not resumed.computed.rows
    assert resumed.identity == first.identity
    assert resumed.objective.tokens == first.objective.tokens
    assert (reference_of(resumed) == reference_of(first)).all()
    fresh = ready(tmp_path, model, safety_tokens="auto")
    assert fresh.computed.rows
    assert np.abs(reference_of(fresh)[:, :1] - reference_of(first)[:, :1]).max() > 1e-2


@pytest.mark.parametrize(
    ("change", "field"),
    [({"docs": documents(ROWS[:-1])}, "data"), ({"gate": True}, "reach")],
    ids=["data", "gate"],
)
def test_resuming_with_something_else_is_refused(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    """Prevents: rows without a reference turning up in the middle of a resumed epoch."""
    evidence_of(ready(tmp_path)).save(tmp_path / "run")
    with pytest.raises(PactError, match="does not cover this one") as caught:
        ready(tmp_path, trained(tiny.llama()), resumed_from=tmp_path / "run", **change)
    assert caught.value.got.startswith(f"{field} = ")


def test_resuming_without_the_cache_is_refused(tmp_path: Path) -> None:
    """Prevents: building a new reference from trained weights; and advice that would do just that."""
    p = ready(tmp_path)
    evidence_of(p).save(tmp_path / "run")
    with pytest.raises(PactError) as caught:
        ready(tmp_path, trained(tiny.llama()), resumed_from=tmp_path / "run", cache_dir=str(tmp_path / "elsewhere"))
    assert "the next run builds it again" not in caught.value.remedy
    assert not (tmp_path / "elsewhere").exists()


def test_resuming_with_values_of_another_build_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a resumed run that goes on against other values than it began with, if only in their last bits."""
    first = ready(tmp_path)
    evidence_of(first).save(tmp_path / "run")
    for number in range(5, 5 + SEGMENTS):  # one of several segments, and then again one
        ready(tmp_path, docs=documents(few(number)))
    assert len(ready(tmp_path).objective.reference.stores[0].segments) == 1
    assert ready(tmp_path, trained(tiny.llama()), resumed_from=tmp_path / "run").values == first.values
    shutil.rmtree(first.objective.reference.folder)
    with pytest.raises(PactError, match="the reference cache of the run being resumed"):
        ready(tmp_path, trained(tiny.llama()), resumed_from=tmp_path / "run")
    with monkeypatch.context() as patch:  # as other kernels, or other batches, may round
        patch.setattr(reference, "log_probabilities", lambda capture: log_probabilities(capture) + 0.01)
        assert ready(tmp_path).computed.rows == len(ROWS)
    with pytest.raises(PactError, match="differs in its last bits"):
        ready(tmp_path, trained(tiny.llama()), resumed_from=tmp_path / "run")


@pytest.mark.parametrize("notes", ["{}", "[]", "", '{"model": 3'], ids=["no fields", "a list", "empty", "cut"])
def test_damaged_notes_are_refused(tmp_path: Path, notes: str) -> None:
    """Prevents: a traceback, or a fresh reference, where the notes of the run were damaged."""
    evidence_of(ready(tmp_path)).save(tmp_path / "run")
    (tmp_path / "run" / "pact_evidence.json").write_text(notes)
    with pytest.raises(PactError):
        ready(tmp_path, resumed_from=tmp_path / "run")


def test_damaged_noted_tokens_are_refused(tmp_path: Path) -> None:
    """Prevents: resuming with other weights on the tokens than the run began with."""
    evidence_of(ready(tmp_path)).save(tmp_path / "run")
    path = tmp_path / "run" / "pact_safety_tokens.json"
    content = json.loads(path.read_text())
    content["weights"][0] = 9.0
    path.write_text(json.dumps(content))
    with pytest.raises(PactError, match="checksum"):
        ready(tmp_path, resumed_from=tmp_path / "run")


def test_found_tokens_depend_on_how_they_were_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: tokens found with another `top_k`, base model or prompts being used again."""
    tiny.save(tmp_path / "base", seed=1)
    loads = []
    load = finder.load_base
    monkeypatch.setattr(finder, "load_base", lambda name, device: loads.append(name) or load(name, device))

    def found(identity: str = "m", **settings: Any) -> SafetyTokens:
        config = PactConfig.parse({"cache_dir": tmp_path / "cache", **settings})
        assert config is not None
        return Finder(config, tiny.llama(), tiny.tokenizer(), identity).tokens()

    base = str(tmp_path / "base")
    assert len(found(top_k=5).ids) == 5
    assert len(found(top_k=6).ids) == 6
    contrast = found(base_model=base)
    assert contrast.provenance["base_model"] == base
    assert found(base_model=base) == contrast
    assert loads == [base]
    found("another model")
    monkeypatch.setattr(prompting, "shipped", lambda name, _language="en": [f"another {name}"])
    found()
    assert len(list((tmp_path / "cache").glob("tokens-*.json"))) == 5


def test_tokens_kept_for_another_model_are_refused(tmp_path: Path) -> None:
    """Prevents: a file under another model's name: the tokenizer is the same, the tokens that the model prefers not."""
    config = PactConfig(cache_dir=tmp_path)
    Finder(config, tiny.llama(), tiny.tokenizer(), "a").tokens()
    (first,) = tmp_path.glob("tokens-*.json")
    Finder(config, tiny.llama(), tiny.tokenizer(), "b").tokens()
    (second,) = set(tmp_path.glob("tokens-*.json")) - {first}
    first.replace(second)
    with pytest.raises(PactError, match="the tokens of another model") as caught:
        Finder(config, tiny.llama(), tiny.tokenizer(), "b").tokens()
    assert str(second) in caught.value.remedy


def test_tokens_that_cannot_be_kept(tmp_path: Path) -> None:
    """Prevents: a bare stack trace where the cache's folder cannot be made."""
    (tmp_path / "file").write_text("")
    config = PactConfig(cache_dir=tmp_path / "file" / "cache")
    with pytest.raises(PactError, match="has to keep there what it computes"):
        Finder(config, tiny.llama(), tiny.tokenizer(), "m").tokens()


def test_a_base_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    """Prevents: a loader's traceback in place of the setting that names the model."""
    with pytest.raises(PactError, match=r"pact\.base_model") as caught:
        ready(tmp_path, safety_tokens="auto", base_model=str(tmp_path / "nothing"))
    assert "nothing" in caught.value.got


def test_where_caches_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a cache in a home folder that is full, or not shared, although another was named."""
    for name in ("PACT_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PactConfig().cache_folder == tmp_path / ".cache" / "pact_plugins"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert PactConfig().cache_folder == tmp_path / "xdg" / "pact_plugins"
    monkeypatch.setenv("PACT_CACHE_DIR", "~/own")
    assert PactConfig().cache_folder == tmp_path / "own"
    assert PactConfig(cache_dir=Path("~/named")).cache_folder == tmp_path / "named"


def summary(p: Preparation) -> str:
    printed = io.StringIO()
    print_summary(p, Console(file=printed, width=400))
    return printed.getvalue()


def test_summary_counts_anchors_apart(tmp_path: Path) -> None:
    """Prevents: anchors that are counted as rows of the user's data."""
    p = ready(tmp_path, safety_tokens="auto", anchors=2)
    assert p.objective.anchors is not None
    own = sum(len(AnswerTokens.of([d], p.objective.chat)) for d in documents(ROWS))
    assert f" {own} in {len(ROWS)} distinct sequences " in summary(p)
    assert f" 2 rows beside each step, of {len(p.objective.anchors.documents)} " in summary(p)
    assert p.objective.reference.stores[0].segments[0].manifest.values["full"] == own


def test_summary_says_what_was_computed(tmp_path: Path) -> None:
    """Prevents: forward passes before the first step that nobody can account for."""
    assert " 4 of 4 rows computed, in " in summary(ready(tmp_path))
    assert " found; " in summary(ready(tmp_path))
    more = summary(ready(tmp_path, docs=documents([*ROWS, conversation(("new", "row"))])))
    assert " 1 of 5 rows computed, 4 prompts read for the harm probe, in " in more


@pytest.mark.parametrize("settings", [{}, {"objective": "paper", "weight": 2.5}])
def test_summary(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Prevents: a table that states other settings than the run's."""
    printed = io.StringIO()
    print_summary(ready(tmp_path, **settings), Console(file=printed, width=200))
    rows = {
        cells[1].strip(): cells[2].strip() for line in printed.getvalue().splitlines() if (cells := line.split("│"))[3:]
    }
    paper = bool(settings)
    assert rows["objective"] == ("paper, weight 2.5" if paper else "confidence, weight 1")
    assert rows["conflict"] == ("keep" if paper else "damp")
    assert rows["gate"] == ("on" if paper else "off")
    assert rows["safety tokens"].startswith("3, 3 of them held: 'I', 'N', 'S'")
    assert "4 of 4 rows computed" in rows["reference"]
    assert "without an answer" not in rows


def test_autocast_is_the_trainers(tmp_path: Path) -> None:
    """Prevents: a float32 reference beside a bfloat16 student, whose divergence is only rounding."""

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    exact, rounded = ready(tmp_path), ready(tmp_path, autocast=autocast)
    assert rounded.computed.rows
    assert 0 < np.abs(reference_of(rounded) - reference_of(exact)).max() < 0.5


def test_another_template_finds_tokens_and_anchors_anew(tmp_path: Path) -> None:
    """Prevents: anchors in a chat format that the training data no longer has."""
    other = copy.deepcopy(tiny.tokenizer())
    other.chat_template = tiny.TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}<|system|>\nBe kind.{{ eos_token }}")
    ready(tmp_path, safety_tokens="auto", anchors=2)
    changed = ready(tmp_path, safety_tokens="auto", anchors=2, tokenizer=other)
    assert changed.objective.anchors is not None
    system = other.convert_tokens_to_ids("<|system|>")
    assert all(system in d.input_ids for d in changed.objective.anchors.documents)
    assert len(list((tmp_path / "cache").glob("tokens-*.json"))) == 2


def test_resuming_with_other_tokens_is_refused(tmp_path: Path) -> None:
    """Prevents: a changed `safety_tokens` that is silently ignored by a resumed run."""
    evidence_of(ready(tmp_path)).save(tmp_path / "run")
    with pytest.raises(PactError, match="does not cover this one") as caught:
        ready(tmp_path, trained(tiny.llama()), resumed_from=tmp_path / "run", safety_tokens=["I", "N"])
    assert caught.value.got.startswith("safety_tokens = ")


def test_token_text_is_no_markup(tmp_path: Path) -> None:
    """Prevents: a token such as "[/INST]" breaking the table, and with it the run."""
    replace(SafetyTokens.of_list([7], tiny.tokenizer()), texts=("[/INST]",)).save(tmp_path / "t.json")
    printed = io.StringIO()
    print_summary(ready(tmp_path, safety_tokens=str(tmp_path / "t.json")), Console(file=printed, width=200))
    assert "[/INST]" in printed.getvalue()


def test_summary_shows_the_expected_cost(tmp_path: Path) -> None:
    """Prevents: a cost that is stated as certain, or for another part of the step."""
    p, printed = ready(tmp_path), io.StringIO()
    console = Console(file=printed, width=200)
    print_summary(p, console, overhead=Overhead(anchors=0.25, subset_head=0.001, log_normaliser=0.0))
    assert "anchors 25.0%, safety tokens' logits 0.10%" in printed.getvalue()
    assert "Liger" not in printed.getvalue()
    print_summary(p, console, overhead=Overhead(anchors=0.25, subset_head=0.001, log_normaliser=0.5))
    assert "and 50.0% with some losses, such as Liger's" in printed.getvalue()
    assert "probe" not in printed.getvalue()
    p = ready(tmp_path, probe={"every": 50})
    print_summary(p, console, overhead=Overhead(anchors=0.25, subset_head=0.001, log_normaliser=0.0, probe=0.02))
    assert "16 held-out prompts of each kind every 50 steps" in printed.getvalue()
    assert "the probe 2.00% on average" in printed.getvalue()
