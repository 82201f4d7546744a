import unittest
import xml.etree.ElementTree as ET
from pathlib import Path
from tempfile import TemporaryDirectory

from runner import initramfs, report
from runner.report import Verdict


class Reports(unittest.TestCase):
    def test_what_failed_is_said_where_it_failed(self):
        verdicts = [
            Verdict("good", 3.0, None, [("a", 1.0, False), ("b", 2.0, False)], "said\x00this"),
            Verdict("bad", 1.0, "b: alpha: no", [("a", 0.5, False), ("b", 0.5, True)]),
            Verdict("dead", 0.0, "the runner ended with status 9"),
        ]
        with TemporaryDirectory() as directory:
            file = Path(directory) / "junit.xml"
            report.junit(verdicts, file)
            suites = ET.parse(file).getroot()
        counts = [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in suites]
        self.assertEqual(counts, [("good", "2", "0"), ("bad", "2", "1"), ("dead", "1", "1")])
        failures = {
            case.get("name"): failure.get("message")
            for case in suites.iter("testcase")
            for failure in case.findall("failure")
        }
        self.assertEqual(failures, {"b": "b: alpha: no", "dead": "the runner ended with status 9"})

    def test_a_failure_outside_of_the_subtests_is_a_case(self):
        with TemporaryDirectory() as directory:
            file = Path(directory) / "junit.xml"
            report.junit([Verdict("late", 1.0, "no", [("a", 0.5, False)])], file)
            self.assertEqual(ET.parse(file).getroot()[0].get("failures"), "1")

    def test_the_line_that_ci_adds_up(self):
        verdicts = [Verdict("good", 1.0, None), Verdict("bad", 1.0, "no")]
        self.assertEqual(report.summary(verdicts), "test result: FAILED. 1 passed; 1 failed; 0 ignored")


class Cpio(unittest.TestCase):
    def test_entries_are_aligned(self):
        for size in range(9):
            self.assertEqual(len(initramfs.entry("name", 0o100644, b"x" * size, 1)) % 4, 0)
