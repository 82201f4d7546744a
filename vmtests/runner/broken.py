"""Scenarios that must fail: each is one of the others, with something put in its way.

`broken.json` names them: NAME is that `scenario`, run after `broken/NAME.py`, and its failure `says` (a regular
expression) what a reader of the report is to learn.
"""

from __future__ import annotations

import json
import re

from . import layout
from .report import Verdict

DIRECTORY = layout.VMTESTS / "broken"


def names() -> list[str]:
    """What there is to put in a scenario's way."""
    return sorted(path.stem for path in DIRECTORY.glob("*.py"))


def scenarios(sound: dict[str, dict]) -> dict[str, dict]:
    """In the form of scenarios.json, with `script`, `broken` and `says`."""
    entries = json.loads((layout.VMTESTS / "broken.json").read_text())
    return {
        name: {**sound[entry["scenario"]], **entry, "script": entry["scenario"], "broken": name}
        for name, entry in entries.items()
    }


def judge(verdict: Verdict, says: str) -> Verdict:
    """The verdict on the scenario as one on whether it has noticed."""
    failure = None
    if verdict.failure is None:
        failure = "passed, and should have failed: it is too weak"
    elif not re.search(says, verdict.failure):
        failure = f"should have failed with {says!r}, but: {verdict.failure}"
    return Verdict(verdict.scenario, verdict.seconds, failure, [], verdict.output)
