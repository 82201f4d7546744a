"""What makes a machine the one it is: its name and address, oncache's binary, unit and configuration; and the tools
of the scenarios' own.

A tar on the machine's third disk, put over the root file system at its first boot (initramfs.py), or after it
was restored from a snapshot (machine.py).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import tomllib
from pathlib import Path

from . import layout
from .errors import RunnerError

# A snapshot remembers the disk's size, so it is the same for all.
SIZE = 64 << 20

# What the NixOS module generates, as files for other distributions (nixos/reference.nix). Debian 12 has systemd
# 252; its form of a unit goes before the general one.
REFERENCE = layout.ROOT / "nixos" / "reference"
TREES = {
    "systemd/system": "etc/systemd/system",
    "systemd-252/system": "etc/systemd/system",
    "systemd/network": "etc/systemd/network",
    "systemd/networkd.conf.d": "etc/systemd/networkd.conf.d",
    "modules-load.d": "etc/modules-load.d",
}
TOOLS = layout.VMTESTS / "tools"
WANTED = "etc/systemd/system/multi-user.target.wants"

# A container's unit, to be copied for others: for the machines that scenarios.json gives a container.
CONTAINER_UNIT = "oncache-container-web.service"
EXAMPLE = ("web", "10.42.1.10")


def settings(machine: str) -> dict:
    """The configuration of oncache on it, which also tells its address."""
    path = REFERENCE / "hosts" / machine / "config.toml"
    if not path.exists():
        raise RunnerError(f"{path}: there is no such machine")
    return tomllib.loads(path.read_text())


def number(machine: str) -> int:
    """Its place among all the machines there are, from 1."""
    return sorted(path.name for path in (REFERENCE / "hosts").iterdir()).index(machine) + 1


def mac(machine: str) -> str:
    """Of eth1. As the NixOS test driver gives them: of the VLAN and the machine's number."""
    return f"52:54:00:12:01:{number(machine):02x}"


def container_unit(name: str, address: str) -> str:
    text = (REFERENCE / "systemd/system" / CONTAINER_UNIT).read_text()
    for old, new in zip(EXAMPLE, (name, address)):
        if old not in text:
            raise RunnerError(f"{CONTAINER_UNIT} is not that of {' at '.join(EXAMPLE)}")
        text = text.replace(old, new)
    return text


def files(machine: str, binary: Path, containers: dict[str, str], device: str = "") -> dict[str, tuple[bytes, int]]:
    """Path -> content and mode. `containers`, name -> address, are those that come with the boot; `device` is what
    containers are connected by, if not by the default."""
    node = settings(machine)["node"]
    network = (
        f"[Match]\nName={node['underlay']}\n\n"
        f"[Network]\nAddress={node['address']}/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    )
    texts = {
        "etc/hostname": machine + "\n",
        "etc/machine-id": hashlib.md5(machine.encode()).hexdigest() + "\n",
        "etc/vmtest-machine": machine + "\n",
        "etc/systemd/network/20-underlay.network": network,
    }
    found = {path: (text.encode(), 0o644) for path, text in texts.items()}
    for source, target in TREES.items():
        for file in (REFERENCE / source).iterdir():
            if file.name != CONTAINER_UNIT:
                found[f"{target}/{file.name}"] = (file.read_bytes(), 0o644)
    for name, address in containers.items():
        unit = container_unit(name, address)
        found[f"etc/systemd/system/oncache-container-{name}.service"] = (unit.encode(), 0o644)
    config = (REFERENCE / "hosts" / machine / "config.toml").read_bytes()
    if device:
        config += f'\n[container]\ndevice = "{device}"\n'.encode()
    found["etc/oncache/config.toml"] = (config, 0o644)
    found["usr/local/sbin/oncache"] = (binary.read_bytes(), 0o755)
    for tool in TOOLS.iterdir():
        found[f"usr/local/bin/{tool.name}"] = (tool.read_bytes(), 0o755)
    return found


def write(machine: str, binary: Path, containers: dict[str, str], destination: Path, device: str = "") -> None:
    if not binary.exists():
        raise RunnerError(f"{binary} is not there: run `make build`")
    with open(destination, "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for path, (content, mode) in files(machine, binary, containers, device).items():
                info = tarfile.TarInfo(path)
                info.size, info.mode = len(content), mode
                archive.addfile(info, io.BytesIO(content))
            for unit in ("oncache", *(f"oncache-container-{name}" for name in containers)):
                info = tarfile.TarInfo(f"{WANTED}/{unit}.service")
                info.type, info.linkname = tarfile.SYMTYPE, f"../{unit}.service"
                archive.addfile(info)
        if file.tell() > SIZE:
            raise RunnerError(f"{destination}: {file.tell()} bytes; payload.SIZE is too small")
        file.truncate(SIZE)
