"""A small world of prompts and two tiny chat models, so that tests and the demo need no model hub.

`BASE_MODEL` is a language model trained on plain text; `ALIGNED_MODEL` is the same model after further
training that taught it to chat and to refuse harmful requests. Both load with
`AutoModelForCausalLM.from_pretrained` and share one tokenizer. Their prompts and the fine-tuning task are in
`world`. `python -m benchmarks.demo_models`, in the repository, trains both from nothing.
"""

from pathlib import Path

_MODELS = Path(__file__).parent / "models"

BASE_MODEL: Path = _MODELS / "base"
ALIGNED_MODEL: Path = _MODELS / "aligned"

__all__ = ["ALIGNED_MODEL", "BASE_MODEL", "comparison"]
