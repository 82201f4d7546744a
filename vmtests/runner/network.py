"""The underlay: a bridge with a tap for each machine, in the network namespace that the scenario has for itself.

The namespace has no other device, so nothing that a machine sends can leave it, and it goes with the
scenario's processes (process.py).
"""

from __future__ import annotations

import socket
import subprocess

from .errors import RunnerError

BRIDGE = "underlay"


def ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise RunnerError(f"ip {' '.join(arguments)}: {error.stderr.strip()}") from error


def make_bridge() -> None:
    # Not by /sys/class/net, which is that of the namespace that mounted /sys.
    others = sorted(name for _, name in socket.if_nameindex() if name != "lo")
    if others:
        raise RunnerError(f"not in a network namespace of its own: it has {' '.join(others)}")
    # The bridge is a cable: it must not hold back what the hosts send (no forward delay, no multicast
    # snooping), and must not let the machine's netfilter see it.
    ip("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
    ip("link", "set", BRIDGE, "addrgenmode", "none", "mtu", "9000")
    ip("link", "set", BRIDGE, "up")


def add_tap(device: str, mtu: int) -> None:
    # QEMU asks for vnet_hdr, and a persistent tap must have been made with it.
    ip("tuntap", "add", device, "mode", "tap", "vnet_hdr")
    ip("link", "set", device, "addrgenmode", "none", "mtu", str(mtu), "master", BRIDGE)
    ip("link", "set", device, "up")
