"""What a sealed machine costs: to start, to keep, to leave alone and to end; and other ways to a process of Python.

``python benchmarks/machines.py [--json]`` starts systems of 1, 100 and 500 machines that do nothing, kills and restarts
a machine again and again, and looks at what 100 idle ones take. Beside it, in the same run: a fresh interpreter that
imports trio, ``multiprocessing`` (spawn and forkserver), bubblewrap around a fresh interpreter, and a tractor actor.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script its own folder comes first, and there another file would pass for the standard library's `http`.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import importlib.metadata
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
import trio

from benchmarks import systems
from benchmarks.processes import cpu_time, descendants, end_on_signals, storage
from benchmarks.report import Result, add_options, form, machine, progress, show
from retinue.cp.operator_socket import connect_operator
from retinue.pipes import Path as PipePath
from retinue.pipes import SocketTransport, open_path

PROGRAM: Final = '''\
"""Is ready, and does nothing until it is stopped."""

from retinue.svm import Machine


async def main(vm: Machine[None]) -> None:
    await vm.ready()
    await vm.stopping.wait()
'''

# Seconds within which the listing of a system must answer, and within which idle machines are watched.
ANSWER: Final = 30.0
WATCH: Final = 10.0


@attrs.frozen
class Plan:
    """How much is measured."""

    counts: tuple[int, ...] = (1, 100, 500)
    kills: int = 200
    rounds: int = 10
    watch: float = WATCH
    tractor: str = sys.executable


QUICK: Final = Plan(counts=(1, 3), kills=3, rounds=1, watch=0.2)


def topology(count: int) -> str:
    """A system of so many machines without edges."""
    machines = [f'[machines.M{number}]\nprogram = "idle"\npause = "0s"\n' for number in range(count)]
    return '[system]\nname = "IDLE"\n\n' + "\n".join(machines)


# -- starting ----------------------------------------------------------------------------------------------------------


async def restarts(path: PipePath, kills: int) -> list[float]:
    """Kill the first machine again and again; seconds from each next start (STARTING) to READY, as the CP saw them."""
    found: list[float] = []
    begun = 0.0
    pid = (await ask(path, "ps"))["machines"][0]["pid"]
    await path.call(["follow", {"records": False, "events": True}])
    os.kill(pid, signal.SIGKILL)
    while len(found) < kills:
        with trio.fail_after(ANSWER):
            message = await path.receive()
        kind, event = message.body
        if kind != "event" or event["machine"] != "M0":
            continue
        if event["state"] == "STARTING":
            begun = event["time"]
        elif event["state"] == "READY":
            found.append(event["time"] - begun)
            pid = (await ask(path, "ps"))["machines"][0]["pid"]
            os.kill(pid, signal.SIGKILL)
    return found


async def ask(path: PipePath, verb: str) -> Any:
    """One question to the control program."""
    with trio.fail_after(ANSWER):
        return await path.call([verb, {}])


async def started(path: PipePath) -> tuple[float, dict[str, Any]]:
    """Seconds from the birth of the first machine's process to the last READY, and the listing of then."""
    listing = await ask(path, "ps")
    records = (await ask_records(path, 10_000))["records"]
    times = [record["time"] for record in records if record["fields"].get("event") == "STARTING"]
    ready = [record["time"] for record in records if record["fields"].get("event") == "READY"]
    return max(ready) - min(times), listing


async def ask_records(path: PipePath, count: int) -> Any:
    """The newest records."""
    with trio.fail_after(ANSWER):
        return await path.call(["logs", {"machine": "CP", "count": count}])


# -- the systems -------------------------------------------------------------------------------------------------------


@attrs.frozen
class Found:
    """What one system showed. Times in seconds, storage in KiB for each machine."""

    count: int
    up: float
    starts: list[float]
    private: float
    proportional: float
    cpu: float
    down: float


async def look(runtime: Path, nucleus: int, count: int, plan: Plan) -> tuple[float, list[float], float, float, float]:
    async with open_path(SocketTransport(connect_operator(runtime)), name="*CP") as path:
        up, listing = await started(path)
        pids = [each["pid"] for each in listing["machines"]]
        kept = [found for pid in pids if (found := storage(pid)) is not None]
        private = statistics.median(found.private for found in kept)
        proportional = statistics.median(found.all for found in kept)
        cpu = 0.0
        if count == 100 or count == max(plan.counts[:-1], default=count):
            names = descendants(nucleus)
            (control,) = [pid for pid, name in names.items() if name.startswith("control")]
            before = cpu_time(control), time.monotonic()
            await trio.sleep(plan.watch)
            cpu = (cpu_time(control) - before[0]) / (time.monotonic() - before[1]) * 100
        starts = await restarts(path, plan.kills) if count == 1 else []
    return up, starts, private, proportional, cpu


def measure(root: Path, count: int, plan: Plan) -> Found:
    """Start a system, look at it, end it."""
    folder, state = root / f"system-{count}", root / f"state-{count}"
    folder.mkdir()
    (folder / "idle.py").write_text(PROGRAM)
    file = folder / "idle.toml"
    file.write_text(topology(count))
    with systems.running(file, state) as nucleus:
        up, starts, private, proportional, cpu = trio.run(look, state / "run", nucleus, count, plan)
        begun = time.perf_counter()
        systems.retinue(state, "down")
        down = time.perf_counter() - begun
    return Found(count, up, starts, private, proportional, cpu, down)


# -- the peers ---------------------------------------------------------------------------------------------------------

_TRIO: Final = "import trio, sys; sys.stdout.write('!'); sys.stdout.flush()"
_TRACTOR: Final = """
import time, trio, tractor
async def main():
    taken = []
    async with tractor.open_nursery(enable_transports=["uds"]) as actors:
        for number in range(%d):
            begun = time.perf_counter()
            portal = await actors.start_actor(f"idle{number}")
            taken.append(time.perf_counter() - begun)
            await portal.cancel_actor()
    print(*taken)
if __name__ == "__main__":
    trio.run(main)
"""


def fresh_interpreter(*before: str) -> float:
    """Seconds until a new interpreter has imported trio and says so."""
    begun = time.perf_counter()
    with subprocess.Popen([*before, sys.executable, "-I", "-c", _TRIO], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        return time.perf_counter() - begun


def bubblewrap() -> float:
    """The same inside bubblewrap: all namespaces, the host's files read-only."""
    return fresh_interpreter("bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--tmpfs", "/tmp")


def by_multiprocessing(method: str) -> float:
    """Seconds until a process of multiprocessing runs its function; forkserver has trio preloaded."""
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    begun = time.perf_counter()
    process = context.Process(target=_say, args=(theirs,))
    process.start()
    ours.recv()
    taken = time.perf_counter() - begun
    process.join()
    return taken


def _say(connection: Any) -> None:
    connection.send(1)


def by_tractor(interpreter: str, rounds: int) -> list[float]:
    """Seconds until an actor is there, of each round. CalledProcessError when it cannot be had."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(_TRACTOR % rounds)
        script.flush()
        said = subprocess.run([interpreter, "-P", script.name], capture_output=True, text=True, check=True, timeout=120)
    return [float(word) for word in said.stdout.split()]


def peers(plan: Plan) -> list[Result]:
    """A row for each other way; what cannot be had says why."""
    multiprocessing.set_forkserver_preload(["trio"])
    by_multiprocessing("forkserver")  # starts its server
    ways: dict[str, Callable[[], float]] = {
        "multiprocessing, spawn": lambda: by_multiprocessing("spawn"),
        "multiprocessing, forkserver": lambda: by_multiprocessing("forkserver"),
    }
    rows = []
    if shutil.which("bwrap") is None:
        rows.append(Result("bubblewrap: start with trio, p50", None, "ms", why="not installed"))
    else:
        ways["bubblewrap"] = bubblewrap
    for name, way in ways.items():
        progress(name)
        taken = [way() * 1000 for _ in range(plan.rounds)]
        what = "start with trio" if name == "bubblewrap" else "start"
        rows.append(Result(f"{name}: {what}, p50", statistics.median(taken), "ms"))
    try:
        taken = [each * 1000 for each in by_tractor(plan.tractor, plan.rounds)]
        rows.append(Result("tractor: start of an actor, p50", statistics.median(taken), "ms"))
    except (OSError, subprocess.SubprocessError):
        rows.append(Result("tractor: start of an actor, p50", None, "ms", why="not installed for that interpreter"))
    return rows


# -- the report --------------------------------------------------------------------------------------------------------


def results(found: Sequence[Found], fresh: float) -> list[Result]:
    """The rows about machines; ``fresh`` is the start of an interpreter with trio, in seconds."""
    one, rows = found[0], []
    taken = sorted(each * 1000 for each in one.starts)
    p50, p99 = statistics.median(taken), taken[min(len(taken) - 1, len(taken) * 99 // 100)]
    rows += [
        Result("sealed machine: start to ready, p50", p50, "ms", target=8, at_most=True),
        Result("sealed machine: start to ready, p99", p99, "ms", target=40, at_most=True),
        Result("fresh interpreter with trio: start, p50", fresh * 1000, "ms"),
        Result("the same over a sealed machine", fresh * 1000 / p50, "times", target=10),
    ]
    for each in found:
        what = f"{each.count} machines" if each.count > 1 else "1 machine"
        rate = each.count / each.up
        many = each.count >= 100
        rows += [
            Result(f"{what}: from the first start to the last ready", each.up, "s"),
            Result(f"{what}: started a second", rate, "1/s", target=150 if many else None),
            Result(f"{what}: private storage of each", each.private / 1024, "MiB", target=3.5, at_most=True),
            Result(f"{what}: proportional storage of each", each.proportional / 1024, "MiB"),
            Result(f"{what}: retinue down", each.down, "s"),
        ]
        if each.count == 100:
            rows.append(Result("100 idle machines: control program", each.cpu, "% of a core", target=0.5, at_most=True))
    return rows


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--quick", action="store_true", help="only see that everything works; the figures mean nothing")
    parser.add_argument("--no-peers", action="store_true", help="measure machines alone")
    parser.add_argument("--tractor", default=sys.executable, metavar="PYTHON", help="an interpreter that has tractor")
    return parser.parse_args()


def main() -> int:
    """Measure and report."""
    chosen = options()
    end_on_signals()
    plan = attrs.evolve(QUICK if chosen.quick else Plan(), tractor=chosen.tractor)
    described = machine({name: importlib.metadata.version(name) for name in ("retinue", "trio")})
    fresh = statistics.median(fresh_interpreter() for _ in range(plan.rounds))
    found = []
    with tempfile.TemporaryDirectory(prefix="retinue-bench-") as folder:
        for count in plan.counts:
            progress(f"{count} machines")
            found.append(measure(Path(folder), count, plan))
    rows = results(found, fresh)
    if not chosen.no_peers:
        rows += peers(plan)
    show(form(described, rows), as_json=chosen.json)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
