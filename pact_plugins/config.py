"""`PactConfig`: the single schema behind the `pact:` block of a YAML file, the Python API and the documentation."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pact_plugins.errors import PactError, invalid_settings

Objective = Literal["paper", "confidence"]
Conflict = Literal["damp", "keep"]
Language = Literal["en", "ar", "de", "es", "fr", "hi", "it", "ja", "pt", "ru", "zh"]
Prefix = Literal["header", "bos", "bos+system"]


class Defaults(NamedTuple):
    """What an objective has where a run says nothing, and what it works on.

    Attributes:
        conflict, anchors: keys of the block `pact`.
        gated: whether the gate is on.
        prefixes: what the reference without the prompt may keep before an answer, its default first.
        has_temperature: whether `temperature` means anything to it.
        absolute: whether it compares log-probabilities under the whole vocabulary; logits of the safety tokens will do
            otherwise.
    """

    conflict: Conflict
    anchors: int
    gated: bool
    prefixes: tuple[Prefix, ...]
    has_temperature: bool
    absolute: bool


OBJECTIVES: dict[Objective, Defaults] = {
    "paper": Defaults("keep", 0, gated=True, prefixes=("header",), has_temperature=True, absolute=False),
    "confidence": Defaults(
        "damp", 4, gated=False, prefixes=("bos", "header", "bos+system"), has_temperature=False, absolute=True
    ),
}

NEGLIGIBLE_GATE = 1e-4
"""A gate below this moves the mixture of the two references by less than their storage does: a log-probability between
-8 and -4 is rounded by up to 2e-3 in float16, for which the two would have to differ by 20."""


def _expanded(text: str) -> str:
    """`text` with the home folder for a leading `~`, and the values of `$VARIABLE` and `${VARIABLE}`, as in a shell."""

    def value(match: re.Match[str]) -> str:
        # A shell would leave nothing there, and `$SCRATCH/pact` would lie at the root.
        if not (found := os.environ.get(match[1] or match[2])):
            raise ValueError(f"a path in which `{match[0]}` is an environment variable that is set")
        return found

    found = os.path.expanduser(re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, text))
    if found.startswith("~"):
        raise ValueError("a path whose home folder (`~`) is known here")
    return found


Where = Annotated[Path, AfterValidator(lambda path: Path(_expanded(str(path))))]
Name = Annotated[str, AfterValidator(_expanded)]
"""A file or folder, and what may be one; written as for a shell."""


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, field: ValidationInfo) -> Any:
        """Refuses what pydantic would turn into something else: `yes` into 1, an empty text into this folder."""
        assert field.field_name is not None
        annotation = cls.model_fields[field.field_name].annotation
        if isinstance(value, bool) and bool not in (get_args(annotation) or (annotation,)):
            raise ValueError("something other than true and false")
        if isinstance(value, str) and not value.strip():
            raise ValueError("a text that is not empty")
        return value


class GateConfig(_Block):
    """When the reference without the prompt replaces the one with it (arXiv 2603.07445; see `method.loss.gate`)."""

    mass: float = Field(default=0.9, gt=0, lt=1, description="Probability mass whose token count measures certainty.")
    slope: float = Field(default=2.0, gt=0, description="Slope (alpha) of the sigmoid over the difference of counts.")
    bias: float = Field(default=0.0, description="Offset subtracted from the difference of counts.")
    temperature: float = Field(default=1.0, gt=0, description="Softmax temperature of the counts.")
    hold: int = Field(default=8, ge=0, description="Answer tokens (N) before the gate starts to fade.")
    decay: float = Field(default=8.0, gt=0, description="Answer tokens (tau) in which the gate fades by a factor e.")
    boost: float = Field(default=1.0, ge=0, le=1, description="Upper bound of the gate.")
    prefix: Prefix | None = Field(
        default=None,
        description="What the reference without the prompt keeps before each answer: the `header` that the chat "
        "template puts there; `bos`, the first token of the sequence, before it; `bos+system`, everything before the "
        "first user turn. Default: `bos` for `confidence`, `header` for `paper`, which has no other.",
    )

    @property
    def reach(self) -> int:
        """Answer tokens, from the first, at which the gate can be at least `NEGLIGIBLE_GATE`.

        The gate is at most boost * exp(-max(t - hold, 0) / decay) at the token with index t, so these are the t with::

            t <= hold + decay * ln(boost / NEGLIGIBLE_GATE)

        82 with the paper's settings. Beyond them the reference without the prompt is not computed.
        """
        if self.boost < NEGLIGIBLE_GATE:
            return 0
        return math.floor(self.hold + self.decay * math.log(self.boost / NEGLIGIBLE_GATE)) + 1


class PromptsConfig(_Block):
    """What the model is asked before its first step: its answers give the safety tokens and the anchors."""

    languages: tuple[Language, ...] = Field(
        default=("en",), min_length=1, description="Of the shipped prompts: 128 of each kind in English, 32 in others."
    )
    harmful: Where | None = Field(
        default=None, description="Your own, besides: a text file with a prompt on each line. Needs `harmless` as well."
    )
    harmless: Where | None = Field(
        default=None, description="As many harmless ones that look like them, line by line. Needs `harmful` as well."
    )

    @model_validator(mode="after")
    def _both_kinds(self) -> PromptsConfig:
        if (self.harmful is None) != (self.harmless is None):
            raise ValueError("`harmful` and `harmless` together: each is the other's contrast. Give both files")
        return self


class ProbeConfig(_Block):
    """The drift probe: how far the model leans towards refusing while it trains (see `method.refusal_probe.Probe`)."""

    every: int = Field(
        default=100, ge=1, description="Steps between measurements; the first comes before the first step."
    )
    prompts: int = Field(default=16, ge=1, le=128, description="Shipped held-out prompts of each kind.")
    stop_below: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Stops the run when the model leans towards refusing less than this share of the harmful prompts.",
    )


SPLIT = "split"
"""What `pact.eval.task` is where the run's own eval split is asked."""

DEFAULT_JUDGES = ("stance",)
"""Judges of an evaluation that names none."""


class EvalConfig(_Block):
    """What the model is asked before its first step and after its last (see `evaluation.of_run`)."""

    prompts: tuple[Name, ...] = Field(
        default=("held-out",), min_length=1, description="As `pact eval --prompts` has it."
    )
    judges: tuple[str, ...] = Field(default=DEFAULT_JUDGES, min_length=1, description="As `pact eval --judge` has it.")
    judge_prompt: Where | None = Field(default=None, description="Rubric of served judges, as `--judge-prompt` has it.")
    task: Name | None = Field(
        default=None,
        description="Your own task, asked besides: rows that `FILE:task` reads, or `split`: the "
        "run's own eval split, 256 rows of it where there is no `limit`.",
    )
    scorer: str = Field(default="exact", description="Of tasks, as `pact eval --scorer` has it.")
    system: str | None = Field(default=None, description="A system prompt, for prompts that have none of their own.")
    limit: int | None = Field(default=None, ge=1, description="Prompts of each set, at most: a sample of them.")
    max_new_tokens: int = Field(default=64, ge=1, description="Tokens of an answer, at most.")


class PactConfig(_Block):
    """What PACT does in a run. Every key has a default: `pact: true` is `PactConfig()`."""

    objective: Objective = Field(
        default="confidence",
        description="`paper`: the authors' formula. `confidence`: absolute probabilities, zero at equality.",
    )
    weight: float = Field(
        default=1.0, gt=0, le=1000, description="Weight (lambda) of the safety term beside cross-entropy."
    )
    conflict: Conflict | None = Field(
        default=None,
        description="`damp` leaves answers to harmful requests to the safety term and others to the cross-entropy, "
        "`keep` has both on all of them. "
        "Default: `damp` for `confidence`, `keep` for `paper`.",
    )
    conflict_threshold: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Answers whose conflict (probability of a harmful request) is not above this stay. Refused with "
        "`conflict: keep`, which damps none.",
    )
    anchors: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="Rows of shipped prompts, harmful and harmless in turn, with the reference's own answers, that "
        "join each optimiser step under a divergence over the whole vocabulary alone. Each costs the compute of a row; "
        "0 is off. "
        "Default: 4 for `confidence`, 0 for `paper`.",
    )
    gate: GateConfig | bool | None = Field(
        default=None,
        description="The answer-only gate: `true`, `false` or a block. Default: on for `paper`, off for `confidence`.",
    )
    temperature: float = Field(
        default=2.0, gt=0, description="Softmax temperature T of `paper`. Refused with `confidence`, which has none."
    )
    safety_tokens: Where | Annotated[list[StrictInt | str], Field(min_length=1)] | Literal["auto"] = Field(
        default="auto",
        description="`auto` finds them; a file made by `pact tokens`; or a list of token ids and token texts.",
    )
    safety_tokens_add: tuple[StrictInt | str, ...] = Field(
        default=(),
        description="Token ids and texts that are held besides, each with the mean weight of the others. Special "
        "tokens are held only if they are named.",
    )
    safety_tokens_exclude: tuple[StrictInt | str, ...] = Field(
        default=(), description="Token ids and texts that are not held, whether they are found or not."
    )
    prompts: PromptsConfig = Field(
        default=PromptsConfig(), description="What the model is asked to see how it refuses: a block."
    )
    base_model: Name | None = Field(
        default=None,
        description="The model before alignment, a folder or a name on the hub: finds the safety tokens by the paper's "
        "contrast. Refused beside `safety_tokens` of your own.",
    )
    top_k: int = Field(
        default=50,
        ge=1,
        le=4096,
        description="Number of candidate safety tokens, |S|. Refused beside `safety_tokens` of your own.",
    )
    eval: EvalConfig | bool = Field(
        default=True,
        description="Asks the model before its first step and after its last, for the report: `true`, `false` or a "
        "block. Without a chat template nothing is asked.",
    )
    probe: ProbeConfig | bool = Field(
        default=False,
        description="The drift probe: `true` or a block measures, without generation, how far the model leans towards "
        "refusing. Off by default: each measurement costs forward passes.",
    )
    min_coverage: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="Share of the supervised assistant tokens that must be constrained: below it the run stops, and "
        "below 1 it warns. Packing that splits answers and a foreign chat template are what lowers it.",
    )
    cache_dir: Where | None = Field(
        default=None,
        description="Where reference caches live; `~` and `$VARIABLE` are filled in, as in every path here. Default: "
        "`$PACT_CACHE_DIR`, else `pact_plugins` in `$XDG_CACHE_HOME` or `~/.cache`.",
    )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> PactConfig:
        """Refuses settings that contradict one another, or that were written down and would have no effect."""
        assert self.cache_folder, "which is an error where it cannot be known"
        if self.base_model is not None and self.safety_tokens != "auto":
            raise ValueError(
                "`base_model` finds the safety tokens, and `safety_tokens` names them: both are set, so one of them "
                "would be ignored. Remove one"
            )
        own_tokens = self.safety_tokens != "auto"
        idle = {
            "temperature": (not self.defaults.has_temperature, f"`objective: {self.objective}` has no temperature"),
            "conflict_threshold": (not self.damps, "nothing is damped (`conflict: keep`)"),
            "top_k": (own_tokens, "`safety_tokens` names the tokens"),
        }
        for key, (ignored, why) in idle.items():
            if ignored and key in self.model_fields_set:
                raise ValueError(f"no `{key}`: it would be ignored, because {why}. Remove it")
        prefix = self.gate.prefix if isinstance(self.gate, GateConfig) else None
        if prefix is not None and prefix not in self.defaults.prefixes:
            known = ", ".join(f"`{p}`" for p in self.defaults.prefixes)
            raise ValueError(
                f"no `gate.prefix: {prefix}` under `objective: {self.objective}`, whose reference without the prompt "
                f"keeps {known}. Remove it, or use another objective"
            )
        return self

    @property
    def defaults(self) -> Defaults:
        """Those of the objective."""
        return OBJECTIVES[self.objective]

    @property
    def damps(self) -> bool:
        """Whether conflicting answers are damped (`conflict`, with its default resolved)."""
        return (self.conflict or self.defaults.conflict) == "damp"

    @property
    def anchors_per_step(self) -> int:
        """Anchor rows of each optimiser step (`anchors`, with its default resolved)."""
        return self.defaults.anchors if self.anchors is None else self.anchors

    @property
    def active_gate(self) -> GateConfig | None:
        """The gate's settings, or None when it is off (`gate`, with its default resolved)."""
        if not (self.defaults.gated if self.gate is None else self.gate):
            return None
        gate = self.gate if isinstance(self.gate, GateConfig) else GateConfig()
        return gate.model_copy(update={"prefix": gate.prefix or self.defaults.prefixes[0]})

    @property
    def gate_reach(self) -> int:
        """Answer tokens, from the first, at which the gate matters; 0 when it is off."""
        return self.active_gate.reach if self.active_gate else 0

    @property
    def answer_prefix(self) -> Prefix:
        """What the reference without the prompt keeps before each answer (`gate.prefix`, with its default resolved)."""
        return (self.active_gate and self.active_gate.prefix) or "header"

    def anchors_alone(self) -> PactConfig:
        """The same where no rows are held: nothing is damped either."""
        return self.model_copy(update={"conflict": "keep"})

    @property
    def words(self) -> dict[str, str]:
        """What the loss is made of, for people."""
        anchors = self.anchors_per_step
        return {
            "objective": f"{self.objective}, weight {self.weight:g}",
            "conflict": "damp" if self.damps else "keep",
            "anchors": f"{anchors} rows beside each step" if anchors else "off",
            "gate": "on" if self.active_gate else "off",
        }

    def resolved(self) -> dict[str, Any]:
        """All settings as JSON knows them, with the defaults that depend on the objective filled in."""
        filled = {
            "conflict": "damp" if self.damps else "keep",
            "anchors": self.anchors_per_step,
            "gate": self.active_gate or False,
            "cache_dir": self.cache_folder,
        }
        return self.model_copy(update=filled).model_dump(mode="json")

    @property
    def active_eval(self) -> EvalConfig | None:
        """What is asked before and after, or None when it is off."""
        if isinstance(self.eval, EvalConfig):
            return self.eval
        return EvalConfig() if self.eval else None

    @property
    def active_probe(self) -> ProbeConfig | None:
        """The probe's settings, or None when it is off."""
        if isinstance(self.probe, ProbeConfig):
            return self.probe
        return ProbeConfig() if self.probe else None

    @property
    def cache_folder(self) -> Path:
        """Where reference caches and what was found of models live (`cache_dir`, with its default resolved).

        Raises:
            PactError: the default is below a home folder, or a variable, that is not known.
        """
        if self.cache_dir is not None:
            return self.cache_dir
        written = os.environ.get("PACT_CACHE_DIR")
        written = written or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pact_plugins")
        try:
            return Path(_expanded(written))
        except ValueError as error:
            raise PactError(
                expected=f"{error}, for the caches",
                got=written,
                consequence="Nothing could be kept for the next run, or for one that is resumed.",
                remedy="Set `pact.cache_dir`, or the environment variable `PACT_CACHE_DIR`.",
            ) from error

    @classmethod
    def parse(cls, value: Any) -> PactConfig | None:
        """Reads the value of a `pact:` key; None means an explicit off (`pact: false`).

        Raises:
            PactError: the value is no boolean, block or `PactConfig`, or the block breaks the schema.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, bool):
            return cls() if value else None
        if not isinstance(value, dict):
            raise PactError(
                expected="`pact:` to be `true`, `false` or a block of settings",
                got=repr(value),
                consequence="The run's safety settings would be unknown.",
                remedy="Write `pact: true` for the defaults.",
            )
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise invalid_settings(error, cls, BLOCKS) from error


BLOCKS: dict[str, type[_Block]] = {
    "gate": GateConfig,
    "prompts": PromptsConfig,
    "eval": EvalConfig,
    "probe": ProbeConfig,
}
"""What the keys of `PactConfig` hold that may be blocks of their own."""
