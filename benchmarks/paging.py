"""What the pager does: idle machines that are paged out, segments beyond real storage, and what others notice of it.

``python benchmarks/paging.py [--json] [--only PART]``: ``idle`` pages 100 machines out that do nothing, and wakes them;
``segments`` has machines read segments that are four times the real storage of the system, at random pages alike and by
Zipf's law, beside the same program under the kernel's own management (a memory cgroup of the same size); ``active``
compares the calls of a busy pair of machines with and without a pager at work on others, in pairs of short phases.
``idle`` and ``active`` need root, for a paging volume is swap while the system runs.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script its own folder comes first, and there another file would pass for the standard library's `http`.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import attrs

from benchmarks import paging_programs, systems
from benchmarks.processes import NotStarted, cpu_time, descendants, end_on_signals, storage
from benchmarks.report import Result, add_options, conclude, form, machine, progress

# Seconds within which idle machines must be paged out, and within which an answer in the log must come.
PATIENCE: Final = 120.0
# Seconds of a phase with the pager on, or off: at least one whole second that is counted lies in it.
PHASE: Final = 2.2
NO_ROOT: Final = "only root may give the host swap"


@attrs.frozen
class Plan:
    """How much is measured; ``storage`` in MiB, times in seconds."""

    machines: int = 100
    rounds: int = 3
    storage: int = 96
    readers: int = 4
    seconds: float = 20.0
    pairs: int = 20
    laws: tuple[str, ...] = ("uniform", "Zipf")


QUICK: Final = Plan(machines=3, rounds=1, storage=40, readers=2, seconds=0.5, pairs=2, laws=("Zipf",))


class System:
    """One system under measurement."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._read: dict[str, int] = {}

    def ask(self, *arguments: str) -> Any:
        """The JSON of a command."""
        told = systems.retinue(self.state, *arguments, "--json")
        if told.returncode != 0:
            raise NotStarted(f"retinue {' '.join(arguments)}", f"status {told.returncode}", told.stderr)
        return json.loads(told.stdout)

    def figures(self) -> dict[str, Any]:
        """Of storage, of all machines."""
        found: dict[str, Any] = self.ask("ps", "--storage")
        return found

    def next_line(self, name: str) -> dict[str, Any]:
        """The next line of JSON that a machine prints."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            told = systems.retinue(self.state, "logs", name, "--json", "-n", "1000")
            for line in told.stdout.splitlines():
                record = json.loads(line)
                if record.get("logger") == "stdout" and record["seq"] > self._read.get(name, 0):
                    self._read[name] = record["seq"]
                    found: dict[str, Any] = json.loads(record["message"])
                    return found
            time.sleep(0.2)
        raise NotStarted(name, "it printed nothing", "")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """All that a machine has printed, as far as it is kept."""
        told = systems.retinue(self.state, "logs", name, "--json", "-n", "1000")
        records = [json.loads(line) for line in told.stdout.splitlines()]
        return [json.loads(each["message"]) for each in records if each.get("logger") == "stdout"]


@contextlib.contextmanager
def running(topology: str) -> Iterator[System]:
    """A system of these machines, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="retinue-bench-") as folder:
        file = paging_programs.write(Path(folder) / "programs", topology)
        state = Path(folder) / "state"
        with systems.running(file, state):
            yield System(state)


# -- idle machines -----------------------------------------------------------------------------------------------------


def idle(plan: Plan) -> list[Result]:
    """Page machines out that do nothing, and wake them."""
    names = ("private resident of an idle machine", "paged out: private resident", "paged out: wake and answer, p50")
    if os.geteuid() != 0:
        return [Result(name, None, unit, why=NO_ROOT) for name, unit in zip(names, ("KiB", "KiB", "ms"), strict=True)]
    text = paging_programs.idle_system(plan.machines, page_out=4.0, volume=True)
    with running(text) as system:
        machines = [each for each in system.ask("ps")["machines"] if each["name"].startswith(("A@", "B@"))]
        pids = [each["pid"] for each in machines]
        before = _private(pids)
        disk = next(system.state.glob("disks/ASKER/a"))
        warm: list[float] = []
        cold: list[float] = []
        after: list[float] = []
        for number in range(plan.rounds):
            _wait_paged_out(system, len(machines))
            after.append(_private(pids))
            progress(f"idle: {after[-1]:,.0f} KiB private each of {len(machines)} machines that are paged out")
            (disk / f"go-{2 * number}").touch()
            cold += system.next_line("ASKER")["times"]
            (disk / f"go-{2 * number + 1}").touch()
            warm += system.next_line("ASKER")["times"]
    return [
        Result(f"private resident of an idle machine, of {len(machines)}", before, "KiB"),
        Result("paged out: private resident", statistics.median(after), "KiB", 300, at_most=True, rounds=tuple(after)),
        Result("call of a machine that is not paged out, p50", statistics.median(warm) * 1000, "ms"),
        Result("paged out: wake and answer, p50", statistics.median(cold) * 1000, "ms", 5, at_most=True),
        Result("paged out: wake and answer, p95", statistics.quantiles(cold, n=20)[-1] * 1000, "ms"),
    ]


def _private(pids: list[int]) -> float:
    """KiB each, the median."""
    return statistics.median(found.private for pid in pids if (found := storage(pid)) is not None)


def _wait_paged_out(system: System, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = system.figures()["machines"]
        if sum(each["paged_out"] for each in found) >= count:
            return
        time.sleep(0.5)
    raise NotStarted("the pager", "idle machines were not paged out", json.dumps(found)[:2000])


# -- segments ----------------------------------------------------------------------------------------------------------


def segments(plan: Plan) -> list[Result]:
    """Read four times of what may be resident."""
    results = []
    mib = plan.storage * 4 // plan.readers
    for law in plan.laws:
        text = paging_programs.reading_system(plan.storage, plan.readers, mib, plan.seconds, zipf=law == "Zipf")
        with running(text) as system:
            filling = [system.figures()["totals"]["resident"]]
            for number in range(plan.readers):
                system.next_line(f"R{number}")
                filling.append(system.figures()["totals"]["resident"])
            totals: list[int] = []
            begun = time.monotonic()
            while time.monotonic() < begun + plan.seconds * 0.8 or len(totals) < 2:  # of one nobody can tell a p95
                totals.append(system.figures()["totals"]["resident"])
            told = [system.next_line(f"R{number}") for number in range(plan.readers)]
        rate = sum(each["rate"] for each in told)
        wrong = sum(each["wrong"] for each in told)
        over = statistics.quantiles(totals, n=20)[-1] / (plan.storage << 20) * 100 - 100
        most = max(filling) / (plan.storage << 20) * 100 - 100
        kernel, why = kernel_alone(plan, mib, law)
        progress(f"segments, {law}: {rate:,.0f} pages/s, the kernel alone {kernel or 0:,.0f}")
        results += [
            Result(f"segments of 4 x the real storage, {law}: pages looked at", rate, "1/s"),
            Result(f"{law}: pages that did not hold what they should", wrong, "pages", 0, at_most=True),
            Result(f"{law}: resident of all machines, p95, over [system] storage", over, "%", 5, at_most=True),
            Result(f"{law}: highest while the segments were filled, over [system] storage", most, "%"),
            Result(f"{law}: the same under the kernel alone", kernel, "1/s", why=why),
        ]
        if kernel:
            results.append(Result(f"{law}: of what the kernel alone reaches", rate / kernel * 100, "%"))
    return results


def kernel_alone(plan: Plan, mib: int, law: str) -> tuple[float | None, str | None]:
    """The same program, of as many processes, in a memory cgroup of that size: pages a second, or why not."""
    group, why = _group(plan.storage << 20)
    if group is None:
        return None, why
    with tempfile.TemporaryDirectory(prefix="retinue-bench-") as name:
        folder = Path(name)
        paging_programs.write(folder, "")
        processes = []
        try:
            for number in range(plan.readers):
                # It goes into the group before it begins, so that what it has beside its table counts as in a machine.
                process = subprocess.Popen(
                    [
                        *("/bin/sh", "-c", 'echo $$ > "$1"; shift; exec "$@"', "sh", str(group / "cgroup.procs")),
                        *(sys.executable, "plain.py", f"table-{number}", str(mib), str(plan.seconds)),
                        *(law.lower(), f"R{number}"),
                    ],
                    cwd=folder,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                processes.append(process)
                assert process.stdout is not None
                if not process.stdout.readline():
                    raise NotStarted("plain.py", f"ended with status {process.wait()}", "")
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            told = [process.communicate(timeout=plan.seconds + PATIENCE)[0].split() for process in processes]
            for process, words in zip(processes, told, strict=True):
                if len(words) != 2:
                    raise NotStarted("plain.py", f"ended with status {process.returncode}", "")
            return sum(float(rate) for rate, _ in told), None
        finally:
            for process in processes:
                process.kill()
                process.wait()
            group.rmdir()


def _group(limit: int) -> tuple[Path | None, str | None]:
    """A memory cgroup of our own with this limit, or why there is none."""
    for parent, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(parent) / f"retinue-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / file).write_text(str(limit))
        except OSError:
            group.rmdir()
            continue
        return group, None
    return None, "there is no memory cgroup that we may make"


# -- what others notice ------------------------------------------------------------------------------------------------


def active(plan: Plan) -> list[Result]:
    """Calls a second of a busy pair, with and without a pager at work on machines that are woken one by one.

    In one system, whose pager is turned on and off again in turn: the two phases of a pair lie a moment apart, and now
    one is the first and now the other, so whatever else goes on in the host is in both alike.
    """
    name = "active pair while the pager works on others: of its calls without"
    if os.geteuid() != 0:
        return [Result(name, None, "%", 98, why=NO_ROOT)]
    machines = min(plan.machines, 40)
    phases: list[_Phase] = []
    texts = {
        paged: paging_programs.idle_system(machines, page_out=2.0 * paged, volume=True, every=0.2, busy=True)
        for paged in (True, False)
    }
    with running(texts[True]) as system:
        system.next_line("BUSY")
        control = _control_program(system)
        for number in range(plan.pairs):
            for paged in (number % 2 == 0, number % 2 == 1):
                (system.state.parent / "programs" / "paging.toml").write_text(texts[paged])
                system.ask("apply", str(system.state.parent / "programs" / "paging.toml"))
                used, began = cpu_time(control), time.monotonic()
                time.sleep(PHASE)
                ended = time.monotonic()
                phases.append(_Phase(paged, began, ended, (cpu_time(control) - used) / (ended - began)))
            progress(f"active: {number + 1} of {plan.pairs} pairs")
        rates = [phase.rate(system.lines("BUSY")) for phase in phases]
    shares = []
    for at in range(0, len(phases), 2):
        found = {phases[each].paged: rates[each] for each in (at, at + 1)}
        shares.append(found[True] / found[False] * 100)
    least, most = interval(shares)
    cost = {paged: statistics.mean(each.cpu for each in phases if each.paged == paged) for paged in (True, False)}
    return [
        Result(name, statistics.median(shares), "%", 98, rounds=tuple(shares)),
        Result("the same, 95 % confidence: at least", least, "%"),
        Result("the same, 95 % confidence: at most", most, "%"),
        Result("processor time of the control program with the pager", cost[True] * 1000, "ms/s"),
        Result("of that for the pager", (cost[True] - cost[False]) * 1000, "ms/s"),
    ]


@attrs.frozen
class _Phase:
    """Times on the monotonic clock; ``cpu`` is seconds of processor per second of the control program."""

    paged: bool
    began: float
    ended: float
    cpu: float

    def rate(self, lines: Sequence[dict[str, Any]]) -> float:
        """Calls a second of what was counted within it."""
        counted = [each for each in lines if self.began <= each["began"] and each["ended"] <= self.ended]
        if not counted:
            raise NotStarted("BUSY", f"it counted nothing in {self.ended - self.began:.1f} s", "")
        return float(sum(each["calls"] for each in counted) / sum(each["ended"] - each["began"] for each in counted))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which two of the values the median of all that there could be lies, with 95 % confidence.

    By order statistics, which need no assumption of how they are spread. Of fewer than six it is all of them.
    """
    order, number = sorted(values), len(values)
    chance, cut = 0.5**number, 0
    while 2 * (chance := chance + math.comb(number, cut + 1) * 0.5**number) <= 0.05:
        cut += 1
    if 2 * 0.5**number > 0.05:
        cut = 0
    return order[cut], order[-1 - cut]


def _control_program(system: System) -> int:
    nucleus = json.loads((system.state / "run" / "system.json").read_text("utf-8"))["nucleus_pid"]
    for pid, title in descendants(nucleus).items():
        if title.startswith("control"):
            return pid
    raise NotStarted("the control program", "it is not among the processes of the system", "")


PARTS: Final[dict[str, Callable[[Plan], list[Result]]]] = {"idle": idle, "segments": segments, "active": active}


def main(arguments: list[str] | None = None) -> int:
    """Measure and report; the exit status is 1 when a promise is not kept, 2 when something could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--only", choices=list(PARTS), action="append", help="one part; may be given again")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    given = parser.parse_args(arguments)
    plan = QUICK if given.quick else Plan()
    try:
        results = [result for part in given.only or PARTS for result in PARTS[part](plan)]
    except (NotStarted, subprocess.TimeoutExpired) as error:
        print(f"paging.py: {error}", file=sys.stderr)
        return 2
    report = form(machine({}), results)
    return conclude(report, as_json=given.json)


if __name__ == "__main__":
    end_on_signals()
    sys.exit(main())
