import os
import time
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

from runner import snapshot


class Unused(unittest.TestCase):
    def test_those_of_other_checkouts_are_left_while_they_are_used(self):
        with TemporaryDirectory() as directory:
            used, unused = Path(directory) / "snapshot-6.12-a", Path(directory) / "snapshot-6.12-b"
            used.mkdir()
            unused.mkdir()
            long_ago = time.time() - 2 * snapshot.KEPT
            os.utime(unused, (long_ago, long_ago))
            snapshot.remove_unused([used, unused])
            self.assertEqual(os.listdir(directory), [used.name])
