"""The master: a machine that has booted and is nobody yet, kept as a file that others are restored from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import layout, payload, qemu
from .backdoor import Backdoor
from .errors import MachineError, RunnerError
from .image import Image

BOOT_TIMEOUT = 300

# Seconds for which one is kept that nobody has used.
KEPT = 24 * 3600

# A machine that has come up, with as little in memory that differs from machine to machine as can be; the pages
# that were read are kept, because the restored machines read them again.
SETTLE = """
systemctl is-system-running --wait >/dev/null || true
modprobe -a bridge vxlan veth nf_tables nf_conntrack nft_chain_nat nft_ct nft_masq nft_meta_bridge sch_ingress cls_bpf
sync
"""


@dataclass(frozen=True)
class Snapshot:
    memory: Path
    # The second disk as it was at that moment.
    state: Path


def key(image: Image, kernel: str) -> str:
    """Another QEMU, another machine type or another way to settle makes another snapshot."""
    version = subprocess.run([qemu.QEMU, "--version"], capture_output=True, text=True).stdout
    digest = hashlib.sha256(version.encode())
    for module in ("qemu.py", "snapshot.py"):
        digest.update((Path(__file__).parent / module).read_bytes())
    digest.update(str(payload.SIZE).encode())
    return f"{kernel}-{digest.hexdigest()[:12]}"


def ready(image: Image, kernel: str) -> Snapshot:
    """The snapshot of the image's master, made if it is not there."""
    directory = image.directory / f"snapshot-{key(image, kernel)}"
    with open(layout.cache() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            remove_unused(image.directory.glob("snapshot-*"))
            started = time.monotonic()
            with tempfile.TemporaryDirectory(dir=image.directory, prefix="master-") as work:
                finished = Path(work) / "finished"
                finished.mkdir()
                make(image, kernel, Path(work), finished)
                finished.rename(directory)
            print(f"vmtest: snapshot of kernel {kernel} made in {time.monotonic() - started:.0f} s", flush=True)
        os.utime(directory)
    return Snapshot(directory / "memory", directory / "state.ext4")


def remove_unused(snapshots: Iterable[Path]) -> None:
    """Another checkout may be at work with its own, in the same cache."""
    for snapshot in snapshots:
        if time.time() - snapshot.stat().st_mtime > KEPT:
            shutil.rmtree(snapshot)


def make(image: Image, kernel: str, work: Path, finished: Path) -> None:
    state = finished / "state.ext4"
    copy_sparse(image.state, state)
    empty = work / "payload"
    empty.touch()
    with open(empty, "r+b") as file:
        file.truncate(payload.SIZE)
    boot = qemu.Boot(
        image=image,
        kernel=kernel,
        disks=qemu.Disks(image.root, state, empty),
        tap=None,
        mac="52:54:00:12:01:ff",
        master=True,
    )
    machine = qemu.Qemu(boot, work / "master")
    try:
        shell = Backdoor(machine.shell, "master")
        shell.wait_for_greeting(BOOT_TIMEOUT)
        status, output = shell.execute(SETTLE, timeout=BOOT_TIMEOUT)
        if status != 0:
            raise RunnerError(f"status {status}: {output}")
        machine.save(finished / "memory")
    except (MachineError, RunnerError) as error:
        console = (work / "master/console.log").read_text(errors="replace")[-3000:]
        raise RunnerError(f"kernel {kernel}: its machine to restore from does not come up: {error}\n{console}") from error
    finally:
        machine.kill()


def copy_sparse(source: Path, destination: Path) -> None:
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, destination], check=True)
