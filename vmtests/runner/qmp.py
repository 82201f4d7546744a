"""QEMU's monitor: JSON, a message a line, on a Unix socket."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from .errors import RunnerError


class Qmp:
    def __init__(self, path: Path, alive) -> None:
        """Connects to `path`, as soon as QEMU has made it; `alive()` raises if QEMU has ended."""
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError as error:
                alive()
                if time.monotonic() > deadline:
                    raise RunnerError(f"{path}: QEMU's monitor does not answer: {error}") from error
                time.sleep(0.02)
        self.socket.settimeout(60)
        self.lines = self.socket.makefile("rb")
        self.lines.readline()
        self.command("qmp_capabilities")

    def command(self, name: str, /, **arguments):
        """The command's answer. Events that come before it are passed over."""
        request = json.dumps({"execute": name, "arguments": arguments})
        try:
            self.socket.sendall(request.encode() + b"\n")
            while True:
                line = self.lines.readline()
                if not line:
                    raise RunnerError(f"QEMU ended at {name}")
                answer = json.loads(line)
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise RunnerError(f"QEMU refuses {request}: {answer['error']['desc']}")
        except OSError as error:
            raise RunnerError(f"QEMU does not answer {name}: {error}") from error

    def wait_for_migration(self, timeout: float) -> None:
        """Until a migration, out of this process or into it, is done."""
        deadline = time.monotonic() + timeout
        while (status := self.command("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled"):
                raise RunnerError(f"QEMU: migration {status}")
            if time.monotonic() > deadline:
                raise RunnerError(f"QEMU: migration is {status} after {timeout:.0f} s")
            time.sleep(0.02)

    def close(self) -> None:
        self.lines.close()
        self.socket.close()
