"""What docs/works-with.md calls served is: PACT's loss and gradient are those worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.matrix import CASES, HERE, HOSTS, PACT, PAGE, Case, Figures, kept, line, measured, page

MADE = [
    pytest.param(
        host,
        name,
        pact,
        id=f"{host}: {name}-{pact}",
        # Rows are damped in every case; that none are is told by one, and by the others for a release.
        marks=[getattr(pytest.mark, host), *[pytest.mark.release] * (pact != case.pact[-1] and name != "accumulation")],
    )
    for name, case in CASES.items()
    for host in case.hosts
    if host in HERE
    for pact in case.pact
]


@pytest.mark.parametrize(("host", "name", "pact"), MADE)
def test_the_total_is_that_by_hand(host: str, name: str, pact: str, tmp_path: Path) -> None:
    """Prevents a way to train that is called served, where PACT holds, damps or weighs something else than it says."""
    case, found = CASES[name], measured(host, name, PACT[pact], tmp_path)
    check(case, found, damps=pact == "damp")


def check(case: Case, found: Figures, *, damps: bool) -> None:
    """The errors are small, and would not be if a part of PACT were missing."""
    assert found.loss <= case.loss
    assert found.gradient <= case.gradient
    assert found.host > 0.1, "some answers are left in"
    assert min([found.anchors, *([] if case.pairs else [found.rows])]) > 2 * min(case.gradient, 1e-4)
    assert (found.damped > 0.1) == damps


def test_the_page_shows_them_all() -> None:
    """Prevents a case or a rule that the page lacks, and figures on it that would not be called served."""
    text, figures = PAGE.read_text(encoding="utf-8"), kept()
    assert text == page(text, figures), "run `python -m tests.contract.matrix`"
    for name, host in ((name, host) for name, case in CASES.items() for host in case.hosts):
        assert line(name, host, figures[host]["cases"][name]) in text
        for pact, found in figures[host]["cases"][name].items():
            check(CASES[name], Figures(**found), damps=pact == "damp")
    for host in HOSTS:
        assert {*figures[host]["cases"]} == {name for name, case in CASES.items() if host in case.hosts}
