"""The NixOS test driver's "backdoor": a root shell on the guest's first virtio console.

The guest prints GREETING once its shell is ready. Each command is then one line,

    timeout N bash -c COMMAND | (base64 -w 0; echo); echo ${PIPESTATUS[0]}

and its answer two: the output in base64, and the exit status. The driver sends the second half as a line of
its own; in one line it costs one trip less.
"""

from __future__ import annotations

import base64
import select
import shlex
import socket
import time

from .errors import MachineError

GREETING = b"Spawning backdoor root shell..."

# The guest's `timeout` ends a command in time; this is for a guest that does not answer at all.
GRACE = 60.0


class Backdoor:
    """A shell behind a connected stream socket."""

    def __init__(self, connection: socket.socket, machine: str) -> None:
        self.connection = connection
        self.machine = machine
        self.received = b""

    def wait_for_greeting(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while GREETING not in self._line(deadline, "its shell"):
            pass

    def execute(
        self,
        command: str,
        check_return: bool = True,
        check_output: bool = True,
        timeout: int | None = 900,
    ) -> tuple[int, str]:
        """Exit status and standard output. -1 for a status that was not asked for, -2 where the output was not
        waited for either, as the driver has it. A command that `timeout` ends has status 124."""
        limit = "" if timeout is None else f"timeout {timeout} "
        shell = f"{limit}bash -c {shlex.quote('set -euo pipefail; ' + command)}"
        if not check_output:
            self._send(f"{shell} | (base64 -w 0; echo)\n")
            return (-2, "")
        self._send(f"{shell} | (base64 -w 0; echo); echo ${{PIPESTATUS[0]}}\n")
        deadline = None if timeout is None else time.monotonic() + timeout + GRACE
        output = base64.b64decode(self._line(deadline, command)).decode(errors="replace")
        status = int(self._line(deadline, command))
        return (status if check_return else -1, output)

    def send_line(self, line: str) -> None:
        """A command whose end is not waited for, because the machine ends with it."""
        self._send(line + "\n")

    def close(self) -> None:
        self.connection.close()

    def _send(self, text: str) -> None:
        self.connection.settimeout(GRACE)
        try:
            self.connection.sendall(text.encode())
        except OSError as error:
            raise MachineError(f"{self.machine}: its shell takes no commands: {error}") from error

    def _line(self, deadline: float | None, waiting_for: str) -> bytes:
        while b"\n" not in self.received:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self.connection], [], [], left)[0]:
                raise MachineError(f"{self.machine}: no answer in time to: {waiting_for}")
            try:
                chunk = self.connection.recv(1 << 16)
            except OSError as error:
                raise MachineError(f"{self.machine}: its shell is gone: {error}") from error
            if not chunk:
                raise MachineError(f"{self.machine}: its shell ended while waiting for: {waiting_for}")
            self.received += chunk
        line, self.received = self.received.split(b"\n", 1)
        return line.strip(b"\r")
