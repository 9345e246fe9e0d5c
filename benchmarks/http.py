"""Requests per second and latency of ``examples/web``, beside the same application under other servers.

``python benchmarks/http.py [--json]`` compares, ``python benchmarks/http.py --soak 60`` looks for growth of memory.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script its own folder comes first, and there this file would pass for the standard library's `http`.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from benchmarks import peers, web, wrk
from benchmarks.processes import Storage, end_on_signals
from benchmarks.report import Result, add_options, form, machine, median, progress, show

WARM_UP: Final = 1.0
# Into a soak: by then every connection is there, and what is loaded on first use has been.
SETTLED: Final = 10.0
SHORTEST_SOAK: Final = 30


@attrs.frozen
class Subject:
    """Something to be loaded: its ``url``, and the CPU seconds used so far by each process that has to do with it."""

    name: str
    url: str
    cpu: Callable[[], dict[str, float]]


@attrs.frozen
class Round:
    """One run against one subject, and the CPU seconds that its processes used in the meantime."""

    summary: wrk.Summary
    cpu: dict[str, float]


def measure(subject: Subject, seconds: float) -> Round:
    """Load the subject once."""
    before = subject.cpu()
    summary = wrk.run(subject.url, seconds)
    after = subject.cpu()
    return Round(summary, {name: after[name] - before.get(name, 0.0) for name in after})


def figures(name: str, rounds: list[Round]) -> list[Result]:
    """What several rounds against one subject say."""
    results = [
        median(f"{name}: requests", [each.summary.rate for each in rounds], "1/s"),
        median(f"{name}: p50", [each.summary.p50 for each in rounds], "ms"),
        median(f"{name}: p99", [each.summary.p99 for each in rounds], "ms"),
        Result(f"{name}: errors", sum(each.summary.errors for each in rounds), "errors"),
    ]
    for process in rounds[0].cpu:
        costs = [each.cpu[process] / max(1, each.summary.requests) * 1e6 for each in rounds]
        # A tick of the clock that CPU time is counted by, spread over a round, is below this.
        if max(costs) >= 5:
            results.append(median(f"{name}: CPU, {process}", costs, "µs/request"))
    return results


def missing(name: str, why: str) -> list[Result]:
    """What stands in the place of the figures of a peer that is not here."""
    return [Result(f"{name}: requests", None, "1/s", why=why)]


# -- comparison ----------------------------------------------------------------------------------------------------

_PEERS: Final[dict[str, Callable[[Path], contextlib.AbstractContextManager[peers.Peer]]]] = {
    "uvicorn": peers.uvicorn,
    "uvicorn (asyncio, h11)": lambda folder: peers.uvicorn(folder, "--loop", "asyncio", "--http", "h11"),
    "hypercorn (trio)": peers.hypercorn,
    "nginx + uvicorn": peers.nginx,
}


def subjects_of(system: web.Web, suffix: str) -> list[Subject]:
    """The two routes of a running example."""
    base = f"http://127.0.0.1:{system.port}"
    return [
        Subject(f"plain route{suffix}", base + web.PLAIN, system.cpu),
        Subject(f"ASGI route{suffix}", base + web.ASGI, system.cpu),
    ]


def compare(seconds: float, rounds: int) -> Iterator[Result]:
    """Everything up at once and loaded in turn, round after round: what disturbs one disturbs the others as well.

    Only the one that is loaded has anything to do.
    """
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retinue-bench-")))
        logged = stack.enter_context(web.running(root / "web", access_log=True))
        unlogged = stack.enter_context(web.running(root / "web-without-log", access_log=False))
        subjects = [*subjects_of(logged, ""), *subjects_of(unlogged, ", no access log")]
        page = web.get(logged.port, web.ASGI)
        absent: dict[str, str] = {}
        for number, (name, start) in enumerate(_PEERS.items()):
            folder = root / f"peer-{number}"
            web.copy_example(folder, 0, access_log=False)
            try:
                peer = stack.enter_context(start(folder))
            except peers.NotInstalled as exc:
                absent[name] = str(exc)
                progress(f"{name}: skipped, {exc}")
                continue
            if web.get(peer.port, web.ASGI) != page:
                raise RuntimeError(f"{name} answers something else than HTTPD: the figures would not compare")
            subjects.append(Subject(name, f"http://127.0.0.1:{peer.port}{web.ASGI}", peer.cpu))
        for subject in subjects:
            wrk.run(subject.url, WARM_UP)
        before = logged.storage()
        found: dict[str, list[Round]] = {subject.name: [] for subject in subjects}
        for number in range(rounds):
            # In another order each time: nobody always comes after the same neighbour.
            for subject in subjects[number % len(subjects) :] + subjects[: number % len(subjects)]:
                measured = measure(subject, seconds)
                found[subject.name].append(measured)
                progress(f"round {number + 1}: {subject.name}: {measured.summary.rate:.0f} requests/s")
        after = logged.storage()
    for name, measurements in found.items():
        yield from figures(name, measurements)
    for name, why in absent.items():
        yield from missing(name, why)
    for name in after:
        yield growth(f"growth of {name} since the warm-up", before[name], after[name])


# -- soak ----------------------------------------------------------------------------------------------------------


def growth(name: str, earlier: Storage | None, later: Storage | None) -> Result:
    """What a process has written and keeps, later against earlier."""
    if earlier is None or later is None:
        return Result(name, None, "KiB", why="gone, or not ours to look at")
    return Result(name, later.anonymous - earlier.anonymous, "KiB")


def size(name: str, storage: Storage | None) -> Result:
    """What a process has written and keeps."""
    if storage is None:
        return Result(name, None, "KiB", why="gone, or not ours to look at")
    return Result(name, storage.anonymous, "KiB")


def soak(seconds: int) -> Iterator[Result]:
    """The plain route under load for so long, and what every process keeps meanwhile."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retinue-bench-")))
        system = stack.enter_context(web.running(root / "web", access_log=True))
        disks = system.disk_use()
        # The last look is while the load is still there: what an idle system gives back is not growth.
        looks = {f"after {SETTLED:g} s": SETTLED, "at half time": seconds / 2, "at the end": seconds - 0.5}
        kept = {"at the start": system.storage()}
        begun = time.monotonic()
        with wrk.started(f"http://127.0.0.1:{system.port}{web.PLAIN}", seconds) as process:
            for when, look in looks.items():
                time.sleep(max(0.0, begun + look - time.monotonic()))
                kept[when] = system.storage()
            summary = wrk.finish(process, 30)
        disks = system.disk_use() - disks
    yield Result("soak: requests", summary.rate, "1/s")
    yield Result("soak: p50", summary.p50, "ms")
    yield Result("soak: p99", summary.p99, "ms")
    yield Result("soak: socket errors", summary.socket_errors, "errors")
    yield Result("soak: answers of 400 and above", summary.status, "errors")
    yield Result("soak: written to the disks", disks, "KiB")
    for name in system.processes:
        for when, storage in kept.items():
            yield size(f"soak: {name} {when}", storage[name])
        *_, settled, half, end = (storage[name] for storage in kept.values())
        yield growth(f"soak: growth of {name} from {SETTLED:g} s on", settled, end)
        yield growth(f"soak: growth of {name} in the second half", half, end)
    whole = [each.all for each in kept["at the end"].values() if each is not None]
    yield Result("soak: everything we may look at, at the end, with pages of files", sum(whole), "KiB")


# -- main ----------------------------------------------------------------------------------------------------------


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--duration", type=float, default=5.0, metavar="S", help="seconds of each run (default 5)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each, of which the median counts")
    parser.add_argument("--soak", type=int, metavar="S", help="load the plain route alone for S seconds")
    chosen = parser.parse_args()
    if chosen.duration < 1 or chosen.rounds < 1:
        parser.error("--duration and --rounds are at least 1")
    if chosen.soak is not None and chosen.soak < SHORTEST_SOAK:
        parser.error(f"--soak is at least {SHORTEST_SOAK}")
    return chosen


def main() -> int:
    """Measure and report; the exit status is 1 when any request went wrong, 2 when nothing could be measured."""
    chosen = options()
    if wrk.installed() is None:
        print("benchmarks/http.py needs wrk (on Debian: apt install wrk)", file=sys.stderr)
        return 2
    end_on_signals()
    described = machine(peers.software())
    results = list(soak(chosen.soak) if chosen.soak is not None else compare(chosen.duration, chosen.rounds))
    show(form(described, results), as_json=chosen.json)
    wrong = [result for result in results if result.unit == "errors" and result.value]
    for result in wrong:
        print(f"FAILED: {result.name}: {result.value:g}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
