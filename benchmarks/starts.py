"""Whether machines start in the order of their edges: a system of 20 machines is started over and over.

``python benchmarks/starts.py [--json] [--starts 500]``: each time with other edges. Every machine connects to each
machine that it uses as the first thing that its program does, without waiting: if one of them were not ready, it would
be refused, and the start fails. It is a count and a time, and no peer.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script its own folder comes first, and there another file would pass for the standard library's `http`.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import random
import statistics
import tempfile
import time
from typing import Final

from benchmarks import systems
from benchmarks.processes import NotStarted, end_on_signals
from benchmarks.report import Result, add_options, form, machine, progress, show

MACHINES: Final = 20
STARTS: Final = 500

PROGRAM: Final = '''\
"""Connects to all that it uses, at once, and answers."""

from retinue.svm import Machine


async def main(vm: Machine[None]) -> None:
    for edge in vm.edges:
        path = await vm.connect(edge, wait=False)
        assert await path.call("ready?") == "yes"

    async def answer(message: object) -> str:
        return "yes"

    await vm.serve(answer)
'''


def topology(rng: random.Random, machines: int) -> str:
    """Machines that use some of those after them, in an order that is not that of the file."""
    names = [f"M{number}" for number in range(machines)]
    rng.shuffle(names)
    text = ['[system]\nname = "STARTS"\n']
    for at, name in enumerate(names):
        used = rng.sample(names[at + 1 :], min(len(names) - at - 1, rng.randint(0, 3)))
        edges = "".join(f'uses.{each.lower()} = "{each}"\n' for each in used)
        text.append(f'[machines.{name}]\nprogram = "node"\n{edges}')
    first, *rest = text
    rng.shuffle(rest)
    return first + "".join(rest)


def measure(starts: int, machines: int, seed: int) -> list[Result]:
    """Start so many systems, one after the other."""
    violations = 0
    times = []
    for number in range(starts):
        with tempfile.TemporaryDirectory(prefix="retinue-bench-") as folder:
            root = Path(folder)
            (root / "node.py").write_text(PROGRAM)
            file = root / "starts.toml"
            file.write_text(topology(random.Random(seed + number), machines))
            begun = time.perf_counter()
            try:
                with systems.running(file, root / "state"):
                    times.append(time.perf_counter() - begun)
            except NotStarted as exc:
                violations += 1
                progress(f"start {number} (seed {seed + number}) failed: {exc}")
        if number % 50 == 49:
            progress(f"{number + 1} starts, {violations} violations")
    return [
        Result(f"{starts} starts of {machines} machines: order violations", violations, "starts", 0, at_most=True),
        Result("from the command to every machine ready, p50", statistics.median(times) * 1000, "ms"),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure and report; the exit status is 1 when a machine started too early."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--starts", type=int, default=STARTS, help="how many")
    parser.add_argument("--machines", type=int, default=MACHINES, help="of each system")
    parser.add_argument("--seed", type=int, default=0, help="of the first one's edges")
    given = parser.parse_args(arguments)
    report = form(machine({}), measure(given.starts, given.machines, given.seed))
    show(report, as_json=given.json)
    return 1 if any(each["met"] is False for each in report["results"]) else 0


if __name__ == "__main__":
    end_on_signals()
    sys.exit(main())
