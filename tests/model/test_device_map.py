"""A model whose layers lie on several devices (`device_map`), on devices that PyTorch only pretends to have.

Fake tensors have a device and a shape, and an operation on two devices is an error, as it is on GPUs. `lazy` is the
one kind of device whose fakes take part in a backward pass without a driver.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM

from pact_plugins.model.layer_states import LayerStates
from pact_plugins.model.subset_head import Request, SubsetHead
from pact_plugins.run.host_loss import _turned_round

FIRST, SECOND = torch.device("lazy:0"), torch.device("lazy:1")
PLACES = {
    "model.embed_tokens": FIRST,
    "model.rotary_emb": FIRST,
    "model.layers.0": FIRST,
    "model.layers.1": SECOND,
    "model.norm": SECOND,
    "lm_head": SECOND,
}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[LlamaForCausalLM]:
    """As `device_map` leaves it: blocks fetch what they are given, and outputs go back to where the inputs are."""
    # PyTorch asks both of every kind of device but this one.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "lazy", torch.cpu, raising=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        config = LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        )
        model = LlamaForCausalLM(config)
        for name, device in PLACES.items():
            _place(model.get_submodule(name), device)
        model.register_forward_hook(lambda _module, _args, output: send_to_device(output, FIRST))
        model.lm_head.requires_grad_(False)  # as under LoRA; fakes of this kind know no sparse gradient
        yield model


def _place(block: nn.Module, device: torch.device) -> None:
    for module in block.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().to(device)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    block.register_forward_pre_hook(
        lambda _module, args, kw: (send_to_device(args, device), send_to_device(kw, device)), with_kwargs=True
    )


def _ids(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long, device=FIRST)


def _request(**asked: Tensor) -> Request:
    return Request(torch.tensor([0, 1, 6], device=FIRST), _ids(3), normalise=True, **asked)


def test_devices_are_told_apart(model: LlamaForCausalLM) -> None:
    with pytest.raises(RuntimeError, match="at least two devices"):
        model.lm_head.weight.index_select(0, _ids(3))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("candidates", [True, False])
def test_what_is_captured_lies_where_it_was_asked_for(
    model: LlamaForCausalLM, labelled: bool, candidates: bool
) -> None:
    head, ids = SubsetHead(model, [1, 2, 3]), _ids(2, 5)
    request = _request(candidates=_ids(3, 4)) if candidates else _request(unlabelled=_ids(1))
    with head.watch(request) as captures:
        loss = model(input_ids=ids, labels=ids if labelled else None).loss
    capture = SubsetHead.one(captures)
    assert capture.from_host == labelled
    found = [t for t in (capture.logits, capture.log_normaliser, capture.candidates) if t is not None]
    assert {t.device for t in found} == {FIRST}
    (sum(t.sum() for t in found) + (loss if labelled else 0)).backward()
    gradients = [p.grad for name, p in model.named_parameters() if name != "lm_head.weight"]
    assert all(g is not None for g in gradients)


def test_the_reference_pass_and_the_harm_probe(model: LlamaForCausalLM) -> None:
    head, layers, ids = SubsetHead(model, [1, 2, 3]), LayerStates(model), _ids(2, 5)
    with head.watch(_request()) as captures, layers.watch(_ids(2), ids.shape) as states:
        head.decode(ids, torch.ones_like(ids))
    assert SubsetHead.one(captures).logits.device == layers.joined(states).device == FIRST


def test_the_measure_of_the_hosts_loss(model: LlamaForCausalLM) -> None:
    ids = _ids(2, 5)
    with torch.no_grad(), _turned_round(model.model, _ids(2)):
        assert model(input_ids=ids, labels=ids).loss.device == FIRST
