"""Whether clients of ``examples/web`` notice that machines are replaced, killed, or lose their control program.

``python benchmarks/replace.py [--json]`` loads the example with wrk and meanwhile replaces the application and HTTPD a
hundred times each; kills each of them every 2 s for a minute; and kills the control program every 5 s for a minute.
Each is compared with undisturbed runs just before and after it. ``--only NAME`` runs one of these.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script its own folder comes first, and there another file would pass for the standard library's `http`.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import contextlib
import functools
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio

from benchmarks import disturbance, web, wrk
from benchmarks.disturbance import Disturbed, under_load
from benchmarks.processes import end_on_signals
from benchmarks.report import Result, add_options, conclude, form, machine, progress

REPLACES: Final = 100
REPLACE_EVERY: Final = 0.25
KILL_EVERY: Final = 2.0
# Kills of a machine in a system that has nothing else to do.
QUIET_KILLS: Final = 30
CP_EVERY: Final = 5.0
MINUTE: Final = 60.0
# Seconds of load without a disturbance, before and after each.
QUIET: Final = 5.0
# The application alone answers more than that on any machine of today.
LEAST_RATE: Final = 1000.0


@attrs.frozen
class Course:
    """How long the parts are: shorter ones show that it works, and nothing else."""

    replaces: int = REPLACES
    seconds: float = MINUTE
    quiet: float = QUIET


async def replaced(system: web.Web, runtime: Path, course: Course, name: str) -> list[Result]:
    """Replace a machine over and over while it is at work."""
    disturb = disturbance.replacing(runtime, name)
    times: list[float] = []
    errors = 0
    rates = []
    while len(times) < course.replaces:
        # In portions: wrk is told how long it is to run, and nobody knows how long the replacements take.
        found = await under_load(system, min(course.seconds, 20.0), disturb, REPLACE_EVERY)
        times += found.recoveries
        errors += found.summary.errors
        rates.append(found.summary.rate)
        progress(f"{name}: replaced {len(times)} times, {errors} failed requests")
    title = f"{name} replaced {len(times)} times"
    return [
        Result(f"{title}: failed requests", errors, "requests", 0, at_most=True),
        Result(f"{title}: load", statistics.fmean(rates), "1/s", LEAST_RATE),
        Result(f"{title}: p50 of a replacement", statistics.median(times) * 1000, "ms"),
    ]


async def killed(system: web.Web, runtime: Path, course: Course, name: str) -> list[Result]:
    """Kill a machine every 2 s."""
    before, found, after = await _between(system, course, disturbance.killing(runtime, name), KILL_EVERY)
    title = f"{name} killed {found.times} times"
    return [
        Result(f"{title}: requests without an answer", found.summary.socket_errors, "requests", 0, at_most=True),
        Result(f"{title}: answers of 400 and above", found.summary.status, "answers"),
        Result(f"{title}: of the undisturbed throughput", _share(before, found, after), "%", 90),
        Result(f"{title}: load", found.summary.rate, "1/s", LEAST_RATE),
        Result(f"{title}: detected to ready, p50", statistics.median(found.recoveries) * 1000, "ms"),
        Result(f"{title}: longest request", found.summary.longest, "ms"),
    ]


async def started_again(system: web.Web, runtime: Path, course: Course) -> list[Result]:
    """Kill machines of a system that has nothing else to do."""
    results = []
    for name in ("COUNT", "SHOP", "HTTPD"):
        disturb = disturbance.killing(runtime, name)
        times = [found for _ in range(QUIET_KILLS) if (found := await disturb()) is not None]
        title = f"{name} killed {len(times)} times without load: detected to ready, p50"
        results.append(Result(title, statistics.median(times) * 1000, "ms", 30, at_most=True))
    return results


async def control_program_killed(system: web.Web, runtime: Path, course: Course) -> list[Result]:
    """Kill the control program every 5 s."""
    generations = await disturbance.generations(runtime)
    before, found, after = await _between(system, course, disturbance.killing_cp(runtime), CP_EVERY)
    restarted = [
        name for name, number in (await disturbance.generations(runtime)).items() if generations[name] != number
    ]
    title = f"control program killed {found.times} times"
    slowest = sorted(found.recoveries)[max(0, round(len(found.recoveries) * 0.95) - 1)]
    return [
        Result(f"{title}: failed requests", found.summary.errors, "requests", 0, at_most=True),
        Result(f"{title}: machines restarted", len(restarted), "machines", 0, at_most=True),
        Result(f"{title}: serves again, p50", statistics.median(found.recoveries) * 1000, "ms"),
        Result(f"{title}: serves again, p95", slowest * 1000, "ms", 250, at_most=True),
        Result(f"{title}: of the undisturbed throughput", _share(before, found, after), "%"),
        Result(f"{title}: load", found.summary.rate, "1/s", LEAST_RATE),
    ]


async def _between(
    system: web.Web, course: Course, disturb: disturbance.Disturb, every: float
) -> tuple[Disturbed, Disturbed, Disturbed]:
    before = await under_load(system, course.quiet, None, 0)
    found = await under_load(system, course.seconds, disturb, every)
    after = await under_load(system, course.quiet, None, 0)
    return before, found, after


def _share(before: Disturbed, found: Disturbed, after: Disturbed) -> float:
    return 100 * found.summary.rate / statistics.fmean((before.summary.rate, after.summary.rate))


Part = Callable[[web.Web, Path, Course], Awaitable[list[Result]]]
PARTS: Final[dict[str, Part]] = {
    "start-again": started_again,
    "replace-app": functools.partial(replaced, name="SHOP"),
    "replace-httpd": functools.partial(replaced, name="HTTPD"),
    "kill-app": functools.partial(killed, name="SHOP"),
    "kill-httpd": functools.partial(killed, name="HTTPD"),
    "kill-cp": control_program_killed,
}


def measure(names: list[str], course: Course) -> list[Result]:
    """Run the parts, one after the other, on one system."""
    results: list[Result] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retinue-bench-"))) / "web"
        system = stack.enter_context(web.running(folder, access_log=False))
        trio.run(under_load, system, 1.0, None, 0.0)
        for name in names:
            progress(f"{name}: begins")
            results += trio.run(PARTS[name], system, folder / "state" / "run", course)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Measure and report; the exit status is 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--only", choices=list(PARTS), action="append", help="one part; may be given again")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    given = parser.parse_args(arguments)
    if wrk.installed() is None:
        print("wrk is not installed: apt install wrk", file=sys.stderr)
        return 2
    course = Course(replaces=3, seconds=6.0, quiet=1.0) if given.quick else Course()
    report = form(machine({}), measure(given.only or list(PARTS), course))
    return conclude(report, as_json=given.json)


if __name__ == "__main__":
    end_on_signals()
    sys.exit(main())
