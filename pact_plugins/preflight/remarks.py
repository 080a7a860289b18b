"""What in a run file may be right, and would surprise whoever did not mean it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pact_plugins.preflight.rules import Finding, Run
from pact_plugins.preflight.run_file import block
from pact_plugins.run.evidence import EVIDENCE


def remarks(run: Run) -> Iterator[Finding]:
    """One by one; none stops a run."""
    model = Path(run.model) if run.model else None
    if model is not None and any((folder / EVIDENCE).exists() for folder in (model, model.parent)):
        yield Finding.of(
            "model",
            expected="the model as it was before fine-tuning",
            got=f"one that a run under PACT wrote: {model}",
            consequence="Its refusals as they are now would be the reference.",
            remedy="Name the original model, or resume that run, unless this is a second stage.",
        )
    if "$" in str(run.settings.get("output_dir")):
        yield Finding.of(
            "output_dir",
            expected="a folder by its name",
            got=f"`{run.settings['output_dir']}`, in which hosts fill in no variable",
            consequence="The run would write into a folder of that name below the one in which it is started.",
            remedy="Write the folder out, or give `--output_dir` on the command line, where the shell fills it in.",
        )
    cloned = str(run.settings.get("chat_template_path") or "")
    named = run.host == "trl" and run.settings.get("use_peft") and cloned and not cloned.endswith((".jinja", ".j2"))
    if named and model is not None and _is_tied(model):
        yield Finding.of(
            "chat_template_path",
            expected="a template in a `.jinja` file, beside LoRA on a model whose head is its embedding",
            got=f"the model {cloned}, whose tokens TRL would add",
            consequence="The run would stop before its first step, unless there is none to add: TRL's own loss cannot "
            "train single tokens of such a model. It adds some to fill a vocabulary up to a multiple of 64, too.",
            remedy="Save the template alone, and name that file: it adds none.",
        )


def _is_tied(model: Path) -> bool:
    """Whether the folder of a model says that its head is its embedding."""
    config = block(str(model / "config.json"))
    return any(block(part).get("tie_word_embeddings") is True for part in (config, config.get("text_config")))
