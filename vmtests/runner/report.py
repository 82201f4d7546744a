"""The verdicts: a JUnit file, and a line in the form of cargo's test results, which .ci/test adds up."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Verdict:
    scenario: str
    seconds: float
    # One line, or None if it passed.
    failure: str | None
    # Name, seconds, failed.
    subtests: list[tuple[str, float, bool]] = field(default_factory=list)
    output: str = ""


def printable(text: str) -> str:
    """XML 1.0 has no place for most control characters."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def junit(verdicts: list[Verdict], file: Path) -> None:
    suites = ET.Element("testsuites")
    for verdict in verdicts:
        failed = verdict.failure is not None
        cases = verdict.subtests or [(verdict.scenario, verdict.seconds, failed)]
        if failed and not any(case[2] for case in cases):
            cases = [*cases, ("outside of the subtests", 0.0, True)]
        suite = ET.SubElement(
            suites,
            "testsuite",
            name=verdict.scenario,
            tests=str(len(cases)),
            failures=str(sum(1 for case in cases if case[2])),
            time=f"{verdict.seconds:.1f}",
        )
        for name, seconds, case_failed in cases:
            case = ET.SubElement(suite, "testcase", classname=verdict.scenario, name=name, time=f"{seconds:.1f}")
            if case_failed:
                ET.SubElement(case, "failure", message=printable(verdict.failure or ""))
        ET.SubElement(suite, "system-out").text = printable(verdict.output)
    ET.indent(suites)
    file.write_bytes(ET.tostring(suites, encoding="utf-8", xml_declaration=True))


def summary(verdicts: list[Verdict]) -> str:
    failed = sum(1 for verdict in verdicts if verdict.failure is not None)
    word = "FAILED" if failed else "ok"
    return f"test result: {word}. {len(verdicts) - failed} passed; {failed} failed; 0 ignored"
