"""The machines' root file system and kernels: Debian packages, made into files that QEMU boots.

Built once and kept by content (the recipe: this file and initramfs.py). Newer packages come in with
`--rebuild`, which sets all images aside.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import initramfs, layout
from .errors import RunnerError

# Kernel series -> the package that depends on its newest image.
KERNELS = {"6.12": "linux-image-6.12-cloud-amd64", "6.1": "linux-image-cloud-amd64"}
DEFAULT_KERNEL = "6.12"

PACKAGES = [
    "bpftool",
    "conntrack",
    "dbus",
    "ethtool",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "kmod",
    "nftables",
    "procps",
    "python3-minimal",
    "libpython3-stdlib",
    "systemd",
    "systemd-sysv",
    "tcpdump",
    "udev",
]

# The shell behind hvc0 (backdoor.py). Its errors, and those of what it runs, go to the console's log, as with the
# NixOS test driver.
BACKDOOR = """[Unit]
Description=Root shell of the test runner
DefaultDependencies=no
Requires=dev-hvc0.device
After=dev-hvc0.device
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Environment=HOME=/root LANG=C.UTF-8 USER=root
WorkingDirectory=/root
ExecStart=/usr/local/sbin/vmtest-backdoor
KillSignal=SIGHUP
Restart=always
"""
BACKDOOR_SCRIPT = """#!/bin/bash
exec </dev/hvc0 >/dev/hvc0
exec 2>/dev/ttyS0
stty -F /dev/hvc0 raw -echo
cd /root
echo 'Spawning backdoor root shell...'
# As a script: an interactive shell would echo and prompt.
exec /bin/bash --norc /dev/hvc0
"""

# What only costs time on a machine that lives for minutes.
MASKED = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-journal-flush.service",
    "systemd-pcrphase.service",
    "systemd-pcrphase-initrd.service",
    "systemd-pcrphase-sysinit.service",
    "dev-hugepages.mount",
]

# Hardware that no machine here has.
UNUSED_MODULES = ["kernel/drivers/gpu", "kernel/drivers/infiniband", "kernel/drivers/net/ethernet", "kernel/sound"]

# Room for what a machine writes; sparse.
STATE_SIZE = "512M"


@dataclass(frozen=True)
class Image:
    """Files of one build, all in one directory."""

    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root.erofs"

    @property
    def state(self) -> Path:
        return self.directory / "state.ext4"

    def kernel(self, series: str) -> Path:
        return self.directory / f"vmlinuz-{series}"

    def initramfs(self, series: str) -> Path:
        return self.directory / f"initramfs-{series}"


def run(*command: str | Path, **options) -> str:
    try:
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, **options)
    except FileNotFoundError as error:
        raise RunnerError(f"{command[0]} is not installed: run `.ci/setup vmtest`") from error
    except subprocess.CalledProcessError as error:
        tail = "\n".join((error.stdout + error.stderr).strip().splitlines()[-15:])
        raise RunnerError(f"{' '.join(map(str, command))}: status {error.returncode}\n{tail}") from error
    return done.stdout


def recipe() -> str:
    digest = hashlib.sha256()
    for module in ("image.py", "initramfs.py"):
        digest.update((Path(__file__).parent / module).read_bytes())
    digest.update(initramfs.BUSYBOX.read_bytes())
    return digest.hexdigest()[:16]


def ready() -> Image:
    """The image of this recipe, built if it is not there."""
    if not initramfs.BUSYBOX.exists():
        raise RunnerError(f"{initramfs.BUSYBOX} is not installed: run `.ci/setup vmtest`")
    directory = layout.cache() / f"image-{recipe()}"
    # Two runs at once build it once.
    with open(layout.cache() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            remove_old()
            started = time.monotonic()
            with tempfile.TemporaryDirectory(dir=layout.cache(), prefix="building-") as work:
                build(Path(work))
                finished = Path(work) / "finished"
                finished.rename(directory)
            print(f"vmtest: image built in {time.monotonic() - started:.0f} s", flush=True)
    return Image(directory)


def remove_old() -> None:
    """Images of other recipes, with their snapshots, and what an interrupted build has left."""
    for entry in layout.cache().iterdir():
        if entry.is_dir() and entry.name.startswith(("image-", "building-")):
            shutil.rmtree(entry)


def sources() -> str:
    """This machine's own Debian sources, in apt's one-line form: no mirror is named here."""
    form = "$(TYPE) $(SIGNED_BY) $(REPO_URI) $(CODENAME) $(COMPONENT)"
    lines = set()
    for line in run("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines():
        # SIGNED_BY may be empty, and is then left out.
        parts = line.split()
        if len(parts) == 4:
            _, uri, suite, component = parts
            lines.add(f"deb {uri} {suite} {component}")
        elif len(parts) == 5:
            _, key, uri, suite, component = parts
            option = f" [signed-by={key}]" if key.startswith("/") else ""
            lines.add(f"deb{option} {uri} {suite} {component}")
    debian = [line for line in lines if "/debian" in line]
    if not debian:
        raise RunnerError("apt has no package lists of Debian: run apt-get update")
    return "\n".join(sorted(debian)) + "\n"


def build(work: Path) -> None:
    finished, root = work / "finished", work / "root"
    finished.mkdir()
    # Old lists name packages that are not to be had any more; if there is no way to newer ones, the old may do.
    subprocess.run(["apt-get", "--quiet", "update"], capture_output=True)
    debs = download_kernels(work)
    bootstrap(root)
    versions = {series: unpack_kernel(deb, root) for series, deb in debs.items()}
    for series, version in versions.items():
        shutil.move(root / f"boot/vmlinuz-{version}", finished / f"vmlinuz-{series}")
        initramfs.build(root, version, finished / f"initramfs-{series}")
    for leftover in (root / "boot").iterdir():
        leftover.unlink()
    configure(root)
    run("mkfs.erofs", finished / "root.erofs", root)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1", finished / "state.ext4", STATE_SIZE)
    listing = run("dpkg-query", "--admindir", root / "var/lib/dpkg", "--show")
    kernels = "".join(f"kernel {series}\t{version}\n" for series, version in versions.items())
    (finished / "packages").write_text(listing + kernels)


def download_kernels(work: Path) -> dict[str, Path]:
    debs = {}
    for series, meta in KERNELS.items():
        directory = work / f"kernel-{series}"
        directory.mkdir()
        depends = run("apt-cache", "depends", "--important", meta)
        packages = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image" in line]
        if len(packages) != 1:
            raise RunnerError(f"apt knows no kernel {series} ({meta}): run apt-get update")
        run("apt-get", "download", "-o", "APT::Sandbox::User=root", packages[0], cwd=directory)
        debs[series] = next(directory.glob("*.deb"))
    return debs


def bootstrap(root: Path) -> None:
    run(
        "mmdebstrap",
        "--quiet",
        "--mode=root",
        "--format=directory",
        "--variant=essential",
        "--include=" + ",".join(PACKAGES),
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=Acquire::Retries "3"',
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "bookworm",
        root,
        "-",
        input=sources(),
    )


def unpack_kernel(deb: Path, root: Path) -> str:
    """The kernel's version. Its package is not installed: that would want an initramfs of its own."""
    files = deb.parent / "files"
    run("dpkg-deb", "--extract", deb, files)
    version = next((files / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")
    modules = next(path for path in (files / "lib/modules", files / "usr/lib/modules") if path.exists()) / version
    for unused in UNUSED_MODULES:
        shutil.rmtree(modules / unused, ignore_errors=True)
    target = root / "usr/lib/modules" / version
    target.parent.mkdir(exist_ok=True)
    shutil.move(modules, target)
    shutil.move(files / f"boot/vmlinuz-{version}", root / "boot" / f"vmlinuz-{version}")
    run("chroot", root, "depmod", version)
    return version


def configure(root: Path) -> None:
    system = root / "etc/systemd/system"
    for unit in MASKED:
        link(system / unit, "/dev/null")
    (system / "vmtest-backdoor.service").write_text(BACKDOOR)
    link(system / "basic.target.wants/vmtest-backdoor.service", "../vmtest-backdoor.service")
    # Else there would be a login on hvc0 as well.
    link(root / "etc/systemd/system-generators/systemd-getty-generator", "/dev/null")
    link(system / "default.target", "/lib/systemd/system/multi-user.target")
    script = root / "usr/local/sbin/vmtest-backdoor"
    script.write_text(BACKDOOR_SCRIPT)
    script.chmod(0o755)
    # The underlay's addresses come from networkd, and what waits for the network waits for it.
    units = ("systemd-networkd.service", "systemd-networkd-wait-online.service")
    run("systemctl", "--root", root, "--quiet", "enable", *units)
    # The machine's own are put over these (payload.py).
    (root / "etc/hostname").write_text("master\n")
    (root / "etc/machine-id").write_text("0" * 31 + "1\n")
    (root / "etc/fstab").write_text("")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("")
    journal = root / "etc/systemd/journald.conf.d/vmtest.conf"
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\nRateLimitBurst=0\n")
    manager = root / "etc/systemd/system.conf.d/vmtest.conf"
    manager.parent.mkdir(parents=True, exist_ok=True)
    # TCG is slow, and the machine may be busy.
    manager.write_text("[Manager]\nDefaultTimeoutStartSec=300\nDefaultDeviceTimeoutSec=300\nDefaultTimeoutStopSec=60\n")
    for junk in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / junk, ignore_errors=True)


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    os.symlink(target, path)
