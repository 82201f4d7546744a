"""The driver's methods, on a machine whose shell answers what the test has written down."""

import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from runner import machine
from runner.errors import MachineError
from runner.image import Image
from runner.machine import Machine, retry


class Quiet:
    def line(self, who, text):
        pass

    def timed(self, who, text):
        return mock.MagicMock()


class Shell:
    """Answers the commands that contain a key with its values in turn, the last one again and again."""

    def __init__(self, answers):
        self.answers = {key: list(values) for key, values in answers.items()}
        self.commands = []

    def execute(self, command, check_return=True, check_output=True, timeout=900):
        self.commands.append((command, timeout))
        for key, values in self.answers.items():
            if key in command:
                return values.pop(0) if len(values) > 1 else values[0]
        return (0, "")


class Methods(unittest.TestCase):
    def setUp(self):
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        patch = mock.patch.object(machine.time, "sleep")
        patch.start()
        self.addCleanup(patch.stop)
        self.directory = Path(directory.name)
        self.machine = Machine("alpha", Image(self.directory), "6.12", "tap0", None, self.directory / "alpha", Quiet())

    def answers(self, **answers):
        self.machine.shell = Shell({key.replace("_", " "): value for key, value in answers.items()})
        return self.machine.shell

    def test_succeed_joins_the_outputs_and_names_the_command_that_failed(self):
        self.answers(one=[(0, "1\n")], two=[(0, "2\n")], three=[(4, "why\n")])
        self.assertEqual(self.machine.succeed("one", "two"), "1\n2\n")
        with self.assertRaisesRegex(MachineError, r"alpha: `three` failed \(exit code 4\): why"):
            self.machine.succeed("one", "three", "two")

    def test_fail_is_the_opposite(self):
        self.answers(good=[(0, "yes\n")], bad=[(1, "no\n")])
        self.assertEqual(self.machine.fail("bad"), "no\n")
        with self.assertRaisesRegex(MachineError, "`good` unexpectedly succeeded: yes"):
            self.machine.fail("good")

    def test_until(self):
        self.answers(try_it=[(1, "not yet"), (1, "not yet"), (0, "now")])
        self.assertEqual(self.machine.wait_until_succeeds("try it"), "now")
        self.answers(try_it=[(0, "still"), (1, "gone")])
        self.assertEqual(self.machine.wait_until_fails("try it"), "gone")
        self.answers(try_it=[(1, "never")])
        with self.assertRaisesRegex(MachineError, "did not succeed within 0 s; last output: never"):
            self.machine.wait_until_succeeds("try it", timeout=0)

    def test_a_unit_that_comes_up(self):
        self.answers(ActiveState=[(0, "ActiveState=activating\n"), (0, "ActiveState=active\n")])
        self.machine.wait_for_unit("oncache.service")

    def test_a_unit_that_fails_ends_the_wait(self):
        self.answers(ActiveState=[(0, "ActiveState=failed\n")], journalctl=[(0, "bad file\n")])
        with self.assertRaisesRegex(MachineError, "unit oncache.service reached state failed: bad file"):
            self.machine.wait_for_unit("oncache.service")

    def test_a_unit_that_nobody_starts_ends_the_wait(self):
        self.answers(ActiveState=[(0, "ActiveState=inactive\n")], **{"list-jobs": [(0, "No jobs running.\n")]})
        with self.assertRaisesRegex(MachineError, "is inactive and there are no pending jobs"):
            self.machine.wait_for_unit("oncache.service")

    def test_a_unit_that_is_about_to_be_started_is_waited_for(self):
        self.answers(
            ActiveState=[(0, "ActiveState=inactive\n"), (0, "ActiveState=active\n")],
            **{"list-jobs": [(0, "7 oncache.service start waiting\n")]},
        )
        self.machine.wait_for_unit("oncache.service")

    def test_unit_information(self):
        self.answers(show=[(0, "Id=oncache.service\nEnvironment=A=b\n\n")])
        self.assertEqual(
            self.machine.get_unit_info("oncache"), {"Id": "oncache.service", "Environment": "A=b"}
        )
        self.answers(ActiveState=[(0, "ActiveState=active\n")])
        self.machine.require_unit_state("oncache")
        with self.assertRaisesRegex(MachineError, "expected unit oncache to be inactive, but it is active"):
            self.machine.require_unit_state("oncache", "inactive")

    def test_console_text_is_found_once(self):
        self.machine.qemu = mock.Mock()
        (self.directory / "alpha/console.log").write_text("Linux version 6.12\nready\n")
        self.machine.wait_for_console_text("version [0-9.]+", timeout=0)
        with self.assertRaisesRegex(MachineError, "console does not say version"):
            self.machine.wait_for_console_text("version", timeout=0)
        self.machine.wait_for_console_text("ready", timeout=0)

    def test_large_files_are_copied_in_pieces(self):
        source = self.directory / "file"
        source.write_bytes(b"".join(i.to_bytes(4, "big") for i in range(0, 4_000_000_000, 40_000)))
        shell = self.answers()
        self.machine.copy_from_host(str(source), "/root/file")
        self.assertLess(max(len(command) for command, _ in shell.commands), 128 << 10)
        self.assertGreater(len(shell.commands), 3)

    def test_reboot_must_be_allowed(self):
        self.machine.qemu = mock.Mock()
        with self.assertRaisesRegex(MachineError, "allow_reboot"):
            self.machine.reboot()

    def test_the_link_is_pulled_also_of_a_machine_that_is_off(self):
        self.machine.block()
        self.assertEqual(self.machine.links_down, {"eth1"})
        self.machine.qemu = mock.Mock()
        self.machine.unblock()
        self.machine.qemu.set_link.assert_called_once_with("eth1", True)


class Retry(unittest.TestCase):
    def test_the_last_try_knows_that_it_is_the_last(self):
        told = []
        with self.assertRaises(MachineError):
            retry(lambda last: told.append(last), timeout=0)
        self.assertEqual(told, [True])
