"""Subset logits, log-normalisers and cross-entropies against the model's own full logits, values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from pact_plugins.errors import PactError
from pact_plugins.model import subset_head
from pact_plugins.model.parity import check_parity
from pact_plugins.model.subset_head import Capture, Request, SubsetHead
from tests import tiny

VOCABULARY = 64
IDS = [3, 5, 60, 7]
ROWS, COLUMNS = [0, 0, 1, 1, 1], [1, 6, 0, 3, 5]
UNLABELLED = [0, 2, 4]
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
}


def _made(kind: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**{**SIZES, **settings})
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        with torch.no_grad():  # biases start at zero, which would hide one that is left out
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_()
        return model

    return make


def _adapted(model: nn.Module | None = None, **settings: Any) -> Any:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], **settings)
    return peft.get_peft_model(model or _made("Llama")(), config)  # type: ignore[arg-type]


def _whole_head() -> nn.Module:
    """A head that PEFT trains whole, and that has already moved away from the original."""
    model = _adapted(modules_to_save=["lm_head"])
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.mul_(1.7)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": _made("Llama"),
    "tied": _made("Llama", tie_word_embeddings=True),
    "gemma2": _made("Gemma2", head_dim=8, final_logit_softcapping=3.0),
    "granite": _made("Granite", logits_scaling=4.0),
    "cohere": _made("Cohere", logit_scale=0.25),
    "phi": _made("Phi"),
    "lora": _adapted,
    "lora on tied": lambda: _adapted(_made("Llama", tie_word_embeddings=True)()),
    "whole head": _whole_head,
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]().train()


def _inputs(length: int = 8) -> Tensor:
    return torch.randint(1, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(3))


def _captured(head: SubsetHead, ids: Tensor) -> tuple[Capture, Tensor]:
    flat = torch.tensor(ROWS) * ids.shape[1] + torch.tensor(COLUMNS)
    labels = ids[torch.tensor(ROWS), torch.tensor(COLUMNS) + 1]
    with head.watch(Request(flat, labels, normalise=True)) as captures:
        logits = head.model(input_ids=ids).logits
    return head.one(captures), logits


def _expected(logits: Tensor) -> Capture:
    rows = logits[ROWS, COLUMNS]
    return Capture(rows[:, IDS], rows.logsumexp(-1))


def _scalar(capture: Capture) -> Tensor:
    """A number that depends on every element of a capture, each with another weight."""
    parts = [p.flatten() for p in (capture.logits, capture.log_normaliser) if p is not None]
    everything = torch.cat(parts)
    return (everything * torch.linspace(-1, 2, len(everything))).sum()


def _gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    return {name: g for name, g in zip(trained, gradients, strict=True) if g is not None}


@pytest.mark.parametrize("chunk_elements", [1, 3 * VOCABULARY, 1 << 24])
def test_equals_full_logits(model: nn.Module, chunk_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a scale, a soft cap, a bias or an adapter that PACT leaves out, in one chunk or in many."""
    monkeypatch.setattr(subset_head, "CHUNK_ELEMENTS", chunk_elements)
    head, ids = SubsetHead(model, IDS), _inputs()
    capture, logits = _captured(head, ids)
    expected = _expected(logits)
    for name in ("logits", "log_normaliser"):
        assert torch.allclose(getattr(capture, name), getattr(expected, name), atol=2e-5), name
    wanted = _gradients(model, _scalar(expected))
    capture, _ = _captured(head, ids)
    found = _gradients(model, _scalar(capture))
    assert found.keys() == wanted.keys() != set()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, atol=2e-4 * max(1.0, gradient.abs().max().item())), name
    head.remove()


@pytest.mark.parametrize("settings", [{}, {"num_items_in_batch": 7}], ids=["mean", "sum"])
def test_the_model_s_own_loss_gives_the_normaliser(
    model: nn.Module, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a second pass over the vocabulary beside the model's own loss, or a loss that reading it changes."""
    ids = _inputs()
    plain = model(input_ids=ids, labels=ids, **settings)
    expected = _expected(plain.logits)
    wanted = _gradients(model, plain.loss + _scalar(expected))
    head = SubsetHead(model, IDS)
    monkeypatch.setattr(head, "_over_vocabulary", lambda *_: pytest.fail("computed once more"))
    flat = torch.tensor(ROWS) * ids.shape[1] + torch.tensor(COLUMNS)
    request = Request(flat, ids[torch.tensor(ROWS), torch.tensor(COLUMNS) + 1], True)
    with head.watch(request) as captures:
        loss = model(input_ids=ids, labels=ids, **settings).loss
    capture = head.one(captures)
    torch.testing.assert_close(loss, plain.loss, rtol=1e-6, atol=1e-6)
    for name in ("logits", "log_normaliser"):
        torch.testing.assert_close(getattr(capture, name), getattr(expected, name), atol=2e-5, rtol=1e-5)
    found = _gradients(model, loss + _scalar(capture))
    assert found.keys() == wanted.keys() != set()
    for name, gradient in wanted.items():
        found_here = found[name].to_dense()
        assert torch.allclose(found_here, gradient, atol=2e-4 * max(1.0, gradient.abs().max().item())), name
    head.remove()
    assert model(input_ids=ids, labels=ids, **settings).loss.equal(plain.loss)


def test_the_normaliser_is_exact_enough_under_autocast() -> None:
    """Prevents: a label's logit that is rounded otherwise than the logits of the loss that it is subtracted from."""
    model, ids = _llama().train(), _inputs()
    head = SubsetHead(model, IDS)
    request = Request(torch.arange(7), ids[0, 1:], normalise=True)
    with torch.autocast("cpu", torch.bfloat16), head.watch(request) as captures:
        logits = model(input_ids=ids, labels=ids).logits[0, :-1].float()
    found = head.one(captures).log_normaliser
    assert found is not None
    assert logits.abs().max() > 4  # large enough for bfloat16's rounding to show
    torch.testing.assert_close(found, logits.logsumexp(-1), atol=2e-3, rtol=0)


def test_candidates_are_each_tokens_own(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: log-probabilities of another token's candidates, and chunks that are put together in another order."""
    ids = _inputs()
    flat = torch.tensor(ROWS) * ids.shape[1] + torch.tensor(COLUMNS)
    candidates = torch.arange(3 * len(flat)).view(-1, 3) % 50
    head = SubsetHead(model, IDS)
    monkeypatch.setattr(subset_head, "CHUNK_ELEMENTS", 2 * head.vocabulary)
    with head.watch(Request(flat, ids.flatten()[flat + 1], candidates=candidates)) as captures:
        model(input_ids=ids)
    logits = model(input_ids=ids).logits.float()
    found = head.one(captures).candidates
    expected = logits.log_softmax(-1).flatten(0, 1)[flat].gather(1, candidates)
    assert found is not None
    assert torch.allclose(found, expected, atol=2e-5)
    ours, theirs = (_gradients(model, of.exp().sum()) for of in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name].to_dense(), gradient.to_dense(), atol=1e-4), name


@pytest.mark.parametrize("settings", [{}, {"num_items_in_batch": 7}], ids=["mean", "sum"])
def test_labels_that_the_loss_does_not_see(model: nn.Module, settings: dict[str, Any]) -> None:
    """Prevents: log-normalisers of damped tokens read off a loss that leaves them out."""
    ids, unlabelled = _inputs(), torch.tensor(UNLABELLED)
    flat = torch.tensor(ROWS) * ids.shape[1] + torch.tensor(COLUMNS)
    labels = ids.flatten().index_fill(0, flat[unlabelled] + 1, -100).view_as(ids)
    head = SubsetHead(model, IDS)
    request = Request(flat, ids.flatten()[flat + 1], normalise=True, unlabelled=unlabelled)
    with head.watch(request) as captures:
        logits = model(input_ids=ids, labels=labels, **settings).logits
    capture, expected = head.one(captures), _expected(logits)
    assert capture.from_host
    torch.testing.assert_close(capture.log_normaliser, expected.log_normaliser, atol=2e-5, rtol=1e-5)
    found, wanted = (_gradients(model, _scalar(of)) for of in (capture, _expected(model(input_ids=ids).logits)))
    for name, gradient in wanted.items():
        assert torch.allclose(found[name].to_dense(), gradient, atol=2e-4 * max(1.0, gradient.abs().max().item())), name


def test_parity_check_passes(model: nn.Module) -> None:
    """Prevents: refusing models that are read correctly; and the check leaving gradients or modes behind."""
    check_parity(SubsetHead(model, IDS))
    assert model.training
    assert all(p.grad is None for p in model.parameters())


class _Louder(transformers.LlamaForCausalLM):
    def forward(self, *args: Any, **kw: Any) -> Any:
        output = super().forward(*args, **kw)
        output.logits = output.logits * 1.5
        return output


class _Shifted(transformers.LlamaForCausalLM):
    def forward(self, *args: Any, **kw: Any) -> Any:
        output = super().forward(*args, **kw)
        # Token 10 is outside S: only the normaliser tells.
        output.logits = output.logits + 5.0 * (torch.arange(VOCABULARY) == 10)
        return output


class _NotFinite(transformers.LlamaForCausalLM):
    def forward(self, *args: Any, **kw: Any) -> Any:
        output = super().forward(*args, **kw)
        output.logits = output.logits * float("nan")
        return output


@pytest.mark.parametrize(
    ("kind", "consequence"),
    [
        (_Louder, "PACT would hold the wrong quantity"),
        (_Shifted, "PACT would hold the wrong quantity"),
        (_NotFinite, "There would be no reference"),
    ],
)
def test_parity_check_refuses_unknown_transforms(kind: type[nn.Module], consequence: str) -> None:
    """Prevents: a new model family whose logits are transformed in a way that PACT does not know."""
    torch.manual_seed(0)
    head = SubsetHead(kind(transformers.LlamaConfig(**SIZES)), IDS)
    with pytest.raises(PactError, match=consequence) as caught:
        check_parity(head)
    assert kind.__name__ in caught.value.got


def _t5() -> nn.Module:
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))


def _llama(**settings: Any) -> nn.Module:
    return _made("Llama", **settings)()


REFUSED: list[tuple[str, Callable[[], nn.Module], str, str]] = [
    ("encoder-decoder", _t5, "encoder-decoder", "Answers would not follow prompts."),
    (
        "prompt tuning",
        lambda: peft.get_peft_model(
            _llama(),  # type: ignore[arg-type]
            peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        ),
        "the adapter PROMPT_TUNING",
        "Virtual tokens shift every position, and the loss would sit on the wrong tokens; others were not tried.",
    ),
    (
        "lora on the head",
        lambda: peft.get_peft_model(
            _llama(),  # type: ignore[arg-type]
            peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"]),
        ),
        "a LoRA adapter on the head",
        "PACT would hold the head's weights without the adapter's part, and drift unseen.",
    ),
    (
        "classifier",
        lambda: transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SIZES)),
        "no output head",
        "There are no logits to hold.",
    ),
    (
        "headless",
        lambda: transformers.LlamaModel(transformers.LlamaConfig(**SIZES)),
        "no decoder",
        "Its hidden states cannot be seen.",
    ),
    (
        "data parallel",
        lambda: nn.DataParallel(_llama()),
        "DataParallel",
        "Its replicas run in threads that PACT cannot follow.",
    ),
]


@pytest.mark.parametrize(("make", "got", "consequence"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused_models(make: Callable[[], nn.Module], got: str, consequence: str) -> None:
    """Prevents: training a model whose safety logits are not what PACT reads, or a refusal that does not say why."""
    with pytest.raises(PactError) as caught:
        SubsetHead(make(), IDS)
    assert got in caught.value.got
    assert caught.value.consequence == consequence
    assert caught.value.remedy


def test_a_head_behind_a_transform_is_refused() -> None:
    """Prevents: reading the hidden states of a BERT-like model before the transform that its head applies to them."""
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=True,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    with pytest.raises(PactError) as caught:
        check_parity(SubsetHead(transformers.BertLMHeadModel(config), IDS))
    assert caught.value.consequence == "PACT would hold the wrong quantity."


def test_refusing_leaves_no_hook() -> None:
    """Prevents: a refused model that goes on computing PACT's logits."""
    model = _llama()
    head = SubsetHead(model, IDS)
    hooks = head.base.get_decoder()._forward_hooks
    assert len(hooks) == 1
    head.remove()
    assert not hooks
    with pytest.raises(PactError):
        SubsetHead(nn.DataParallel(model), IDS)
    assert not hooks


@pytest.mark.parametrize("passes", [0, 2, 3])
def test_another_number_of_forward_passes_is_an_error(passes: int) -> None:
    """Prevents: a fused or repeated forward pass, whose logits are not those of the loss that is trained."""
    head, ids = SubsetHead(_llama(), IDS), _inputs()
    with head.watch(Request(torch.tensor([1]), torch.tensor([1]))) as captures:
        for _ in range(passes):
            head.model(input_ids=ids)
    with pytest.raises(PactError, match=f"got {passes}\\."):
        head.one(captures)


def test_a_forward_pass_in_another_gradient_mode_is_ignored() -> None:
    """Prevents: a trainer's extra pass without gradients being counted, or its dead logits being trained on."""
    head, ids = SubsetHead(_llama(), IDS), _inputs()
    request = Request(torch.tensor([1, 2]), torch.tensor([1, 2]))
    with head.watch(request) as captures:
        with torch.no_grad():
            head.model(input_ids=ids)
        head.model(input_ids=ids)
    assert head.one(captures).logits.requires_grad
    with torch.no_grad(), head.watch(request) as captures, torch.enable_grad():
        head.model(input_ids=ids)
    assert captures == []


def test_nothing_is_computed_outside_a_watch() -> None:
    """Prevents: evaluation and generation paying for, or failing in, PACT's computation."""
    head, ids = SubsetHead(_llama(), IDS), _inputs()
    with (
        pytest.raises(RuntimeError, match="stop"),
        head.watch(Request(torch.tensor([1]), torch.tensor([1]))) as captures,
    ):
        raise RuntimeError("stop")
    head.model(input_ids=ids)
    assert captures == []


def test_gradient_checkpointing_captures_once() -> None:
    """Prevents: the recomputation of a checkpointed layer counting as a second forward pass."""
    model: Any = _llama().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    head, ids = SubsetHead(model, IDS), _inputs()
    with head.watch(Request(torch.tensor([1]), torch.tensor([1]))) as captures:
        loss = model(input_ids=ids).logits.sum()
        loss.backward()
    assert head.one(captures).logits.shape == (1, len(IDS))


def test_no_answer_tokens() -> None:
    """Prevents: a crash on a batch whose rows were all cut before their answers."""
    head, ids = SubsetHead(_llama(), IDS), _inputs()
    with head.watch(Request(*[torch.empty(0, dtype=torch.long)] * 2, normalise=True)) as captures:
        head.model(input_ids=ids)
    capture = head.one(captures)
    assert capture.logits.shape == (0, len(IDS))
    assert capture.log_normaliser is not None
    assert capture.log_normaliser.shape == (0,)
    assert capture.logits.requires_grad


def test_bfloat16_is_returned_in_float32() -> None:
    """Prevents: log-normalisers in half precision, whose error is larger than the divergences that are trained."""
    head, ids = SubsetHead(tiny.llama().bfloat16(), IDS), _inputs()
    capture, logits = _captured(head, ids)
    expected = _expected(logits.float())
    for name in ("logits", "log_normaliser"):
        assert getattr(capture, name).dtype == torch.float32
        assert torch.allclose(getattr(capture, name), getattr(expected, name), atol=0.15), name
