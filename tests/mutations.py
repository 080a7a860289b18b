"""Whether the tests notice faults: each is planted alone in a copy of the package, and its tests must fail.

`python -m tests.mutations [MODULE | FAULT ...]` plants all of them, or those that are named. mutmut and
cosmic-ray plant thousands at random and run each for as long as the suite takes; these few are what a change to the
method could get wrong while everything still looks plausible.
"""

from __future__ import annotations

import os
import shutil
import sys
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[1]

LOSS = ("method/test_loss.py", "method/test_objective.py", "test_golden.py")
ANSWERS = ("chat/test_answers.py", "chat/test_answers_properties.py", "contract/test_columns.py")
CACHE = ("storage/test_cache.py", "method/test_reference.py", "method/test_objective.py")
BINDING = (
    "contract/test_hosts.py::test_a_micro_batch_equals_the_bare_loop",
    "contract/test_hosts.py::test_accumulation_changes_nothing",
    "contract/test_hosts.py::test_evaluation_is_left_alone",
    "contract/test_hosts.py::test_a_removed_binding_does_not_prepare",
    "contract/test_runs.py::test_the_logged_loss_is_the_host_s",
    "contract/test_runs.py::test_a_run_does_not_go_on_without_pact",
    "contract/test_matrix.py::test_the_total_is_that_by_hand",
)
EVIDENCE = ("run/test_evidence.py", "contract/test_weights.py")


FAULTS: dict[tuple[str, tuple[str, ...]], dict[str, tuple[str, str]]] = {
    ("method/loss.py", LOSS): {
        "the divergence the other way round": ("log_s, log_p = _part", "log_p, log_s = _part"),
        "everything else is no bucket": ("cat([log_probabilities, log_rest]", "cat([log_probabilities]"),
        "the temperature is not squared": ("return temperature**2 *", "return temperature *"),
        "tokens are not weighted": (
            "softmax(target / temperature, dim=-1) * weights",
            "softmax(target / temperature, dim=-1)",
        ),
        "the gate opens the other way": ("torch.sigmoid(slope", "torch.sigmoid(-slope"),
        "the gate closes from the first token on": ("(student.dtype) - hold)", "(student.dtype))"),
        "refusals are in conflict": ("turns = ~label_in_s &", "turns = label_in_s &"),
    },
    ("method/objective.py", LOSS): {
        "a row counts whether it asks for harm or not": ("kl = kl * targets.harm", "pass"),
        "damped labels are those one token early": ("flat[damped] + 1", "flat[damped]"),
    },
    ("chat/answers.py", ANSWERS): {
        "the hidden state of the token itself": ("column + document.start - 1,", "column + document.start,"),
        "position 0 is in the lead": ("column - answer.words,", "column - answer.start,"),
        "a document's first token is a target": ("supervised[:1] = False", "supervised[:0] = False"),
        "packed documents are one": ("ended |= positions[places][1:] == 0", "pass"),
        "a key of tokens without labels": (" + np.packbits(self.supervised).tobytes()", ""),
        "hidden tokens are seen": ("else mask[start:stop] != 0\n", "else None\n"),
        "a user's turn is an answer": ("if not turns and chat.exact and asked:", "if False:"),
    },
    ("storage/segment.py", CACHE): {
        "half a key is enough": ("if self.keys[1, at] == low:", "if True:"),
        "values are not compared with their checksum": ("!= self.checksums[entry]", "is None"),
        "another model's is opened": ("if differing := identity.differences(found):", "if differing := []:"),
    },
    ("storage/cache.py", CACHE): {
        "the reach is one token longer": ("tokens.position < reach", "tokens.position <= reach"),
        "logits in place of log-probabilities": (
            "return capture.logits - capture.log_normaliser.unsqueeze(-1)",
            "return capture.logits",
        ),
    },
    ("run/training_loss.py", BINDING): {
        "the weight is left out": ("objective.config.weight * terms.kl * scale", "terms.kl * scale"),
        "damped tokens are learned": ('return {**inputs, "labels": targets.labels} if 0', "return inputs if 0"),
        "fewer labels, a larger mean": ("own * (kept / targets.supervised if", "own * (1.0 if"),
        "anchors join every micro-batch": ("is not None and self._trainer.accelerator.sync_gradients", "is not None"),
        "anchors count less under accumulation": (
            "current_gradient_accumulation_steps if items is None else 1",
            "current_gradient_accumulation_steps if False else 1",
        ),
        "the logged loss has PACT's terms": ("whole * share.to(whole.device)", "whole"),
    },
    ("run/binding.py", BINDING): {
        "evaluations are constrained": ("if not (model.training and torch.is_grad_enabled()):", "if False:"),
        "nobody sees that it was taken off": ("_ATTRIBUTE, None) is not self:", "_ATTRIBUTE, None) is False:"),
    },
    ("run/evidence.py", EVIDENCE): {
        "steps beyond a gap are covered": ("if part.first_step > covered:", "if False:"),
        "other safety tokens lie beside it": ("!= tokens.fingerprint:", "is None:"),
    },
    ("run/recorder.py", EVIDENCE): {
        "a step without PACT is recorded": ("if count == self._before:", "if count < 0:"),
        "a run that constrained nothing ends well": ("and not self.evidence.held(part):", "and False:"),
        "a checkpoint without PACT is gone on with": ("state.global_step > before.covered:", "False:"),
    },
    ("run/verification.py", EVIDENCE): {
        "weights are not looked at": ("if fingerprint not in (known or ())", "if False"),
    },
}
"""By module and the tests that should notice: what goes wrong, a text that stands there once, and what is put there."""


def _tests(copy: str, files: tuple[str, ...]) -> None:
    """Runs tests against the package in `copy`; exits as pytest does."""
    sys.path.insert(0, copy)
    import pact_plugins  # before pytest puts the repository's own first

    assert Path(pact_plugins.__file__).is_relative_to(copy)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    chosen = ["-m", "not axolotl and not release", "--exitfirst", "-p", "no:cacheprovider"]
    os._exit(pytest.main([*chosen, *(f"{ROOT}/tests/{name}" for name in files)]))


def _passes(copy: Path, files: tuple[str, ...]) -> bool:
    """Whether tests pass, in a process that has imported all but the package."""
    process = get_context("fork").Process(target=_tests, args=(str(copy), files))
    process.start()
    process.join()
    assert process.exitcode in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), (
        f"pytest ends with {process.exitcode}"
    )
    return process.exitcode == pytest.ExitCode.OK


def main(words: list[str]) -> int:
    """Prints which faults are caught; the number of those that are not."""
    import datasets  # noqa: F401
    import transformers.trainer  # noqa: F401
    import trl.trainer.sft_trainer  # noqa: F401

    assert "pact_plugins" not in sys.modules
    sys.dont_write_bytecode = True  # two versions of a file in one second would share theirs
    sound, missed, planted = set[tuple[str, ...]](), 0, 0
    with TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "pact_plugins", copy / "pact_plugins", ignore=shutil.ignore_patterns("__pycache__"))
        for (module, tests), faults in FAULTS.items():
            chosen = {name: fault for name, fault in faults.items() if not words or {*words} & {module, name}}
            if chosen and tests not in sound:
                assert _passes(copy, tests), f"{', '.join(tests)} fail without any fault"
                sound.add(tests)
            path = copy / "pact_plugins" / module
            source = path.read_text(encoding="utf-8")
            for name, (text, instead) in chosen.items():
                assert source.count(text) == 1, f"{module}, {name}: its text stands {source.count(text)} times"
                path.write_text(source.replace(text, instead), encoding="utf-8")
                caught = not _passes(copy, tests)
                print(f"{'caught' if caught else 'MISSED'}  {module}: {name}", flush=True)
                missed, planted = missed + (not caught), planted + 1
            path.write_text(source, encoding="utf-8")
    print(f"{planted - missed} of {planted} caught")
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
