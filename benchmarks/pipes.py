"""What a message over a path costs, beside the bare socket under it and other ways between two processes.

``python benchmarks/pipes.py [--json]``; ``--quick`` only sees that everything works.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script its own folder comes first, and there this file would pass for the standard library's `pipes`.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import contextlib
import importlib.metadata
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs

from benchmarks.pipes_pair import ExperimentFailed, Pair, allow_descriptors
from benchmarks.processes import end_on_signals
from benchmarks.report import Result, add_options, form, machine, median, progress, show

Found = dict[str, Any]

SMALL: Final = 64
CHUNK: Final = 1 << 16
MIB: Final = 1 << 20
OUTSTANDING: Final = (32, 256)
# Of a second, for each experiment with a path; the peers, whose figures are only a comparison, get less.
SECONDS: Final = 0.2
PEER_SECONDS: Final = 0.15
ROUNDS: Final = 5
TRACTOR_ROUNDS: Final = 2  # it starts a process each time
ENDS: Final = 2000
MEMORY_ROUNDS: Final = 2

ENDS_MODULE: Final = "benchmarks.pipes_ends"
PEERS_MODULE: Final = "benchmarks.peers_pipes"


@attrs.frozen
class Figure:
    """One row: its name, its unit, and how it follows from what an experiment found.

    ``target`` counts where both processes may use all cores, and with ``everywhere`` also on one core.
    """

    name: str
    unit: str
    of: Callable[[Found], float]
    target: float | None = None
    at_most: bool = False
    everywhere: bool = False

    def result(self, found: Sequence[Found], suffix: str, alone: bool) -> Result:
        """The median of several rounds."""
        measured = median(self.name + suffix, [self.of(each) for each in found], self.unit)
        if alone and not self.everywhere:
            return measured
        return attrs.evolve(measured, target=self.target, at_most=self.at_most)

    def missing(self, suffix: str, alone: bool, why: str) -> Result:
        """The row without a value."""
        target = self.target if self.everywhere or not alone else None
        return Result(self.name + suffix, None, self.unit, target=target, at_most=self.at_most, why=why)


def field(*names: str, factor: float = 1.0) -> Callable[[Found], float]:
    """What an experiment found under the name, or under the names one in the other."""

    def get(found: Found) -> float:
        value: Any = found
        for name in names:
            value = value[name]
        return float(value) * factor

    return get


@attrs.frozen
class Experiment:
    """Something that a pair of processes measures: two functions of a module, and the rows that come of them."""

    module: str
    name: str
    settings: Mapping[str, Any]
    figures: Sequence[Figure]
    family: str = ""  # a pair of processes does the experiments of one family
    rounds: int = 1000  # what takes long takes part in so many only

    @property
    def title(self) -> str:
        """What to call it when it fails."""
        return self.figures[0].name

    sockets: int = 1
    kind: socket.SocketKind = socket.SOCK_SEQPACKET


def of_paths(seconds: float) -> list[Experiment]:
    """Everything that is measured of a path."""
    times = {"seconds": seconds, "warm": seconds / 4}
    trips = Experiment(
        ENDS_MODULE,
        "round trips",
        {**times, "size": SMALL, "limit": 64},
        [
            Figure("bare trio, 64 B: p50", "µs", field("floor", "p50")),
            Figure("bare trio, 64 B: p99", "µs", field("floor", "p99")),
            Figure("bare trio, 64 B: mean", "µs", field("floor", "mean")),
            Figure("path, call of 64 B: p50", "µs", field("path", "p50")),
            Figure("path, call of 64 B: p99", "µs", field("path", "p99")),
            Figure("path, call of 64 B: mean", "µs", field("path", "mean")),
            Figure(
                "path, call: p50 over bare trio",
                "x",
                lambda found: float(found["path"]["p50"] / found["floor"]["p50"]),
                target=1.5,
                at_most=True,
                everywhere=True,
            ),
            Figure("path, calls, 1 at a time", "1/s", lambda found: 1e6 / float(found["path"]["mean"])),
        ],
        sockets=2,
    )
    calls = [
        Experiment(
            ENDS_MODULE,
            "calls",
            {**times, "size": SMALL, "limit": count, "outstanding": count},
            [
                Figure(
                    f"path, calls, {count} at a time",
                    "1/s",
                    field("rate"),
                    target=100_000 if count == max(OUTSTANDING) else None,
                )
            ],
        )
        for count in OUTSTANDING
    ]
    one_way = [
        Experiment(
            ENDS_MODULE,
            "one way",
            {**times, "size": SMALL, "limit": 1024},
            [Figure("path, one way, 64 B", "1/s", field("rate"), target=400_000)],
        ),
        Experiment(
            ENDS_MODULE,
            "one way",
            {**times, "size": CHUNK, "limit": 64},
            [Figure("path, one way, 64 KiB", "GB/s", field("rate", factor=CHUNK / 1e9), target=2.5)],
        ),
    ]
    return [trips, *calls, *one_way, *(bulk(times, count) for count in (1, 16)), drafts(times, 16)]


def bulk(times: Mapping[str, float], count: int) -> Experiment:
    """Messages of so many MiB, beside plain copies of as much.

    The plain copy, of which the target speaks, is the one into memory that is there already: nothing but the copying,
    the fastest that one core can do. A copy into fresh bytes is what a receiver gets as well, but what it costs depends
    on whether the allocator happens to have the memory at hand, and may be many times slower when the kernel has to
    give pages: a promise measured against that could be kept by a slow allocator. Its rate stands beside.
    """
    size = count * MIB
    name = f"{count} MiB"
    gigabytes = size / 1e9
    return Experiment(
        ENDS_MODULE,
        "bulk",
        {**times, "size": size, "limit": 8},
        [
            Figure(f"plain copy, {name}", "GB/s", field("into", factor=gigabytes)),
            Figure(f"plain copy, {name}, fresh bytes", "GB/s", field("fresh", factor=gigabytes)),
            Figure(f"path, one way, {name}", "GB/s", field("rate", factor=gigabytes)),
            Figure(
                f"path, {name}, over plain copy",
                "x",
                lambda found: float(found["rate"] / found["into"]),
                target=0.7,
            ),
            Figure(
                f"path, {name}, over copy to fresh bytes",
                "x",
                lambda found: float(found["rate"] / found["fresh"]),
            ),
        ],
    )


def drafts(times: Mapping[str, float], count: int) -> Experiment:
    """The same with bodies that the sender makes in place (``Path.draft``), so that only the receiver copies.

    Of each it writes 8 bytes, a number that the receiver looks at; the rest is what was in that memory. So what is
    measured is to pass a body that is there, as the plain copy beside it copies what is there.
    """
    size = count * MIB
    name = f"{count} MiB drafts"
    return Experiment(
        ENDS_MODULE,
        "drafts",
        {**times, "size": size, "limit": 8},
        [
            Figure(f"path, one way, {name}", "GB/s", field("rate", factor=size / 1e9)),
            Figure(
                f"path, {name}, over plain copy", "x", lambda found: float(found["rate"] / found["into"]), target=0.7
            ),
        ],
    )


# -- peers -----------------------------------------------------------------------------------------------------------


def of_peers(seconds: float, folder: Path) -> list[Experiment]:
    """The same of other ways; gRPC and tractor, which take milliseconds for what others do in microseconds, longer."""
    small = {"seconds": seconds, "warm": seconds / 3, "size": SMALL, "address": str(folder / "socket")}
    found: list[Experiment] = []
    for family, name, kind in (
        ("pipe", "multiprocessing.Pipe", socket.SOCK_STREAM),
        ("zmq", "ZeroMQ (ipc)", socket.SOCK_SEQPACKET),
    ):
        trips = [Figure(f"{name}, round trip: {figure}", "µs", field(figure)) for figure in ("p50", "p99")]
        found += [
            Experiment(PEERS_MODULE, f"{family}: round trips", small, trips, family, kind=kind),
            Experiment(
                PEERS_MODULE,
                f"{family}: one way",
                small,
                [Figure(f"{name}, one way", "1/s", field("rate"))],
                family,
                kind=kind,
            ),
        ]
    for family, name in (("grpc", "grpc.aio"), ("tractor", "tractor")):
        for count in (1, *OUTSTANDING):
            rows = [Figure(f"{name}, calls, {count} at a time", "1/s", field("rate"))]
            if count == 1:
                rows += [Figure(f"{name}, call of 64 B: {figure}", "µs", field(figure)) for figure in ("p50", "p99")]
            elif family == "tractor" and count > OUTSTANDING[0]:
                continue  # no faster, but each round would take most of a second
            settings = {**small, "seconds": 2 * seconds, "outstanding": count}
            rounds = TRACTOR_ROUNDS if family == "tractor" else 1000
            found.append(Experiment(PEERS_MODULE, f"{family}: calls", settings, rows, family, rounds))
    return found


# What a family needs to be installed, by the name that it is imported by.
_NEEDS: Final = {"zmq": "zmq", "grpc": "grpc", "tractor": "tractor"}


def _absent(module: str, interpreter: str) -> str | None:
    """Why a peer cannot be measured; None when it can."""
    code = f"import importlib.util as u; raise SystemExit(0 if u.find_spec({module!r}) else 3)"
    try:
        done = subprocess.run([interpreter, "-P", "-c", code], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"{interpreter}: {exc}"
    if done.returncode == 0:
        return None
    if module == "tractor":
        return f"not installed for {interpreter}: see benchmarks/README.md"
    return f"not installed: {module}"


# -- the run ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class Plan:
    """How long, how often, how many, and with whom."""

    seconds: float = SECONDS
    peer_seconds: float = PEER_SECONDS
    rounds: int = ROUNDS
    ends: int = ENDS
    memory_rounds: int = MEMORY_ROUNDS
    peers: bool = True
    tractor: str = sys.executable


QUICK: Final = Plan(seconds=0.02, peer_seconds=0.02, rounds=1, ends=50, memory_rounds=1)


class Run:
    """What is found, by number of the experiment and where it ran, and why others were not."""

    def __init__(self, experiments: Sequence[Experiment]) -> None:
        self.experiments = experiments
        self.found: dict[tuple[int, str], list[Found]] = {}
        self.missing: dict[int, str] = {}
        self._pairs: dict[str, Pair] = {}

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        while self._pairs:
            self._pairs.popitem()[1].stop()

    def do(self, number: int, cores: set[int], suffix: str, interpreter: str) -> None:
        """One experiment once, unless it failed before."""
        experiment = self.experiments[number]
        if number in self.missing:
            return
        if experiment.family not in self._pairs:
            modules = [ENDS_MODULE] if experiment.module == ENDS_MODULE else []
            self._pairs[experiment.family] = Pair(interpreter, modules)
        try:
            found = run(self._pairs[experiment.family], experiment, cores)
        except ExperimentFailed as exc:
            self.missing[number] = str(exc).splitlines()[0]
            progress(f"{experiment.title}: {exc}")
            self._pairs.pop(experiment.family).stop()
        else:
            self.found.setdefault((number, suffix), []).append(found)

    def results(self, suffix: str, alone: bool) -> list[Result]:
        """The rows of all experiments at one place."""
        rows = []
        for number, experiment in enumerate(self.experiments):
            for figure in experiment.figures:
                if number in self.missing:
                    rows.append(figure.missing(suffix, alone, self.missing[number]))
                else:
                    rows.append(figure.result(self.found[number, suffix], suffix, alone))
        return rows

    def rates(self, name: str, outstanding: int, suffix: str) -> list[float]:
        """Calls a second, in the rounds."""
        for number, experiment in enumerate(self.experiments):
            if experiment.name == name and experiment.settings.get("outstanding") == outstanding:
                return [found["rate"] for found in self.found.get((number, suffix), ())]
        return []


def run(pair: Pair, experiment: Experiment, cores: set[int]) -> Found:
    """One experiment once. Raises :exc:`ExperimentFailed`, also when a message was lost or came twice."""
    left, right = pair.run(
        experiment.module,
        experiment.name,
        experiment.settings,
        cores=cores,
        sockets=experiment.sockets,
        kind=experiment.kind,
    )
    if left.get("messages") != right.get("messages"):
        raise ExperimentFailed(f"{left.get('messages')} messages were sent and {right.get('messages')} received")
    return left


def compare(plan: Plan) -> tuple[list[Result], list[str]]:
    """All experiments in turn, round after round, on all cores and on one: what disturbs one disturbs the others too.

    Returns the rows, and the names of experiments with paths that failed.
    """
    everywhere = os.sched_getaffinity(0)
    places = [("", everywhere), (", one core", {max(everywhere)})]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retinue-bench-")))
        experiments = of_paths(plan.seconds)
        if plan.peers:
            experiments += of_peers(plan.peer_seconds, folder)
        going = stack.enter_context(Run(experiments))
        interpreters = {"tractor": plan.tractor}
        for family, module in _NEEDS.items() if plan.peers else ():
            if why := _absent(module, interpreters.get(family, sys.executable)):
                progress(f"{family}: skipped, {why}")
                going.missing |= {n: why for n, each in enumerate(experiments) if each.family == family}
        for number in range(plan.rounds):
            progress(f"round {number + 1} of {plan.rounds}")
            for suffix, cores in places:
                for step in range(len(experiments)):
                    # Beginning somewhere else each time: nobody always comes after the same neighbour.
                    index = (number + step) % len(experiments)
                    if number < experiments[index].rounds:
                        family = experiments[index].family
                        going.do(index, cores, suffix, interpreters.get(family, sys.executable))
        results: list[Result] = []
        for suffix, _ in places:
            results += going.results(suffix, bool(suffix))
            if plan.peers:
                results.append(against_grpc(going, suffix))
        memory, why = keep_open(plan, everywhere)
        failed = [experiments[n].title for n in going.missing if experiments[n].module == ENDS_MODULE]
        return results + memory, [*failed, *(["memory"] if why else [])]


def against_grpc(going: Run, suffix: str) -> Result:
    """How many times more calls a path carries than grpc.aio, with as many outstanding."""
    count = max(OUTSTANDING)
    name = f"path, calls, {count} at a time, over grpc.aio{suffix}"
    ours, theirs = going.rates("calls", count, suffix), going.rates("grpc: calls", count, suffix)
    if not ours or not theirs:
        return Result(name, None, "x", target=20, why="one of the two was not measured")
    ratios = [our / their for our, their in zip(ours, theirs, strict=False)]
    return attrs.evolve(median(name, ratios, "x"), target=20)


# -- memory ----------------------------------------------------------------------------------------------------------


def keep_open(plan: Plan, cores: set[int]) -> tuple[list[Result], str]:
    """Many paths between two fresh processes, idle; the rows, and why there are none if so.

    Private pages of the process (its heap), divided by the number of paths. What the kernel keeps for a socket is not
    in it, nor is a task of the program's own.
    """
    names = {
        "idle": "open path, idle",
        "used": "open path, after a call",
        "serving": "open path, end that serves",
    }
    targets = {"idle": 8.0, "used": 8.0}
    found: list[Found] = []
    why = ""
    # Of two sockets for each path, which this process holds until both others have them.
    ends = allow_descriptors(2 * plan.ends + 2) // 2 - 1
    try:
        for _ in range(plan.memory_rounds):
            with Pair(modules=[ENDS_MODULE]) as pair:
                settings = {"size": SMALL, "limit": 64}
                left, _ = pair.run(ENDS_MODULE, "keep open", settings, cores=cores, sockets=ends + 1)
                found.append(left)
    except ExperimentFailed as exc:
        why = str(exc).splitlines()[0]
        progress(f"memory: {exc}")
    rows = []
    for key, name in names.items():
        row = Result(name, None, "KiB", why=why) if why else median(name, [each[key] / 1024 for each in found], "KiB")
        rows.append(attrs.evolve(row, target=targets.get(key), at_most=True))
    return rows, why


# -- main ------------------------------------------------------------------------------------------------------------


def software(plan: Plan) -> dict[str, str]:
    """What takes part, with versions."""
    names = ["retinue", "trio", "msgpack", *(["pyzmq", "grpcio"] if plan.peers else [])]
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if plan.peers and _absent("tractor", plan.tractor) is None:
        code = "import importlib.metadata as m, platform; print(m.version('tractor'), platform.python_version())"
        told = subprocess.run([plan.tractor, "-P", "-c", code], capture_output=True, text=True).stdout.split()
        found["tractor"] = "{} (Python {})".format(*told)
    return found


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--quick", action="store_true", help="only see that everything works; the figures mean nothing")
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=True, help="measure the peers too (default)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help=f"of which the median counts (default {ROUNDS})")
    parser.add_argument(
        "--tractor", default=sys.executable, metavar="PYTHON", help="an interpreter that has tractor (default: this)"
    )
    chosen = parser.parse_args()
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error("--rounds is at least 1")
    return chosen


def main() -> int:
    """Measure and report; the exit status is 1 when a path did not do what it was to do, whatever the figures are."""
    chosen = options()
    plan = attrs.evolve(QUICK if chosen.quick else Plan(), peers=chosen.peers, tractor=chosen.tractor)
    if chosen.rounds is not None:
        plan = attrs.evolve(plan, rounds=chosen.rounds)
    end_on_signals()
    described = machine(software(plan))
    results, failed = compare(plan)
    show(form(described, results), as_json=chosen.json)
    for name in failed:
        print(f"FAILED: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
