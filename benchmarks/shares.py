"""Whether machines get their shares of the processors, and no more than their caps; and what it costs to watch them.

``python benchmarks/shares.py [--json] [--seconds 10]`` starts three systems, one after the other. Machines that compute
without end are put on one processor: two with shares of 100 and 200, of which one is stopped then, so that the other is
alone; and one with ``cpu = "30%"``. The last system has 100 machines that do nothing, each with a disk whose size is
watched: what counts is the processor time of its control program.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script its own folder comes first, and there another file would pass for the standard library's `http`.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import contextlib
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Final

import attrs
import trio

from benchmarks import systems
from benchmarks.processes import NotStarted, cpu_time, end_on_signals
from benchmarks.report import Result, add_options, form, machine, progress, show
from retinue.cp.operator_socket import connect_operator
from retinue.pipes import SocketTransport, open_path

# How far a ratio may be off, how much of a processor one machine alone must get, and how far a cap may be off: percent.
RATIO_OFF: Final = 10
ALONE: Final = 95
CAP: Final = 30
CAP_OFF: Final = 3
# Percent of one core that the control program may use for idle machines.
IDLE: Final = 0.5

BUSY: Final = '''\
"""Computes without end, and stays a good citizen: it lets others of its own tasks run, a hundred times a second."""

import time

import trio

from retinue.svm import Machine


async def main(vm: Machine[None]) -> None:
    await vm.ready()
    while not vm.stopping.is_set():
        until = time.monotonic() + 0.01
        while time.monotonic() < until:
            pass
        await trio.lowlevel.checkpoint()
'''

IDLER: Final = '''\
"""Waits for its end."""

from retinue.svm import Machine


async def main(vm: Machine[None]) -> None:
    await vm.ready()
    await vm.stopping.wait()
'''


@attrs.frozen
class Running:
    """A system that runs: where, the pids of its control program and machines, and how its limits are kept."""

    runtime: Path
    cp: int
    machines: dict[str, int]
    limits: dict[str, dict[str, Any]]


@contextlib.contextmanager
def running(machines: str) -> Iterator[Running]:
    """A system with these machines, READY."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retinue-bench-")))
        programs, state = root / "shares", root / "state"
        programs.mkdir()
        (programs / "busy.py").write_text(BUSY)
        (programs / "idler.py").write_text(IDLER)
        file = programs / "shares.toml"
        file.write_text(f'[system]\nname = "SHARES"\n{machines}')
        stack.enter_context(systems.running(file, state))
        yield trio.run(_look, state / "run")


async def _look(runtime: Path) -> Running:
    async with open_path(SocketTransport(connect_operator(runtime)), name="*CP") as path:
        with trio.fail_after(10):
            status = await path.call(["status", {}])
            listing = await path.call(["ps", {}])
    limits = {limit["limit"]: limit for limit in status["limits"]}
    return Running(runtime, status["cp_pid"], {each["name"]: each["pid"] for each in listing["machines"]}, limits)


async def _stop(runtime: Path, name: str) -> None:
    async with open_path(SocketTransport(connect_operator(runtime)), name="*CP") as path:
        await path.call(["stop", {"machine": name}])


def used(pids: list[int], seconds: float) -> list[float]:
    """Percent of one processor that each process uses itself, for so many seconds from now."""
    before, begun = [cpu_time(pid) for pid in pids], time.monotonic()
    time.sleep(seconds)
    after, took = [cpu_time(pid) for pid in pids], time.monotonic() - begun
    return [100 * (end - start) / took for start, end in zip(before, after, strict=True)]


def idle_time() -> float:
    """Seconds for which the processor that machines are put on has had nothing to do (proc(5), stat)."""
    name = f"cpu{max(os.sched_getaffinity(0))} "
    [line] = [line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(name)]
    _, _, _, _, idle, waiting, *_ = line.split()
    return (int(idle) + int(waiting)) / os.sysconf("SC_CLK_TCK")


def pinned(pids: list[int]) -> list[int]:
    """The processes, from now on on one processor: the last that is ours."""
    for pid in pids:
        os.sched_setaffinity(pid, {max(os.sched_getaffinity(0))})
    return pids


def measure_shares(seconds: float) -> list[Result]:
    machines = '[machines.ONE]\nprogram = "busy"\nshare = 100\n[machines.TWO]\nprogram = "busy"\nshare = 200\n'
    with running(machines) as system:
        one, two = used(pinned([system.machines["ONE"], system.machines["TWO"]]), seconds)
        by = system.limits["share"]["mechanism"]
        trio.run(_stop, system.runtime, "TWO")
        before, begun = idle_time(), time.monotonic()
        [alone] = used([system.machines["ONE"]], seconds)
        idle = 100 * (idle_time() - before) / (time.monotonic() - begun)
    return [
        Result(f"share 100 beside 200, by {by}", one, "% of a processor"),
        Result(f"share 200 beside 100, by {by}", two, "% of a processor"),
        Result("off the ratio of 1:2", 100 * abs(two / max(one, 0.01) / 2 - 1), "%", target=RATIO_OFF, at_most=True),
        Result("alone on a processor", alone, "% of a processor"),
        # On a host with nothing else to do the two are the same.
        Result("alone, of what nobody else used", 100 * alone / max(alone + idle, 0.01), "%", target=ALONE),
    ]


def measure_cap(seconds: float) -> list[Result]:
    name, off = f"cap of {CAP} %", f"off the cap of {CAP} %"
    with running(f'[machines.ONE]\nprogram = "busy"\ncpu = "{CAP}%"\n') as system:
        limit = system.limits["cpu"]
        if not limit["enforced"]:
            why = f"not enforced on this host: {limit['why']}"
            promised = Result(off, None, "points", target=CAP_OFF, at_most=True, why=why)
            return [Result(name, None, "% of a processor", why=why), promised]
        [one] = used([system.machines["ONE"]], seconds)
    return [
        Result(name, one, "% of a processor"),
        Result(off, abs(one - CAP), "points", target=CAP_OFF, at_most=True),
    ]


def measure_watch(seconds: float, count: int) -> list[Result]:
    one = '[machines.M{}]\nprogram = "idler"\ndisks.a = {{ size = "1M" }}\n'
    with running("".join(one.format(number) for number in range(count))) as system:
        time.sleep(min(2.0, seconds))  # the first look is at everybody
        percent = used([system.cp, *system.machines.values()], seconds)
        by = system.limits["storage"]["mechanism"]
    return [
        Result(f"control program, {count} idle machines", percent[0], "% of a core", target=IDLE, at_most=True),
        Result(f"{count} idle machines together", sum(percent[1:]), "% of a core"),
        Result("storage is kept by a control group", float("cgroup" in by), "1 = yes"),
    ]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="how long each time (default 10)")
    parser.add_argument("--machines", type=int, default=100, metavar="N", help="how many idle ones (default 100)")
    chosen = parser.parse_args()
    if chosen.seconds < 0.2 or chosen.machines < 1:
        parser.error("--seconds is at least 0.2, and --machines 1")
    return chosen


def main() -> int:
    """Measure and report; the exit status is 2 when there was nothing to measure with."""
    chosen = options()
    end_on_signals()
    described = machine({name: importlib.metadata.version(name) for name in ("retinue", "trio", "msgpack")})
    rows: list[Result] = []
    try:
        for step, name in ((measure_shares, "shares"), (measure_cap, "a cap")):
            progress(name)
            rows += step(chosen.seconds)
        progress("idle machines")
        rows += measure_watch(chosen.seconds, chosen.machines)
    except NotStarted as error:
        print(error, file=sys.stderr)
        return 2
    show(form(described, rows), as_json=chosen.json)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
