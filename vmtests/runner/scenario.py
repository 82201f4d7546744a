"""Runs one scenario, in namespaces of its own (see __main__.py): the script sees the machines by name and the
test driver's functions as globals."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import unittest
from collections.abc import Iterator
from pathlib import Path

from . import image, layout, network, payload, snapshot
from .broken import DIRECTORY
from .errors import ScenarioTimeout
from .log import Log
from .machine import Machine, retry

# Room for VXLAN over a raised underlay MTU.
TAP_MTU = 9000


class Subtests:
    def __init__(self, log: Log) -> None:
        self.log = log
        # Name, seconds, failed.
        self.done: list[tuple[str, float, bool]] = []
        self.current: list[str] = []

    @contextlib.contextmanager
    def subtest(self, name: str) -> Iterator[None]:
        self.log.line("subtest", name)
        self.current.append(name)
        started = time.monotonic()
        try:
            yield
        except BaseException:
            self.done.append((name, time.monotonic() - started, True))
            raise
        self.done.append((name, time.monotonic() - started, False))
        self.current.pop()


def start_all(machines: list[Machine]) -> None:
    """All at once; a failure of one is raised once all have been tried."""
    errors: list[BaseException] = []

    def start(machine: Machine) -> None:
        try:
            machine.start()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=(machine,), daemon=True) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def globals_of(machines: list[Machine], subtests: Subtests, log: Log) -> dict:
    # For `t.assertEqual` and the like.
    t = unittest.TestCase()
    t.maxDiff = None
    return {
        "__name__": "__main__",
        **{machine.name.replace("-", "_"): machine for machine in machines},
        "machines": machines,
        "start_all": lambda: start_all(machines),
        "join_all": lambda: [machine.wait_for_shutdown() for machine in machines],
        "subtest": subtests.subtest,
        "retry": retry,
        "log": log,
        "t": t,
    }


def run(settings: dict) -> int:
    kernel, results = settings["kernel"], Path(settings["results"])
    variant = settings["variant"]
    log = Log()
    subtests = Subtests(log)
    scripts = [layout.VMTESTS / f"{settings['script']}.py"]
    if settings["broken"]:
        scripts.insert(0, DIRECTORY / f"{settings['broken']}.py")
    built = image.ready()
    master = None if settings["cold"] else snapshot.ready(built, kernel)
    log.started = time.monotonic()
    network.make_bridge()
    machines = []
    for index, machine in enumerate(settings["machines"]):
        directory = results / machine
        shutil.rmtree(directory, ignore_errors=True)
        network.add_tap(f"tap{index}", TAP_MTU)
        machines.append(Machine(machine, built, kernel, f"tap{index}", master, directory, log, variant))
        containers = settings["containers"].get(machine, {})
        payload.write(machine, layout.BINARY, containers, directory / "payload.tar", variant.get("device", ""))
    failure = None
    try:
        for script in scripts:
            code = compile(script.read_text(), str(script), "exec")
            exec(code, globals_of(machines, subtests, log))
    except ScenarioTimeout:
        failure = ": ".join(filter(None, ("timed out", log.interrupted))) + where(script)
    except BaseException as error:
        failure = f"{describe(error)}{where(script)}"
    finally:
        signal.alarm(0)
    if failure is not None:
        if subtests.current:
            failure = f"{' > '.join(subtests.current)}: {failure}"
        log.line("FAILED", failure)
        with contextlib.suppress(Exception):
            show_machines(machines, log)
    for machine in machines:
        if machine.booted:
            machine.qemu.kill()
        # Nobody reads them again, and they are large.
        for file in ("state.ext4", "payload.tar", "qmp", "shell"):
            (machine.directory / file).unlink(missing_ok=True)
    verdict = {"failure": failure, "subtests": subtests.done}
    (results / "verdict.json").write_text(json.dumps(verdict))
    return 0 if failure is None else 1


def describe(error: BaseException) -> str:
    text = str(error)
    return text if type(error).__module__.startswith("runner") and text else f"{type(error).__name__}: {text}"


def where(script: Path) -> str:
    """The line of the script that was being run."""
    lines = [frame.lineno for frame in traceback.extract_tb(sys.exc_info()[2]) if frame.filename == str(script)]
    return f" ({script.name}:{lines[-1]})" if lines else ""


def show_machines(machines: list[Machine], log: Log) -> None:
    """What a reader of the report asks next: the journals go to the results, the daemon's last lines to the log."""
    for machine in machines:
        if not machine.is_up():
            log.line(machine.name, "is off; its console says last: " + machine.get_console_log()[-300:])
            continue
        with contextlib.suppress(Exception):
            journal = machine.execute("journalctl --boot --no-pager --output short-monotonic", timeout=60)[1]
            (machine.directory / "journal.log").write_text(journal)
            state = machine.execute(
                "oncache status; oncache stats; ip -br addr; ip route; nft list ruleset", timeout=60
            )[1]
            (machine.directory / "state.log").write_text(state)
            last = machine.execute("journalctl --unit oncache --lines 8 --output cat --no-pager", timeout=60)[1]
            for line in last.splitlines():
                log.line(machine.name, f"| {line}")


def main() -> int:
    """argv: the settings as JSON (`settings` of __main__.py)."""
    settings = json.loads(sys.argv[1])

    def out_of_time(_signal, _frame):
        # Once for the scenario, and once for what it does on its way out.
        signal.alarm(120)
        raise ScenarioTimeout

    def ended(_signal, _frame):
        # First process of its PID namespace: with it, all the others end.
        os._exit(143)

    signal.signal(signal.SIGALRM, out_of_time)
    signal.signal(signal.SIGTERM, ended)
    signal.alarm(settings["timeout"])
    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
