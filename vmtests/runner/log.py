"""What a scenario does, line by line, with the seconds since its start."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from .errors import ScenarioTimeout


class Log:
    def __init__(self) -> None:
        self.started = time.monotonic()
        self.lock = threading.Lock()
        # What was being done when the time was up.
        self.interrupted: str | None = None

    def line(self, who: str, text: str) -> None:
        shown = " ".join(text.split())
        if len(shown) > 200:
            shown = shown[:197] + "..."
        with self.lock:
            print(f"{time.monotonic() - self.started:7.1f}  {who}: {shown}", flush=True)

    @contextlib.contextmanager
    def timed(self, who: str, text: str) -> Iterator[None]:
        self.line(who, text)
        started = time.monotonic()
        try:
            yield
        except ScenarioTimeout:
            self.interrupted = self.interrupted or f"{who}: {' '.join(text.split())}"
            raise
        took = time.monotonic() - started
        if took > 5:
            self.line(who, f"({took:.1f} s)")

    # The NixOS test driver's own names.

    def log(self, message: str) -> None:
        self.line("scenario", message)

    def nested(self, message: str) -> contextlib.AbstractContextManager[None]:
        return self.timed("scenario", message)
