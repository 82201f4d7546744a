"""A machine with the NixOS test driver's methods: their names, arguments, results and time-outs.

(nixos/lib/test-driver of nixpkgs is the reference.) A command runs under `set -euo pipefail`; the result is
its standard output, while what it says on standard error is in the console's log.
"""

from __future__ import annotations

import base64
import io
import re
import shlex
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from . import payload, qemu, snapshot
from .backdoor import Backdoor
from .errors import MachineError
from .image import Image
from .log import Log

# Of the last mile: `systemctl poweroff` to QEMU's end, and QEMU's start to the shell.
SHUTDOWN_TIMEOUT = 300
BOOT_TIMEOUT = 300

# A command line has an end (MAX_ARG_STRLEN, 128 KiB); a copied file comes in pieces of this many base64 characters.
COPY_PIECE = 96 << 10

# What a restored machine must take on before it is the one it should be. The disk was looked at by the master's
# kernel, when it held another machine's tar: hence the flush. Two clones must not draw the same random numbers
# (RNDRESEEDCRNG is 0x5207). Interpreters are slow to start here: Perl is a second faster than Python. Nor is systemd
# told to reload: units that it has not read yet it finds by themselves, and to read all takes it four seconds.
BECOME = """
blockdev --flushbufs /dev/vdc
tar -xf /dev/vdc -C /
date -s @{now} >/dev/null
perl -e 'open(my $random, "+<", "/dev/urandom") or die; syswrite($random, pack("H*", "{seed}")) == 32 or die;
    defined(ioctl($random, 0x5207, 0)) or die'
hostname {name}
ip link set dev eth1 address {mac}
systemctl restart systemd-networkd
cd /etc/systemd/system/multi-user.target.wants
systemctl start --no-block systemd-modules-load.service oncache*.service
"""


def retry(action: Callable[[bool], bool], timeout: int = 900) -> None:
    """Once a second until it is true; the last time it is told so."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if action(False):
            return
        time.sleep(1)
    if not action(True):
        raise MachineError(f"not within {timeout} s")


class Machine:
    """Not started until `start`, or until the first command."""

    def __init__(
        self,
        name: str,
        image: Image,
        kernel: str,
        tap: str,
        master: snapshot.Snapshot | None,
        directory: Path,
        log: Log,
        variant: dict | None = None,
    ) -> None:
        self.name = name
        self.variant = variant or {}
        self.image = image
        self.kernel = kernel
        self.tap = tap
        self.master = master
        self.directory = directory
        self.log = log
        self.qemu: qemu.Qemu | None = None
        self.shell: Backdoor | None = None
        self.console_read = 0
        self.links_down: set[str] = set()
        self.allow_reboot = False
        directory.mkdir(parents=True, exist_ok=True)
        self.disks = qemu.Disks(image.root, directory / "state.ext4", directory / "payload.tar")

    # Its life.

    def start(self, allow_reboot: bool = False) -> None:
        if self.booted:
            return
        fresh = not self.disks.state.exists()
        restore = fresh and self.master is not None and not allow_reboot
        if fresh:
            snapshot.copy_sparse(self.master.state if restore else self.image.state, self.disks.state)
        self.allow_reboot = allow_reboot
        boot = qemu.Boot(
            image=self.image,
            kernel=self.kernel,
            disks=self.disks,
            tap=self.tap,
            mac=payload.mac(self.name),
            snapshot=self.master.memory if restore else None,
            allow_reboot=allow_reboot,
            counted=self.variant.get("counted", False),
            processors=self.variant.get("processors", 1),
        )
        self.log.line(self.name, "is restored" if restore else "boots")
        self.qemu = qemu.Qemu(boot, self.directory)
        for device in self.links_down:
            self.qemu.set_link(device, False)
        if restore:
            # Its shell has been there since the master's time.
            self.shell = Backdoor(self.qemu.shell, self.name)
            self._become()

    def _become(self) -> None:
        """After the restore: the master's clone takes on its name, address, time and files."""
        seed = Path("/dev/urandom").open("rb").read(32).hex()
        command = BECOME.format(now=int(time.time()), seed=seed, name=self.name, mac=payload.mac(self.name))
        started = time.monotonic()
        status, output = self.execute(command, timeout=300)
        if status != 0:
            raise MachineError(f"{self.name}: does not become itself after the restore (exit code {status}): {output}")
        self.log.line(self.name, f"is itself after {time.monotonic() - started:.1f} s more")

    @property
    def booted(self) -> bool:
        return self.qemu is not None

    def is_up(self) -> bool:
        return self.booted and self.shell is not None

    def connect(self) -> None:
        if self.shell is not None:
            return
        self.start()
        if self.shell is not None:
            return
        started = time.monotonic()
        self.shell = Backdoor(self.qemu.shell, self.name)
        self.shell.wait_for_greeting(BOOT_TIMEOUT)
        self.log.line(self.name, f"has a shell after {time.monotonic() - started:.1f} s more")

    def shutdown(self) -> None:
        """Powers it off in order, and waits for that."""
        if not self.booted:
            return
        self.connect()
        self.log.line(self.name, "is shut down")
        self.shell.send_line("poweroff")
        self.wait_for_shutdown()

    def wait_for_shutdown(self) -> None:
        if not self.booted:
            return
        self.qemu.wait(SHUTDOWN_TIMEOUT)
        self._ended()

    def crash(self) -> None:
        """Cuts its power: what it has not written is lost."""
        if not self.booted:
            return
        self.log.line(self.name, "crashes")
        self.qemu.kill()
        self._ended()

    def reboot(self) -> None:
        """Ctrl+Alt+Delete. For a machine started with `allow_reboot=True`."""
        if not self.booted:
            return
        if not self.allow_reboot:
            raise MachineError(f"{self.name}: reboot() takes start(allow_reboot=True)")
        self.log.line(self.name, "is rebooted")
        keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
        self.qemu.qmp.command("send-key", keys=keys)
        self.shell = None

    def _ended(self) -> None:
        self.qemu.kill()
        self.qemu.qmp.close()
        self.qemu = None
        if self.shell is not None:
            self.shell.close()
        self.shell = None

    def block(self) -> None:
        """Pulls the underlay's cable."""
        self._set_link(False)

    def unblock(self) -> None:
        self._set_link(True)

    def _set_link(self, up: bool) -> None:
        self.log.line(self.name, "underlay link " + ("up" if up else "down"))
        (self.links_down.discard if up else self.links_down.add)("eth1")
        if self.booted:
            self.qemu.set_link("eth1", up)

    # Commands.

    def execute(
        self, command: str, check_return: bool = True, check_output: bool = True, timeout: int | None = 900
    ) -> tuple[int, str]:
        self.connect()
        return self.shell.execute(command, check_return, check_output, timeout)

    def succeed(self, *commands: str, timeout: int | None = None) -> str:
        """The output of all together; each must end with status 0."""
        output = ""
        for command in commands:
            with self.log.timed(self.name, f"must succeed: {command}"):
                status, out = self.execute(command, timeout=timeout if timeout is not None else 900)
            if status != 0:
                raise MachineError(f"{self.name}: `{command.strip()}` failed (exit code {status}): {out.strip()}")
            output += out
        return output

    def fail(self, *commands: str, timeout: int | None = None) -> str:
        output = ""
        for command in commands:
            with self.log.timed(self.name, f"must fail: {command}"):
                status, out = self.execute(command, timeout=timeout if timeout is not None else 900)
            if status == 0:
                raise MachineError(f"{self.name}: `{command.strip()}` unexpectedly succeeded: {out.strip()}")
            output += out
        return output

    def wait_until_succeeds(self, command: str, timeout: int = 900) -> str:
        return self._until(command, timeout, lambda status: status == 0, "succeed")

    def wait_until_fails(self, command: str, timeout: int = 900) -> str:
        return self._until(command, timeout, lambda status: status != 0, "fail")

    def _until(self, command: str, timeout: int, wanted: Callable[[int], bool], verb: str) -> str:
        output = ""

        def check(_last: bool) -> bool:
            nonlocal output
            status, output = self.execute(command, timeout=timeout)
            return wanted(status)

        with self.log.timed(self.name, f"waiting until it {verb}s: {command}"):
            try:
                retry(check, timeout)
            except MachineError as error:
                raise MachineError(
                    f"{self.name}: `{command.strip()}` did not {verb} within {timeout} s; last output: {output.strip()}"
                ) from error
        return output

    def sleep(self, secs: int) -> None:
        """In the machine's time."""
        self.succeed(f"sleep {secs}", timeout=int(secs) + 900)

    # systemd.

    def systemctl(self, q: str, user: str | None = None) -> tuple[int, str]:
        if user is not None:
            q = q.replace("'", "\\'")
            return self.execute(
                f"su -l {user} --shell /bin/sh -c "
                f"$'XDG_RUNTIME_DIR=/run/user/`id -u` systemctl --user {q}'"
            )
        return self.execute(f"systemctl {q}")

    def get_unit_info(self, unit: str, user: str | None = None) -> dict[str, str]:
        status, lines = self.systemctl(f'--no-pager show "{unit}"', user)
        if status != 0:
            raise MachineError(f"{self.name}: retrieving systemctl info for unit {unit} failed with exit code {status}")
        return dict(line.split("=", 1) for line in lines.split("\n") if re.match(r"^[^=]+=", line))

    def get_unit_property(self, unit: str, property: str, user: str | None = None) -> str:
        status, lines = self.systemctl(f'--no-pager show "{unit}" --property="{property}"', user)
        match = re.match(r"^[^=]+=(.*)$", lines.strip()) if status == 0 else None
        if match is None:
            raise MachineError(
                f"{self.name}: unit {unit} has no property {property} (exit code {status}): {lines.strip()}"
            )
        return match[1]

    def require_unit_state(self, unit: str, require_state: str = "active") -> None:
        state = self.get_unit_property(unit, "ActiveState")
        if state != require_state:
            raise MachineError(f"{self.name}: expected unit {unit} to be {require_state}, but it is {state}")

    def wait_for_unit(self, unit: str, user: str | None = None, timeout: int = 900) -> None:
        """Until it is active. A unit that has failed, or that nothing is going to start, ends the wait."""

        def check(_last: bool) -> bool:
            state = self.get_unit_property(unit, "ActiveState", user)
            if state == "failed":
                raise MachineError(f"{self.name}: unit {unit} reached state failed: {self._why(unit)}")
            if state == "inactive":
                status, jobs = self.systemctl("list-jobs --full 2>&1", user)
                if "No jobs" in jobs and self.get_unit_property(unit, "ActiveState", user) == "inactive":
                    raise MachineError(f"{self.name}: unit {unit} is inactive and there are no pending jobs")
            return state == "active"

        with self.log.timed(self.name, f"waiting for unit {unit}"):
            try:
                retry(check, timeout)
            except MachineError as error:
                if str(error).startswith("not within"):
                    raise MachineError(
                        f"{self.name}: unit {unit} is not active after {timeout} s: {self._why(unit)}"
                    ) from error
                raise

    def _why(self, unit: str) -> str:
        """What the unit said last, for the report."""
        return self.execute(f"journalctl --unit {shlex.quote(unit)} --lines 5 --output cat --no-pager")[1].strip()

    def start_job(self, jobname: str, user: str | None = None) -> tuple[int, str]:
        return self.systemctl(f"start {jobname}", user)

    def stop_job(self, jobname: str, user: str | None = None) -> tuple[int, str]:
        return self.systemctl(f"stop {jobname}", user)

    # Things to wait for.

    def wait_for_open_port(self, port: int, addr: str = "localhost", timeout: int = 900) -> None:
        """TCP."""
        self.wait_until_succeeds(f"exec 9<>/dev/tcp/{addr}/{port}", timeout)

    def wait_for_closed_port(self, port: int, addr: str = "localhost", timeout: int = 900) -> None:
        self.wait_until_fails(f"exec 9<>/dev/tcp/{addr}/{port}", timeout)

    def wait_for_file(self, filename: str, timeout: int = 900) -> None:
        self.wait_until_succeeds(f"test -e {filename}", timeout)

    def get_console_log(self) -> str:
        path = self.directory / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_console_text(self, regex: str, timeout: int | None = None) -> None:
        """In what the console prints from the last such wait on."""
        self.start()
        with self.log.timed(self.name, f"waiting for {regex} to appear on console"):
            deadline = None if timeout is None else time.monotonic() + timeout
            while True:
                text = self.get_console_log()
                match = re.search(regex, text[self.console_read :])
                if match is not None:
                    self.console_read += match.end()
                    return
                if deadline is not None and time.monotonic() > deadline:
                    raise MachineError(f"{self.name}: console does not say {regex} within {timeout} s")
                time.sleep(0.2)

    # Files.

    def copy_from_host(self, source: str, target: str) -> None:
        """A file or a directory of this machine's; `target` is its name there."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            tar.add(source, arcname="copied")
        text = base64.b64encode(archive.getvalue()).decode()
        incoming = "/tmp/vmtest-incoming"
        self.succeed(f"rm -rf {incoming} && mkdir -p {incoming}")
        for start in range(0, len(text), COPY_PIECE):
            self.succeed(f"printf %s {text[start : start + COPY_PIECE]} >>{incoming}/archive")
        where = shlex.quote(target)
        self.succeed(
            f"mkdir -p $(dirname {where}) && base64 -d {incoming}/archive | tar -xz -C {incoming} --no-same-owner && "
            f"cp -rT {incoming}/copied {where} && rm -rf {incoming}"
        )

    def copy_from_machine(self, source: str, target_dir: str = "") -> None:
        """Into the scenario's results, below the machine's name."""
        name = shlex.quote(source)
        output = self.succeed(f"tar -cz -C $(dirname {name}) $(basename {name}) | base64 -w 0")
        target = self.directory / "copied" / target_dir
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(output)), mode="r:gz") as tar:
            tar.extractall(target)
