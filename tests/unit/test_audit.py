"""What `nox -s audit` makes of pip-audit's answers, whose own exit status tells too little."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.audit import FINE, UNKNOWN, VULNERABLE, pins_in, verdict

PINS = {"one", "two-parts"}
FLAW = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"], "description": "bad"}


def report(**vulnerabilities: Any) -> str:
    """pip-audit's report; None stands for a release that it could not look up."""
    rows = [
        {"name": name, "skip_reason": "not found"}
        if each is None
        else {"name": name, "version": "1.0", "vulns": each}
        for name, each in vulnerabilities.items()
    ]
    return json.dumps({"dependencies": rows, "fixes": []})


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        (report(One=[], two_parts=[]), FINE, "2 releases audited, no known vulnerability"),
        (report(one=[FLAW], two_parts=[]), VULNERABLE, "one 1.0: PYSEC-1 (CVE-1), fixed in 1.1"),
        (report(one=[FLAW], two_parts=None), VULNERABLE, "does not know 1 of 2 releases: two-part"),
        (report(one=[], two_parts=None), UNKNOWN, "does not know 1 of 2 releases: two-parts"),
        (report(one=None, two_parts=None), UNKNOWN, "does not know 2 of 2 releases"),
        (report(), UNKNOWN, "does not know 2 of 2 releases"),
        ("", UNKNOWN, "gave no answer (Name or service not known)"),
        ("[]", UNKNOWN, "gave no answer"),
        ("{", UNKNOWN, "gave no answer"),
    ],
)
def test_a_release_counts_as_audited_only_if_it_was(text: str, status: int, says: str):
    found, lines = verdict(text, PINS, "Traceback\nName or service not known\n\n")
    assert (found, says in "\n".join(lines)) == (status, True), lines


def test_the_constraints_file_pins_what_is_read_from_it():
    assert pins_in("# all\nOne==1\n two_parts==2  # why\nthree>=1\n\n") == PINS
    constraints = Path(__file__).parents[1] / "constraints.txt"
    pins = pins_in(constraints.read_text("utf-8"))
    assert {"redis", "azure-identity", "pip-audit", "typing-extensions"} <= pins
    assert len(pins) > 90
