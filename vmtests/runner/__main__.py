"""`make vmtest`: python3 -m runner [SCENARIO...], in vmtests/.

Each scenario runs in a process of its own with its own network and PID namespaces: its machines cannot reach
anything else, and none of them outlives it, however it ends.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import broken, image, layout, report, snapshot
from .errors import RunnerError

# Where scenarios.json says nothing.
TIMEOUT = 600

# A scenario waits more than it computes, and has a third of a gigabyte to a whole one.
JOBS = min(os.cpu_count() or 1, 4)


def scenarios() -> dict[str, dict]:
    return json.loads((layout.VMTESTS / "scenarios.json").read_text())


def boots(scenario: dict) -> bool:
    """Whether its machines are not to be restored: also those that are made otherwise than the snapshot's."""
    return scenario.get("cold", False) or scenario.get("counted", False) or "processors" in scenario


def is_long(scenario: dict) -> bool:
    """Whether it shows what another one shows, on another kind of device, or takes very long: not for each change."""
    return scenario.get("long", False)


def settings(name: str, scenario: dict, cold: bool, results: Path) -> dict:
    """All that runner.scenario is to know."""
    return {
        "script": scenario.get("script", name),
        "broken": scenario.get("broken"),
        "machines": scenario["machines"],
        "containers": scenario.get("containers", {}),
        "kernel": scenario.get("kernel", image.DEFAULT_KERNEL),
        "cold": cold or boots(scenario),
        "variant": {key: scenario[key] for key in ("device", "counted", "processors") if key in scenario},
        "timeout": scenario.get("timeout", TIMEOUT),
        "results": str(results),
    }


def command(settings: dict) -> list[str]:
    return [
        # The scenario ends with this process, and everything in its PID namespace with the scenario.
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
        *(sys.executable, "-m", "runner.scenario", json.dumps(settings)),
    ]


def run(name: str, scenario: dict, cold: bool, live: bool) -> report.Verdict:
    """`live`: each line as it comes; else, because others run at the same time, all at the end."""
    results = layout.RESULTS / name
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    started = time.monotonic()
    output = ""
    heading = f"\n-- {name}" + (f": {scenario['script']}, which must fail" if "says" in scenario else "")
    if live:
        print(heading, flush=True)
    process = subprocess.Popen(
        command(settings(name, scenario, cold, results)),
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
            if live:
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
    subtests = [tuple(subtest) for subtest in verdict["subtests"]]
    judged = report.Verdict(name, seconds, verdict["failure"], subtests, output)
    if "says" in scenario:
        judged = broken.judge(judged, scenario["says"])
    ending = f"-- {name}: {'FAILED' if judged.failure else 'ok'} in {seconds:.1f} s"
    print(ending if live else f"{heading}\n{output}{ending}", flush=True)
    return judged


def run_all(scenarios: dict[str, dict], cold: bool, jobs: int) -> list[report.Verdict]:
    """The verdicts, in the order of the scenarios."""
    live = jobs == 1 or len(scenarios) == 1
    # A process dies with the thread that started it (prctl(2), PR_SET_PDEATHSIG): these stay until all is done.
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(lambda item: run(*item, cold, live), scenarios.items()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main() -> int:
    known = scenarios()
    known |= broken.scenarios(known)
    parser = argparse.ArgumentParser(prog="make vmtest", description="Runs the scenarios on virtual machines.")
    parser.add_argument("scenario", nargs="*", help="names of scenarios; all of them if none is given")
    parser.add_argument("--each", action="store_true", help="only those that are run for each change (`make test`)")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--cold", action="store_true", help="boot every machine instead of restoring a snapshot")
    parser.add_argument("--broken", choices=broken.names(), help="put that of broken/ in the scenarios' way")
    parser.add_argument(
        "--jobs", type=int, default=JOBS, metavar="N", help=f"run N scenarios at a time ({JOBS} on this machine)"
    )
    parser.add_argument("--prepare", action="store_true", help="run nothing, only make what images and snapshots are missing")
    parser.add_argument("--rebuild", action="store_true", help="build the images anew, with the newest packages")
    options = parser.parse_args()
    if options.list:
        for name, scenario in known.items():
            fails = f"; {scenario['script']}, which must fail" if "says" in scenario else ""
            print(f"{name:24} {', '.join(scenario['machines'])}{fails}")
        return 0
    unknown = set(options.scenario) - set(known)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    names = options.scenario or [name for name in known if not (options.each and is_long(known[name]))]
    if options.broken:
        known = {name: {**scenario, "broken": options.broken} for name, scenario in known.items() if "says" not in scenario}
        names = [name for name in names if name in known]
    if os.geteuid() != 0:
        print("vmtest: makes network namespaces: run as root", file=sys.stderr)
        return 1
    try:
        if options.rebuild:
            image.remove_old()
        # Before a minute is spent on images.
        if not options.prepare and not layout.BINARY.exists():
            raise RunnerError(f"{layout.BINARY} is not there: run `make build`")
        prepare(names, known, options.cold)
        if options.prepare:
            return 0
    except RunnerError as error:
        print(f"vmtest: {error}", file=sys.stderr, flush=True)
        if options.prepare:
            return 1
        verdicts = [report.Verdict(name, 0.0, f"not run: {error}") for name in names]
    else:
        verdicts = run_all({name: known[name] for name in names}, options.cold, options.jobs)
    layout.RESULTS.mkdir(parents=True, exist_ok=True)
    report.junit(verdicts, layout.RESULTS / "junit.xml")
    print()
    for verdict in verdicts:
        print(f"{verdict.scenario:24} {verdict.seconds:6.1f} s  {' '.join((verdict.failure or 'ok').split())}")
    print(f"logs, consoles and junit.xml: {layout.RESULTS}")
    print(report.summary(verdicts), flush=True)
    return 1 if any(verdict.failure is not None for verdict in verdicts) else 0


def prepare(names: list[str], known: dict[str, dict], cold: bool) -> None:
    """Images and snapshots, which hold nothing of oncache: they may be made while it is built."""
    built = image.ready()
    kernels = {known[name].get("kernel", image.DEFAULT_KERNEL) for name in names if not boots(known[name])}
    for kernel in sorted(kernels) if not cold else []:
        snapshot.ready(built, kernel)


if __name__ == "__main__":
    sys.exit(main())
