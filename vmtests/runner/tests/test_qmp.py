"""The monitor's protocol, with a stand-in for QEMU."""

import json
import socket
import threading
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

from runner.errors import RunnerError
from runner.qmp import Qmp


class Monitor(unittest.TestCase):
    def qmp(self, *answers):
        """Connected to a monitor that gives `answers` in turn, each a list of messages."""
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = Path(directory.name) / "qmp"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self.requests = []

        def serve():
            with listener, listener.accept()[0] as connection, connection.makefile("rwb") as lines:
                lines.write(b'{"QMP": {}}\n')
                lines.flush()
                for messages in [[{"return": {}}], *answers]:
                    self.requests.append(json.loads(lines.readline()))
                    lines.writelines(json.dumps(message).encode() + b"\n" for message in messages)
                    lines.flush()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 5)
        qmp = Qmp(path, lambda: None)
        self.addCleanup(qmp.close)
        return qmp

    def test_events_are_passed_over_and_arguments_may_have_any_name(self):
        qmp = self.qmp([{"event": "STOP"}, {"return": {"done": True}}])
        self.assertEqual(qmp.command("set_link", name="eth1", up=False), {"done": True})
        self.assertEqual(self.requests[-1], {"execute": "set_link", "arguments": {"name": "eth1", "up": False}})

    def test_a_refusal_says_what_was_refused(self):
        qmp = self.qmp([{"error": {"desc": "no such link"}}])
        with self.assertRaisesRegex(RunnerError, "QEMU refuses .*set_link.*: no such link"):
            qmp.command("set_link")

    def test_an_end_is_no_answer(self):
        with self.assertRaisesRegex(RunnerError, "QEMU ended at stop|does not answer stop"):
            self.qmp().command("stop")

    def test_migration(self):
        qmp = self.qmp([{"return": {}}], [{"return": {"status": "active"}}], [{"return": {"status": "completed"}}])
        qmp.wait_for_migration(10)
        with self.assertRaisesRegex(RunnerError, "migration failed"):
            self.qmp([{"return": {"status": "failed"}}]).wait_for_migration(10)
