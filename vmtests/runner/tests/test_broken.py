import json
import re
import unittest

from runner import broken, layout
from runner.report import Verdict


def failure(verdict):
    return broken.judge(verdict, "round trips lost").failure


class Broken(unittest.TestCase):
    def test_only_the_failure_that_is_meant_counts(self):
        self.assertIsNone(failure(Verdict("lossy", 1.0, "no packet is lost: 4 of 4000 round trips lost")))
        self.assertIn("too weak", failure(Verdict("lossy", 1.0, None)))
        other = failure(Verdict("lossy", 1.0, "alpha: `oncache check` failed"))
        self.assertIn("round trips lost", other)
        self.assertIn("oncache check", other)

    def test_each_has_a_file_and_a_scenario(self):
        sound = json.loads((layout.VMTESTS / "scenarios.json").read_text())
        entries = broken.scenarios(sound)
        self.assertLessEqual(set(entries), set(broken.names()))
        self.assertFalse(set(entries) & set(sound))
        for name, entry in entries.items():
            self.assertEqual(entry["machines"], sound[entry["script"]]["machines"], name)
            re.compile(entry["says"])


class Scenarios(unittest.TestCase):
    def test_each_file_is_listed_and_each_that_is_listed_is_there(self):
        listed = json.loads((layout.VMTESTS / "scenarios.json").read_text())
        scripts = {scenario.get("script", name) for name, scenario in listed.items()}
        self.assertEqual(scripts, {path.stem for path in layout.VMTESTS.glob("*.py")})
