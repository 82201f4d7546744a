"""`make vmtest`: python3 -m runner [SCENARIO...], in vmtests/.

Each scenario runs in a process of its own with its own network and PID namespaces: its machines cannot reach
anything else, and none of them outlives it, however it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import image, layout, report, snapshot
from .errors import RunnerError

# Where scenarios.json says nothing.
TIMEOUT = 600


def scenarios() -> dict[str, dict]:
    return json.loads((layout.VMTESTS / "scenarios.json").read_text())


def boots(scenario: dict) -> bool:
    """Whether its machines are not to be restored: also those that are made otherwise than the snapshot's."""
    return scenario.get("cold", False) or scenario.get("counted", False) or "processors" in scenario


def command(name: str, scenario: dict, cold: bool, results: Path) -> list[str]:
    return [
        # The scenario ends with this process, and everything in its PID namespace with the scenario.
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
        *(sys.executable, "-m", "runner.scenario", scenario.get("script", name), ",".join(scenario["machines"])),
        scenario.get("kernel", image.DEFAULT_KERNEL),
        "1" if cold or boots(scenario) else "0",
        str(scenario.get("timeout", TIMEOUT)),
        str(results),
        json.dumps({key: scenario[key] for key in ("device", "counted", "processors") if key in scenario}),
    ]


def run(name: str, scenario: dict, cold: bool) -> report.Verdict:
    results = layout.RESULTS / name
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    started = time.monotonic()
    output = ""
    print(f"\n-- {name}", flush=True)
    process = subprocess.Popen(
        command(name, scenario, cold, results),
        cwd=layout.VMTESTS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        for line in process.stdout:
            output += line
            print(line, end="", flush=True)
        status = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    seconds = time.monotonic() - started
    (results / "scenario.log").write_text(output)
    try:
        verdict = json.loads((results / "verdict.json").read_text())
    except FileNotFoundError:
        last = output.strip().splitlines()[-1:] or ["without a word"]
        verdict = {"failure": f"the runner ended with status {status}: {last[0]}", "subtests": []}
    if status != 0 and verdict["failure"] is None:
        verdict["failure"] = f"the runner ended with status {status}"
    print(f"-- {name}: {'FAILED' if verdict['failure'] else 'ok'} in {seconds:.1f} s", flush=True)
    return report.Verdict(name, seconds, verdict["failure"], [tuple(s) for s in verdict["subtests"]], output)


def main() -> int:
    known = scenarios()
    parser = argparse.ArgumentParser(prog="make vmtest", description="Runs the scenarios on virtual machines.")
    parser.add_argument("scenario", nargs="*", help="names of scenarios; all of them if none is given")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--ci", action="store_true", help="only those that every change must pass")
    parser.add_argument("--cold", action="store_true", help="boot every machine instead of restoring a snapshot")
    parser.add_argument("--rebuild", action="store_true", help="build the images anew, with the newest packages")
    options = parser.parse_args()
    if options.list:
        for name, scenario in known.items():
            print(f"{name:24} {', '.join(scenario['machines'])}")
        return 0
    unknown = set(options.scenario) - set(known)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    names = options.scenario or [name for name in known if not options.ci or known[name].get("ci", False)]
    if os.geteuid() != 0:
        print("vmtest: makes network namespaces: run as root", file=sys.stderr)
        return 1
    try:
        if options.rebuild:
            image.remove_old()
        prepare(names, known, options.cold)
    except RunnerError as error:
        print(f"vmtest: {error}", file=sys.stderr, flush=True)
        verdicts = [report.Verdict(name, 0.0, f"not run: {error}") for name in names]
    else:
        verdicts = [run(name, known[name], options.cold) for name in names]
    layout.RESULTS.mkdir(parents=True, exist_ok=True)
    report.junit(verdicts, layout.RESULTS / "junit.xml")
    print()
    for verdict in verdicts:
        print(f"{verdict.scenario:24} {verdict.seconds:6.1f} s  {' '.join((verdict.failure or 'ok').split())}")
    print(f"logs, consoles and junit.xml: {layout.RESULTS}")
    print(report.summary(verdicts), flush=True)
    return 1 if any(verdict.failure is not None for verdict in verdicts) else 0


def prepare(names: list[str], known: dict[str, dict], cold: bool) -> None:
    if not layout.BINARY.exists():
        raise RunnerError(f"{layout.BINARY} is not there: run `make build`")
    built = image.ready()
    kernels = {known[name].get("kernel", image.DEFAULT_KERNEL) for name in names if not boots(known[name])}
    for kernel in sorted(kernels) if not cold else []:
        snapshot.ready(built, kernel)


if __name__ == "__main__":
    sys.exit(main())
