"""Where the sources are, and where what is built and found out is kept."""

from __future__ import annotations

import os
from pathlib import Path

VMTESTS = Path(__file__).resolve().parent.parent
ROOT = VMTESTS.parent

# What `make build` makes, and what the scenarios leave: logs, consoles, the JUnit file.
BINARY = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "oncache"
RESULTS = ROOT / "target" / "vmtest"


def cache() -> Path:
    """Images and snapshots, by content, outside of the checkout: a fresh clone finds them."""
    given = os.environ.get("ONCACHE_VMTEST_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(given) if given else Path(base) / "oncache-vmtest"
    path.mkdir(parents=True, exist_ok=True)
    return path


def tool(name: str) -> str:
    """A program of .ci/tools, if it is there; else its bare name, to be found on the PATH."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kept = Path(os.environ.get("ONCACHE_TOOLS") or Path(base) / "oncache-tools") / "bin" / name
    return str(kept) if kept.exists() else name
