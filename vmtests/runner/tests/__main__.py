"""python3 -m runner.tests, in vmtests/: the runner's own tests, without machines. The last line is in the form of
cargo's test results, which .ci/test adds up."""

import sys
import unittest

tests = unittest.defaultTestLoader.discover("runner/tests", top_level_dir=".")
result = unittest.TextTestRunner(stream=sys.stdout).run(tests)
failed = len(result.failures) + len(result.errors)
word = "ok" if result.wasSuccessful() and result.testsRun else "FAILED"
print(f"test result: {word}. {result.testsRun - failed} passed; {failed} failed; {len(result.skipped)} ignored")
sys.exit(word != "ok")
