"""The protocol against a real shell behind a socket: a guest's hvc0 without the guest."""

import socket
import subprocess
import time
import unittest

from runner import backdoor
from runner.backdoor import Backdoor
from runner.errors import MachineError


class Guest:
    """What image.py puts behind hvc0, on a socket."""

    def __init__(self, before: bytes = b"noise of the boot\n") -> None:
        ours, theirs = socket.socketpair()
        theirs.sendall(before + b"Spawning backdoor root shell...\n")
        self.process = subprocess.Popen(
            ["bash", "--norc"], stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        self.shell = Backdoor(ours, "guest")

    def close(self) -> None:
        self.shell.close()
        self.process.kill()
        self.process.wait()


class Protocol(unittest.TestCase):
    def setUp(self) -> None:
        self.guest = Guest()
        self.addCleanup(self.guest.close)
        self.shell = self.guest.shell
        self.shell.wait_for_greeting(10)

    def test_output_and_status(self):
        self.assertEqual(self.shell.execute("echo out; echo err >&2; exit 7"), (7, "out\n"))

    def test_a_failing_command_ends_the_line_of_commands(self):
        self.assertEqual(self.shell.execute("echo before; false; echo after"), (1, "before\n"))

    def test_a_failing_pipe_fails(self):
        self.assertEqual(self.shell.execute("false | true")[0], 1)

    def test_an_unset_variable_fails(self):
        self.assertNotEqual(self.shell.execute("echo $no_such_variable")[0], 0)

    def test_quotes_newlines_and_large_output(self):
        self.assertEqual(self.shell.execute("echo \"it's\"\necho '$two'"), (0, "it's\n$two\n"))
        self.assertEqual(self.shell.execute("seq 100000")[1].splitlines()[-1], "100000")
        self.assertEqual(self.shell.execute("printf '\\xff'"), (0, "\ufffd"))

    def test_one_command_after_the_other(self):
        for i in range(20):
            self.assertEqual(self.shell.execute(f"echo {i}"), (0, f"{i}\n"))

    def test_the_guest_ends_a_command_in_time(self):
        started = time.monotonic()
        self.assertEqual(self.shell.execute("echo begun; sleep 60", timeout=1), (124, "begun\n"))
        self.assertLess(time.monotonic() - started, 30)

    def test_status_and_output_that_are_not_asked_for(self):
        self.assertEqual(self.shell.execute("exit 3", check_return=False), (-1, ""))
        self.assertEqual(self.shell.execute("sleep 0", check_output=False), (-2, ""))

    def test_a_guest_that_dies_is_named(self):
        with self.assertRaisesRegex(MachineError, "guest: its shell ended while waiting for: kill"):
            self.shell.execute(f"kill -9 {self.guest.process.pid}")


class Silence(unittest.TestCase):
    def test_a_guest_that_never_greets(self):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        theirs.sendall(b"booting\n")
        with self.assertRaisesRegex(MachineError, "guest: no answer in time to: its shell"):
            Backdoor(ours, "guest").wait_for_greeting(0.2)

    def test_a_guest_that_hangs(self):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        grace, backdoor.GRACE = backdoor.GRACE, 0.2
        self.addCleanup(setattr, backdoor, "GRACE", grace)
        with self.assertRaisesRegex(MachineError, "no answer in time to: true"):
            Backdoor(ours, "guest").execute("true", timeout=0)
