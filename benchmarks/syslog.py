"""What a record costs on its way into the store, beside rsyslog; and what one machine notices of another that floods.

``python benchmarks/syslog.py [--json]``; ``--quick`` only sees that everything works. ``--crashes N`` measures nothing:
it lets N things befall a syslog machine under load, and looks whether a record is missing that was not counted.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script its own folder comes first, and there this file would pass for the standard library's `syslog`.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import functools
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from benchmarks import floods, floods_peer
from benchmarks.disturbance import operator
from benchmarks.processes import end_on_signals
from benchmarks.report import Result, add_options, form, machine, median, progress, show

Values = dict[str, float]

CRASHES: Final = Path(__file__).resolve().parent.parent / "tests" / "services" / "crashed_syslog.py"
# Seconds between two records of a machine that logs now and then.
PACE: Final = 0.005
# More records than a machine logs while latency is looked at.
ENDLESS: Final = 100_000_000


@attrs.frozen
class Plan:
    """How many records of one machine and of each of eight, how many rounds, seconds that latency is looked at."""

    alone: int = 200_000
    each: int = 100_000
    rounds: int = 3
    seconds: float = 5.0
    peers: bool = True


QUICK: Final = Plan(alone=2_000, each=500, rounds=1, seconds=0.5)


def flood(folder: Path, machines: int, count: int, how: str, policy: str) -> Values:
    """One flood: what it came to."""
    with floods.running(folder, machines, count, how, policy) as flood:
        end = flood.finished()
        stored, first, lost = flood.found()
        cpu = flood.cpu()
    total = machines * count
    senders = sum(used for name, used in cpu.items() if name.startswith("FLOOD"))
    return {
        "rate": stored / (end - first),
        "sender": senders / total * 1e6,
        "CP": cpu["CP"] / total * 1e6,
        "SYSLOG": cpu["SYSLOG"] / total * 1e6,
        "uncounted": float(total - stored - lost),
        "lost": float(lost),
    }


def latency(folder: Path, neighbours: int, how: str, seconds: float) -> Values:
    """How long a machine's records take until a follower has them, beside so many others that log or compute."""
    with floods.running(folder, neighbours, ENDLESS, how, "", PACE) as flood:
        seen = trio.run(follow, flood.state / "run", seconds)
    cuts = statistics.quantiles(seen, n=100)
    return {"p50": cuts[49] * 1e3, "p99": cuts[98] * 1e3}


async def follow(runtime: Path, seconds: float) -> list[float]:
    """Seconds from the call of the logger to here, of the records of PROBE that come in so much time."""
    seen: list[float] = []
    async with operator(runtime) as path:
        await path.call(["follow", {"machine": "PROBE"}])
        with trio.move_on_after(seconds):
            async for message in path:
                if message.body[0] == "record" and message.body[1]["message"].startswith("a word"):
                    seen.append(time.time() - message.body[1]["time"])
    return seen


def peer(folder: Path, senders: int, count: int) -> Values:
    """The same flood to rsyslog."""
    return {key: float(value) for key, value in attrs.asdict(floods_peer.measure(folder, senders, count)).items()}


Row = tuple[str, str, str, float | None, bool]
_COSTS: Final[list[Row]] = [
    ("rate", "stored", "1/s", None, False),
    ("sender", "CPU of the machine that logs, a record", "µs", None, True),
    ("CP", "CPU of the control program, a record", "µs", None, True),
    ("SYSLOG", "CPU of SYSLOG, a record", "µs", None, True),
    ("uncounted", "lost and not counted", "", 0, True),
    ("lost", "lost and counted", "", None, True),
]
_TIMES: Final[list[Row]] = [("p50", "p50", "ms", None, True), ("p99", "p99", "ms", None, True)]
_PEER: Final[list[Row]] = [
    ("rate", "stored", "1/s", None, False),
    ("sender", "CPU of the process that logs, a record", "µs", None, True),
    ("server", "CPU of rsyslogd, a record", "µs", None, True),
]


def experiments(plan: Plan) -> list[tuple[str, Callable[[Path], Values], list[Row]]]:
    """Everything that is measured: its name, how, and the rows that come of it."""
    eight = [("rate", "stored", "1/s", 100_000.0, False), *_COSTS[1:]]
    found: list[tuple[str, Callable[[Path], Values], list[Row]]] = []
    for how in ("logging", "extra", "print"):
        rows = eight if how == "logging" else _COSTS
        found.append((f"8 machines, {how}", _flood(8, plan.each, how, "block"), rows))
    found.append(("8 machines, logging, policy spill", _flood(8, plan.each, "logging", "spill"), _COSTS))
    found.append(("1 machine, logging", _flood(1, plan.alone, "logging", "block"), _COSTS))
    for name, neighbours, how in (
        ("quiet", 0, "logging"),
        ("beside a flooder", 1, "logging"),
        ("beside one that computes", 1, "compute"),
        ("beside three that compute", 3, "compute"),
    ):
        look = functools.partial(latency, neighbours=neighbours, how=how, seconds=plan.seconds)
        found.append((f"latency, {name}", look, _TIMES))
    if plan.peers:
        for senders, count in ((8, plan.each), (1, plan.alone)):
            name = f"rsyslog, {senders} process{'es' * (senders > 1)}"
            found.append((name, functools.partial(peer, senders=senders, count=count), _PEER))
    return found


def _flood(machines: int, count: int, how: str, policy: str) -> Callable[[Path], Values]:
    return functools.partial(flood, machines=machines, count=count, how=how, policy=policy)


def measure(plan: Plan) -> list[Result]:
    """All experiments in turn, round after round."""
    missing = {"rsyslog": why} if (why := floods_peer.absent()) else {}
    todo = experiments(plan)
    found: dict[str, list[Values]] = {name: [] for name, _, _ in todo}
    with tempfile.TemporaryDirectory(prefix="retinue-bench-") as place:
        for number in range(plan.rounds):
            for step, (name, run, _) in enumerate(todo):
                if name.split(",")[0] not in missing:
                    progress(f"round {number + 1} of {plan.rounds}: {name}")
                    found[name].append(run(Path(place) / f"{number}-{step}"))
    results = []
    for name, _, rows in todo:
        for key, title, unit, target, at_most in rows:
            if found[name]:
                row = median(f"{name}: {title}", [each[key] for each in found[name]], unit)
            else:
                row = Result(f"{name}: {title}", None, unit, why=missing["rsyslog"])
            results.append(attrs.evolve(row, target=target, at_most=at_most and target is not None))
    return results


def crash(rounds: int) -> int:
    """Let so many things befall a syslog machine; 0 when no record is missing that is not counted."""
    with tempfile.TemporaryDirectory(prefix="retinue-bench-") as folder:
        command = [sys.executable, str(CRASHES), f"{folder}/crashes", str(rounds), str(int(time.time()))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return 1
    found: dict[str, Any] = json.loads(done.stdout)
    print(json.dumps(found, indent=2))
    said, stored = found["steady said"], found["steady stored"]
    lost = found["lost"]
    good = found["in order"] and not found["numbers not stored"] and stored + lost.get("STEADY", 0) == said
    return 0 if good and all(count == lost.get(name, 0) for name, count in found["missing"].items()) else 1


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--quick", action="store_true", help="only see that everything works; the figures mean nothing")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"of which the median counts (default {Plan().rounds})")
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=True, help="measure rsyslog too (default)"
    )
    parser.add_argument("--crashes", type=int, metavar="N", help="measure nothing, but crash so often")
    return parser.parse_args()


def main() -> int:
    """Measure and report; the exit status is 1 when a record was lost that nobody has counted."""
    chosen = options()
    end_on_signals()
    if chosen.crashes:
        return crash(chosen.crashes)
    plan = attrs.evolve(QUICK if chosen.quick else Plan(), peers=chosen.peers)
    if chosen.rounds:
        plan = attrs.evolve(plan, rounds=chosen.rounds)
    described = machine({"load before": " ".join(f"{each:.1f}" for each in os.getloadavg())})
    results = measure(plan)
    show(form(described, results), as_json=chosen.json)
    return 1 if any(result.met is False and result.name.endswith("not counted") for result in results) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
