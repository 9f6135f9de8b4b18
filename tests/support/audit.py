"""Ask a vulnerability service about every release that a constraints file pins.

``python audit.py CONSTRAINTS`` runs pip-audit, whose exit status can't be trusted alone: it is 0
where the service knew nothing of a release, and 1 where it could not be reached, as it is for a
vulnerability. Ours is

- 0: every release was looked up, and none has a known vulnerability;
- 1: some has;
- 75 (``EX_TEMPFAIL``): not all could be looked up, so nothing is known of those.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["FINE", "UNKNOWN", "VULNERABLE", "main", "pins_in", "verdict"]

FINE, VULNERABLE, UNKNOWN = 0, 1, 75


def pins_in(constraints: str) -> set[str]:
    """The names that a constraints file pins, as the service writes them."""
    lines = (line.partition("#")[0].strip() for line in constraints.splitlines())
    return {_normal(line.partition("==")[0]) for line in lines if "==" in line}


def verdict(report: str, pinned: Iterable[str], trouble: str = "") -> tuple[int, list[str]]:
    """What pip-audit's JSON report says of the releases ``pinned``: our exit status, and lines.

    ``trouble`` is what pip-audit wrote on its way: the reason where there is no report.
    """
    try:
        found: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = next((line for line in reversed(trouble.splitlines()) if line.strip()), "no word")
        return UNKNOWN, [f"Not audited: the vulnerability service gave no answer ({reason:.300})."]
    known = {_normal(each["name"]): each for each in found if "vulns" in each}
    lines = [
        f"{name} {each['version']}: {vulnerability['id']}"
        f" ({', '.join(vulnerability.get('aliases', [])) or 'no other names'}),"
        f" fixed in {', '.join(vulnerability.get('fix_versions', [])) or 'no version yet'}"
        for name, each in sorted(known.items())
        for vulnerability in each["vulns"]
    ]
    vulnerable = bool(lines)
    if missing := sorted(set(pinned) - set(known)):
        which = f": {', '.join(missing)}" if known else ""
        lines.append(
            f"Not audited: the vulnerability service does not know {len(missing)} of"
            f" {len(set(pinned))} releases{which}."
        )
    if vulnerable:
        return VULNERABLE, lines
    if missing:
        return UNKNOWN, lines
    return FINE, [f"{len(known)} releases audited, no known vulnerability."]


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


def main(constraints: Path) -> int:
    """Audit the releases pinned in the file; prints what was found, returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            *(sys.executable, "-m", "pip_audit", "--requirement", str(constraints)),
            *("--no-deps", "--disable-pip", "--timeout", "15", "--progress-spinner", "off"),
            *("--format", "json", "--output", str(report)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        text = report.read_text("utf-8") if report.exists() else ""
    status, lines = verdict(text, pins_in(constraints.read_text("utf-8")), done.stderr)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
