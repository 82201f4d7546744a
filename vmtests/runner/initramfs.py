"""The initramfs: busybox, the few modules that the root file system takes, and a script."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

from .errors import RunnerError

BUSYBOX = Path("/usr/bin/busybox")

# What the script needs; built-in ones are passed over.
MODULES = ["virtio_pci", "virtio_blk", "erofs", "overlay"]

INIT = """#!/bin/busybox sh
# vda: the root file system, read only. vdb: what the machine changes, kept over its reboots. vdc: a tar of what
# makes it this machine; a machine that has it already (/etc/vmtest-machine), and the master of the
# snapshots, take nothing from it.
export PATH=/bin
/bin/busybox mkdir -p /bin /dev /proc /sys /lower /state /root
/bin/busybox --install -s /bin
fail() { echo "initramfs: $*" >/dev/console; poweroff -f; }
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module" || fail "insmod $module"; done </modules/order
tries=0
until [ -b /dev/vda ] && [ -b /dev/vdb ] && [ -b /dev/vdc ]; do
    tries=$((tries + 1)); [ $tries -lt 600 ] || fail "no disks"
    sleep 0.1
done
mount -t erofs -o ro /dev/vda /lower || fail "vda"
mount -t ext4 -o noatime /dev/vdb /state || fail "vdb"
mkdir -p /state/upper /state/work
mount -t overlay -o lowerdir=/lower,upperdir=/state/upper,workdir=/state/work overlay /root || fail "overlay"
grep -qw vmtest.master /proc/cmdline || [ -e /root/etc/vmtest-machine ] ||
    tar -xf /dev/vdc -C /root || fail "vdc"
for directory in dev proc sys; do mount --move /$directory /root/$directory; done
exec switch_root /root /lib/systemd/systemd
"""


def needed_modules(root: Path, version: str) -> list[Path]:
    """Files below `root` in the order to load them, by what depmod has found."""
    directory = root / "usr/lib/modules" / version
    dependencies: dict[str, list[str]] = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        module, _, others = line.partition(":")
        dependencies[module] = others.split()
    by_name = {Path(path).name.split(".ko")[0].replace("-", "_"): path for path in dependencies}
    built_in = {
        Path(line).name.split(".ko")[0].replace("-", "_")
        for line in (directory / "modules.builtin").read_text().splitlines()
    }
    order: list[str] = []
    for name in MODULES:
        if name in built_in:
            continue
        if name not in by_name:
            raise RunnerError(f"kernel {version} has no module {name}")
        # modules.dep lists a module's needs from the nearest to the farthest.
        for path in [*reversed(dependencies[by_name[name]]), by_name[name]]:
            if path not in order:
                order.append(path)
    return [directory / path for path in order]


def entry(name: str, mode: int, data: bytes, number: int) -> bytes:
    """One file in cpio's "newc" form (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    encoded = name.encode() + b"\0"
    fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0]
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4)


def build(root: Path, version: str, destination: Path) -> None:
    # A dynamic one names its interpreter in the first page; the initramfs has none.
    if b"/ld-linux" in BUSYBOX.read_bytes()[:4096]:
        raise RunnerError(f"{BUSYBOX} is not static: install busybox-static")
    modules = needed_modules(root, version)
    files: list[tuple[str, int, bytes]] = [
        (name, 0o040755, b"") for name in ("bin", "modules", "dev", "proc", "sys")
    ]
    files.append(("bin/busybox", 0o100755, BUSYBOX.read_bytes()))
    files.append(("init", 0o100755, INIT.encode()))
    order = []
    for module in modules:
        data = module.read_bytes()
        name = module.name
        if name.endswith(".xz"):
            data, name = lzma.decompress(data), name[: -len(".xz")]
        order.append(name + "\n")
        files.append((f"modules/{name}", 0o100644, data))
    files.append(("modules/order", 0o100644, "".join(order).encode()))
    archive = b"".join(entry(name, mode, data, i + 1) for i, (name, mode, data) in enumerate(files))
    archive += entry("TRAILER!!!", 0, b"", 0)
    destination.write_bytes(gzip.compress(archive, 1))
