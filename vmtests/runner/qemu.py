"""One QEMU process: its arguments, its monitor, its end."""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import layout
from .errors import RunnerError
from .image import Image
from .qmp import Qmp

# The one that .ci/setup keeps apart from what the host has, or the host's own.
QEMU = layout.tool("qemu-system-x86_64")
MEMORY_MB = 256
PR_SET_PDEATHSIG = 1

# No KVM is asked for, so that all machines are alike wherever they run. QEMU 7.2's TCG gets cmpxchg16b wrong under
# load, and five-level paging costs it time.
CPU = "max,-cx16,-la57"

COMMAND_LINE = [
    "console=ttyS0",
    "net.ifnames=0",
    "mitigations=off",
    "audit=0",
    "selinux=0",
    "apparmor=0",
    "nowatchdog",
    "random.trust_cpu=on",
    "systemd.show_status=false",
    "loglevel=5",
    "panic=-1",
]


@dataclass(frozen=True)
class Disks:
    root: Path
    state: Path
    payload: Path


@dataclass(frozen=True)
class Boot:
    """How a machine comes up."""

    image: Image
    kernel: str
    disks: Disks
    # Device of the bridge's port, or None for a machine without neighbours.
    tap: str | None
    mac: str
    master: bool = False
    # A file made by `Qemu.save`.
    snapshot: Path | None = None
    # QEMU ends at a reboot unless it is allowed, as with the NixOS test driver.
    allow_reboot: bool = False
    # The guest's clock counts its instructions, one a nanosecond, and stands for nothing else.
    counted: bool = False
    processors: int = 1


def arguments(boot: Boot, directory: Path) -> list[str]:
    words = list(COMMAND_LINE)
    if boot.master:
        words.append("vmtest.master")
    # Counting takes one thread. So do several processors: with a thread for each, one now and then ran an
    # instruction that another had meanwhile patched back, and its kernel panicked ("Oops: int3") at boot.
    threads = "single" if boot.counted or boot.processors > 1 else "multi"
    # Without `sleep=off` an idle guest would wait for the host's clock.
    clock = "vm" if boot.counted else "host"
    counting = ["-icount", "shift=0,sleep=off"] if boot.counted else []
    command = [
        QEMU,
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "pc-i440fx-7.2", "-accel", f"tcg,thread={threads},tb-size=128"),
        *counting,
        *("-cpu", CPU, "-smp", str(boot.processors), "-m", str(MEMORY_MB)),
        *("-rtc", f"base=utc,clock={clock}"),
        *("-kernel", str(boot.image.kernel(boot.kernel)), "-initrd", str(boot.image.initramfs(boot.kernel))),
        *("-append", " ".join(words)),
        *("-chardev", f"file,id=console,path={directory / 'console.log'},append=on", "-serial", "chardev:console"),
        *("-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"),
        *("-chardev", f"socket,id=shell,path={directory / 'shell'}"),
        *("-device", "virtio-serial-pci", "-device", "virtconsole,chardev=shell"),
        *("-device", "virtio-rng-pci"),
    ]
    for name, path, options in (
        ("root", boot.disks.root, "readonly=on"),
        ("state", boot.disks.state, "discard=unmap"),
        ("payload", boot.disks.payload, "readonly=on"),
    ):
        command += ["-drive", f"if=none,id={name},file={path},format=raw,cache=unsafe,{options}"]
        command += ["-device", f"virtio-blk-pci,drive={name}"]
    # eth0 is the NixOS test driver's way to the host; here it leads nowhere. eth1 is the underlay.
    command += ["-netdev", "hubport,id=nowhere,hubid=0", "-device", "virtio-net-pci,netdev=nowhere,id=eth0"]
    backend = "hubport,id=underlay,hubid=1"
    if boot.tap is not None:
        backend = f"tap,id=underlay,ifname={boot.tap},script=no,downscript=no"
    command += ["-netdev", backend, "-device", f"virtio-net-pci,netdev=underlay,id=eth1,mac={boot.mac}"]
    if not boot.allow_reboot:
        command.append("-no-reboot")
    if boot.snapshot is not None:
        command += ["-incoming", f"exec:cat {boot.snapshot}"]
    return command


def end_with_parent() -> None:
    """For the master, which runs outside of a PID namespace of its own. The signal comes when the *thread* ends that
    made the process (prctl(2)), so it is for the main thread alone."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Qemu:
    """A running machine. `shell` is the guest's hvc0."""

    def __init__(self, boot: Boot, directory: Path) -> None:
        if shutil.which(QEMU) is None:
            raise RunnerError(f"{QEMU} is not there: run `.ci/setup vmtest`")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        for name in ("qmp", "shell"):
            (directory / name).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / "shell"))
        listener.listen(1)
        listener.settimeout(60)
        self.log = open(directory / "qemu.log", "ab")
        self.process = subprocess.Popen(
            arguments(boot, directory),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            preexec_fn=end_with_parent if boot.master else None,
        )
        try:
            self.qmp = Qmp(directory / "qmp", self._check_alive)
            self.shell = listener.accept()[0]
            if boot.snapshot is not None:
                self.qmp.wait_for_migration(120)
                self.qmp.command("cont")
        except BaseException:
            self.kill()
            raise
        finally:
            listener.close()

    def _check_alive(self) -> None:
        if self.process.poll() is not None:
            log = (self.directory / "qemu.log").read_text(errors="replace").strip().splitlines()
            raise RunnerError(f"{self.directory.name}: QEMU ended at once: {' / '.join(log[-3:])}")

    def alive(self) -> bool:
        return self.process.poll() is None

    def save(self, file: Path) -> None:
        """Stops the machine and writes its memory and devices."""
        self.qmp.command("stop")
        self.qmp.command("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.qmp.command("migrate", uri=f"exec:cat >{file}")
        self.qmp.wait_for_migration(300)

    def set_link(self, device: str, up: bool) -> None:
        self.qmp.command("set_link", name=device, up=up)

    def wait(self, timeout: float) -> None:
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise RunnerError(f"{self.directory.name}: still runs after {timeout:.0f} s") from error

    def kill(self) -> None:
        """As if the power were cut."""
        self.process.kill()
        self.process.wait()
        self.log.close()
