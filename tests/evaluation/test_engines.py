"""The engine `vllm`, on a module that has vLLM's signatures and answers with the tiny model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from pact_plugins.cli import main
from pact_plugins.errors import PactError
from pact_plugins.evaluation.engines import Generation
from pact_plugins.evaluation.run import evaluate
from pact_plugins.method.prompting import continuations, up_to_end
from tests import tiny

MODELS: list[dict[str, Any]] = []
REQUESTS: list[tuple[list[Any], Any]] = []


@dataclass
class SamplingParams:
    """The fields of vLLM's class that are used, by keyword alone."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    detokenize: bool = True


@dataclass
class LoRARequest:
    """As in vllm.lora.request."""

    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class Output:
    """Both `RequestOutput` and its `CompletionOutput`."""

    token_ids: tuple[int, ...]

    @property
    def outputs(self) -> list[Output]:
        return [self]


class LLM:
    """Answers each prompt by itself, greedily, or by chance where it is hot; ends with the token that stopped it."""

    def __init__(
        self, model: str, *, dtype: str = "auto", enable_lora: bool = False, max_lora_rank: int = 16, **_other: Any
    ) -> None:
        MODELS.append({"model": model, "enable_lora": enable_lora, "max_lora_rank": max_lora_rank})
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: Sequence[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[Output]:
        REQUESTS.append((list(sampling_params), lora_request))
        if lora_request is not None and not isinstance(self.model, PeftModel):
            self.model = PeftModel.from_pretrained(self.model, lora_request.lora_path)
        found: list[Output] = []
        for prompt, settings in zip(prompts, sampling_params, strict=True):
            torch.manual_seed(settings.seed or 0)
            (ids,) = continuations(
                self.model, [prompt["prompt_token_ids"]], settings.max_tokens or 16, settings.temperature
            )
            found.append(Output(tuple(up_to_end(ids, set(settings.stop_token_ids or [])))))
        return found


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    vllm.__dict__.update(LLM=LLM, SamplingParams=SamplingParams)
    request.__dict__.update(LoRARequest=LoRARequest)
    for name, module in (("vllm", vllm), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    MODELS.clear()
    REQUESTS.clear()


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt\n" + "".join(f"why {'so ' * (i % 4)}{i}?\n" for i in range(6)))
    return f"{path}:harmless"


def responses(folder: Path, name: str, prompts: str, adapter: str | None = None, **settings: Any) -> list[Any]:
    evaluate(name, [prompts], folder, adapter=adapter, generation=Generation(8, **settings))
    return (folder / "answers.jsonl").read_text().splitlines()


@pytest.mark.usefixtures("fake")
def test_greedy_answers_are_those_of_transformers(tmp_path: Path, prompts: str) -> None:
    """Prevents rows that differ by more than the engine's name: another template, tokens behind the end, no end."""
    path = tiny.save(tmp_path / "model")
    expected = responses(tmp_path / "a", path, prompts)
    found = responses(tmp_path / "b", path, prompts, engine="vllm")
    assert found == [line.replace('"engine": "transformers"', '"engine": "vllm"') for line in expected]
    assert [{"model": path, "enable_lora": False, "max_lora_rank": 16}] == MODELS
    again = responses(tmp_path / "b", path, prompts, engine="vllm")
    assert again == found
    assert len(MODELS) == 1, "a finished file needs no engine"
    with pytest.raises(PactError, match="generation"):
        responses(tmp_path / "b", path, prompts)


@pytest.mark.usefixtures("fake")
def test_an_adapter_by_lora_request(tmp_path: Path, prompts: str) -> None:
    """Prevents the bare model from answering under the adapter's name, or an adapter wider than vLLM's default."""
    path = tiny.save(tmp_path / "model")
    torch.manual_seed(1)
    config = LoraConfig(r=20, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapter = str(tmp_path / "adapter")
    get_peft_model(tiny.llama(), config).save_pretrained(adapter)
    expected = responses(tmp_path / "a", path, prompts, adapter)
    found = responses(tmp_path / "b", path, prompts, adapter, engine="vllm")
    assert found == [line.replace('"engine": "transformers"', '"engine": "vllm"') for line in expected]
    assert [{"model": path, "enable_lora": True, "max_lora_rank": 32}] == MODELS
    assert all(request == LoRARequest("adapter", 1, adapter) for _, request in REQUESTS)


@pytest.mark.usefixtures("fake")
def test_sampled_answers(tmp_path: Path, prompts: str) -> None:
    """Prevents samples that no one can draw again, a temperature that is dropped, or one seed for a whole batch."""
    path = tiny.save(tmp_path / "model")
    hot = {"engine": "vllm", "temperature": 1.5}
    first, again, other = (
        [line.partition('"response"')[2] for line in responses(tmp_path / name, path, prompts, seed=seed, **hot)]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other
    assert all(s.temperature == 1.5 and s.max_tokens == 8 and 1 in s.stop_token_ids for s in REQUESTS[0][0])
    seeds = [s.seed for settings, _ in REQUESTS[: len(REQUESTS) // 3] for s in settings]
    assert len(set(seeds)) == 6


def test_vllm_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a stack trace where vLLM is missing, or an hour of loading before it is missed."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    arguments = ["eval", "--model", "/nowhere", "--engine", "vllm", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code != 0
    assert 'pip install "pact-plugins[vllm]"' in result.output
