"""`pact check run.yaml`: what a run will do, and what would leave PACT out or stop it, as far as files tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pact_plugins.config import SPLIT, EvalConfig, PactConfig
from pact_plugins.errors import PactError
from pact_plugins.preflight import questions, rules
from pact_plugins.preflight.remarks import remarks
from pact_plugins.preflight.rules import Finding, Run
from pact_plugins.preflight.run_file import Host, host_of, options, read_run_file, variables
from pact_plugins.preflight.unserved import unserved
from pact_plugins.run.evidence import EVIDENCE


@dataclass(frozen=True)
class Check:
    """What a run's file would do.

    Attributes:
        path: of the file.
        settings: all that is in it.
        host: what it is for; None if that is not known.
        config: PACT's settings; None if it is off, or they cannot be read.
        will: what the run will do, in words.
        errors: what would let it train without PACT, or stop it, as far as files tell.
        warnings: what may be right.
    """

    path: Path
    settings: dict[str, Any]
    host: Host | None
    config: PactConfig | None
    will: Mapping[str, str]
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing that was found keeps the run from starting."""
        return not self.errors

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON knows it."""
        return {
            "file": str(self.path),
            "sound": self.sound,
            "host": self.host,
            "pact": self.config.resolved() if self.config else False,
            "will": dict(self.will),
            "errors": [finding.as_dict() for finding in self.errors],
            "warnings": [finding.as_dict() for finding in self.warnings],
        }

    def require_sound(self) -> Host:
        """What the file is for.

        Raises:
            PactError: the file has errors.
        """
        if self.errors:
            found = [finding.error for finding in self.errors]
            raise PactError(
                expected="; ".join(dict.fromkeys(e.expected for e in found)),
                got="; ".join(finding.got for finding in self.errors),
                consequence=" ".join(dict.fromkeys(e.consequence for e in found)),
                remedy=" ".join(dict.fromkeys(e.remedy for e in found)),
            )
        assert self.host is not None, "an unknown host is an error"
        return self.host


def check(path: Path, host: Host | None = None, arguments: Sequence[str] = ()) -> Check:
    """Reads the run file at `path` and looks for everything that is wrong with it.

    Args:
        host: the one that is started with it, if any is.
        arguments: of the command line that the file is started with, which win over the file.
    """
    settings, errors = dict[str, Any](), list[Finding]()
    try:
        settings = read_run_file(path) | options(arguments)
        errors += rules.misspelt(settings)
        host = host_of(settings, path, host)
    except PactError as error:
        return Check(path, settings, None, None, {}, (*errors, Finding("", error)), ())
    with variables(settings):
        return _checked(path, settings, host, errors)


def _checked(path: Path, settings: dict[str, Any], host: Host, errors: list[Finding]) -> Check:
    """The same, with what was found of the keys already."""
    config, warnings = None, list[Finding]()
    if not errors:
        try:
            config = _config(settings, path, host)
        except PactError as error:
            errors.append(Finding("pact", error))
    run = Run(path, host, settings, config)
    if host == "axolotl":
        errors += rules.plugin(run)
    missing, other = rules.environment(host)
    warnings += other
    if config is not None:
        errors += [
            *missing,
            *unserved(settings, host, config),
            *rules.files(run),
            *rules.folders(run),
            *rules.empty(run),
            *questions.unaskable(run),
            *questions.no_eval_split(run),
            *rules.template(run),
            *rules.tokens(run),
            *rules.resumed(run),
        ]
        warnings += [*remarks(run), *questions.too_few(run)]
    return Check(path, settings, host, config, _will(run), tuple(errors), tuple(warnings))


def _config(settings: Mapping[str, Any], path: Path, host: Host) -> PactConfig | None:
    if settings.get("pact") is None:
        raise PactError(
            expected=f"the key `pact` in {path}",
            got="no such key" if "pact" not in settings else "`pact:` with nothing behind it",
            consequence="The run would train without PACT.",
            remedy="Add `pact: true`, a block of settings, or `pact: false` for an explicit off.",
        )
    return PactConfig.parse(settings["pact"])


def _task(evaluation: EvalConfig) -> list[str]:
    return ["its own eval split"] if evaluation.task == SPLIT else [evaluation.task] if evaluation.task else []


def _will(run: Run) -> dict[str, str]:
    """What the run will do, in words."""
    will = {"host": run.host, "model": run.model or "named on the command line", "adapter": run.adapter}
    will["data"] = ", ".join(run.data) or "named on the command line"
    if run.config is None:
        return {**will, "PACT": "off: nothing protects the model's refusals"}
    config = run.config if run.holds_rows else run.config.anchors_alone()
    if isinstance(config.safety_tokens, list):
        tokens = f"{len(config.safety_tokens)} of your own"
    elif config.safety_tokens == "auto":
        tokens = f"found: {config.top_k} candidates, " + (
            f"by contrast with {config.base_model}" if config.base_model else "in the model's own answers"
        )
    else:
        tokens = f"from {config.safety_tokens}"
    evaluation, probe = config.active_eval, config.active_probe
    reference = "computed in each step, with the adapter off" if run.streams else f"in {config.cache_folder}"
    return {
        **will,
        **config.words,
        "safety tokens": tokens,
        "questions": f"{', '.join([*evaluation.prompts, *_task(evaluation)])}, before and after"
        if evaluation
        else "none",
        "probe": f"every {probe.every:,} steps" if probe else "off",
        "reference": reference if run.holds_rows else "of anchors alone: no row is held beside DPO",
        "leaves": f"{EVIDENCE} and pact_report in {run.output_dir or 'its output folder'}",
    }


def show(found: Check, console: Console | None = None) -> None:
    """What the run will do, then each error and warning."""
    console = console or Console()
    table = Table(title=escape(str(found.path)), title_justify="left", show_header=False)
    for name, words in found.will.items():
        table.add_row(name, escape(words))
    if found.will:
        console.print(table)
    _show_findings("error", found.errors, console)
    _show_findings("warning", found.warnings, console)
    counts = [_count("error", found.errors), _count("warning", found.warnings)]
    console.print(", ".join(counts), highlight=False)


def require_sound(path: Path, host: Host | None = None, arguments: Sequence[str] = ()) -> Host:
    """What a run's file is for; its warnings go to standard error (arguments: see `check`).

    Raises:
        PactError: the file has errors.
    """
    found = check(path, host, arguments)
    _show_findings("warning", found.warnings, Console(stderr=True))
    return found.require_sound()


def _count(kind: str, findings: Sequence[Finding]) -> str:
    return f"{len(findings)} {kind}{'' if len(findings) == 1 else 's'}"


def _show_findings(kind: str, findings: Sequence[Finding], console: Console) -> None:
    """One paragraph each, with its key."""
    for finding in findings:
        key = f" `{finding.key}`" if finding.key else ""
        console.print(f"{kind}{key}: {finding.error}", highlight=False, markup=False, soft_wrap=True)
