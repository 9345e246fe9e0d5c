"""Whether a path keeps its promises while the machine at its other end is killed ten times a second.

``python benchmarks/rebind.py [--json] [--seconds 30]`` starts a system of two machines. CALLER sends numbered calls at
an even pace over an edge with ``on_restart = "keep"``; CALLEE writes each number to its disk before it answers. What
must hold: every number is answered, none twice, and what CALLEE sees a second time is marked as redelivered.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script its own folder comes first, and there another file would pass for the standard library's `http`.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import collections
import contextlib
import importlib.metadata
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterable
from typing import Any, Final

import attrs
import trio

from benchmarks import systems
from benchmarks.processes import end_on_signals
from benchmarks.report import Result, add_options, form, machine, progress, show
from retinue.cp.operator_socket import connect_operator
from retinue.pipes import SocketTransport, open_path

# Calls a second, and between two kills; what may be outstanding is a second's worth.
RATE: Final = 1000
EVERY: Final = 0.1
# How long the caller waits for the last answers, and how much longer we wait for what it has to say.
PATIENCE: Final = 30.0

TOPOLOGY: Final = """\
[system]
name = "REBIND"

[machines.CALLER]
program = "caller"
uses.callee = {{ to = "CALLEE", limit = {rate}, on_restart = "keep" }}
disks.results = {{}}
config = {{ seconds = {seconds:.3f}, rate = {rate}, patience = {patience:.3f} }}

[machines.CALLEE]
program = "callee"
pause = "0s"
disks.handled = {{}}
"""

CALLER: Final = '''\
"""Sends numbered calls at an even pace, and writes down what came of them."""

import collections
import json

import attrs
import trio

from retinue.pipes import PathError
from retinue.svm import Machine


@attrs.frozen
class Config:
    seconds: float
    rate: int
    patience: float


async def main(vm: Machine[Config]) -> None:
    path = await vm.connect("callee")
    await vm.ready()
    answers: collections.Counter[int] = collections.Counter()
    errors: collections.Counter[str] = collections.Counter()
    longest = 0.0
    begun = latest = trio.current_time()

    async def call(number: int) -> None:
        nonlocal latest, longest
        try:
            answer = await path.call(number)
        except PathError as exc:
            errors[f"{type(exc).__name__}: {exc}"] += 1
            return
        now = trio.current_time()
        longest, latest = max(longest, now - latest), now
        answers[answer] += 1

    count = int(vm.config.seconds * vm.config.rate)
    with trio.move_on_at(begun + vm.config.seconds + vm.config.patience):
        async with trio.open_nursery() as nursery:
            for number in range(count):
                await trio.sleep_until(begun + number / vm.config.rate)
                nursery.start_soon(call, number)
    found = {
        "sent": count,
        "answered": len(answers),
        "twice": sum(each > 1 for each in answers.values()),
        "strange": len(answers.keys() - set(range(count))),
        "errors": dict(errors),
        "longest": longest,
        "took": trio.current_time() - begun,
    }
    file = vm.disk("results") / "results"
    file.with_suffix(".new").write_text(json.dumps(found))
    file.with_suffix(".new").rename(file)
    await vm.stopping.wait()
'''

CALLEE: Final = '''\
"""Writes each number to its disk, then answers with it."""

import os
import time

from retinue.pipes import Message
from retinue.svm import Machine


async def main(vm: Machine[None]) -> None:
    generation = time.monotonic_ns()  # the next one is born later
    # What write(2) has taken is there for the next generation and for us, whenever this process is killed.
    file = os.open(vm.disk("handled") / "handled", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def handle(message: Message) -> int:
        number: int = message.body
        os.write(file, f"{number} {generation} {int(message.redelivered)}\\n".encode())
        return number

    await vm.serve(handle)
'''


@attrs.frozen
class Handled:
    """One line of what the callee wrote."""

    number: int
    generation: int
    redelivered: bool


@attrs.frozen
class Count:
    """What the callee's notes say: how many messages were ..."""

    handled: int
    redelivered: int
    by_several: int
    twice_by_one: int
    unmarked: int


def count(notes: Iterable[Handled]) -> Count:
    """Count the notes, which are in the order in which they were written."""
    seen: dict[int, list[int]] = collections.defaultdict(list)
    redelivered = unmarked = 0
    for note in notes:
        redelivered += note.redelivered
        unmarked += bool(seen[note.number]) and not note.redelivered
        seen[note.number].append(note.generation)
    return Count(
        handled=len(seen),
        redelivered=redelivered,
        by_several=sum(len(set(generations)) > 1 for generations in seen.values()),
        twice_by_one=sum(len(set(generations)) < len(generations) for generations in seen.values()),
        unmarked=unmarked,
    )


def read(file: Path) -> list[Handled]:
    """The callee's notes."""
    notes = []
    for line in file.read_text().splitlines():
        number, generation, redelivered = map(int, line.split())
        notes.append(Handled(number, generation, bool(redelivered)))
    return notes


@attrs.frozen
class Kills:
    """How many times the callee was killed, and how often it was not ready to be."""

    done: int
    not_ready: int


async def kill(runtime: Path, seconds: float) -> Kills:
    """Kill the callee at each tick at which it is ready."""
    done = not_ready = latest = 0
    begun = trio.current_time()
    async with open_path(SocketTransport(connect_operator(runtime)), name="*CP") as path:
        for tick in range(1, int(seconds / EVERY)):
            await trio.sleep_until(begun + tick * EVERY)
            with trio.fail_after(10):
                listing = await path.call(["ps", {}])
            (callee,) = [each for each in listing["machines"] if each["name"] == "CALLEE"]
            if callee["state"] != "READY" or callee["generation"] <= latest:
                not_ready += 1
                continue
            latest = callee["generation"]
            os.kill(callee["pid"], signal.SIGKILL)
            done += 1
            if done % 50 == 0:
                progress(f"killed {done} times")
    return Kills(done, not_ready)


def measure(seconds: float) -> tuple[dict[str, Any], Count, Kills]:
    """Run the system: what the caller found, what the callee wrote, and what we did to it."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retinue-bench-")))
        programs, state = root / "rebind", root / "state"
        programs.mkdir()
        (programs / "caller.py").write_text(CALLER)
        (programs / "callee.py").write_text(CALLEE)
        file = programs / "rebind.toml"
        file.write_text(TOPOLOGY.format(seconds=seconds, rate=RATE, patience=PATIENCE))
        stack.enter_context(systems.running(file, state))
        kills = trio.run(kill, state / "run", seconds)
        results = state / "disks" / "CALLER" / "results" / "results"
        give_up = time.monotonic() + 2 * PATIENCE
        while not results.exists():
            if time.monotonic() > give_up:
                raise RuntimeError(f"the caller has not finished:\n{systems.retinue(state, 'logs').stdout[-4000:]}")
            time.sleep(0.05)
        found = json.loads(results.read_text())
        return found, count(read(state / "disks" / "CALLEE" / "handled" / "handled")), kills


def results(found: dict[str, Any], counted: Count, kills: Kills) -> list[Result]:
    """The rows: what must not happen has the target 0."""

    def never(name: str, value: int) -> Result:
        return Result(name, value, "messages", target=0, at_most=True)

    return [
        Result("kills", kills.done, "kills"),
        Result("ticks at which the callee was not ready", kills.not_ready, "ticks"),
        Result("sent", found["sent"], "messages"),
        Result("answered", found["answered"], "messages"),
        never("never answered", found["sent"] - found["answered"]),
        never("answered twice", found["twice"]),
        never("answered with another number", found["strange"]),
        Result("handled", counted.handled, "messages"),
        Result("redelivered, marked", counted.redelivered, "messages"),
        Result("handled by more than one generation", counted.by_several, "messages"),
        never("handled twice by one generation", counted.twice_by_one),
        never("redelivered without a mark", counted.unmarked),
        Result("longest time without an answer", found["longest"] * 1000, "ms"),
    ]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="how long (default 30)")
    chosen = parser.parse_args()
    if chosen.seconds < 1:
        parser.error("--seconds is at least 1")
    return chosen


def main() -> int:
    """Measure and report; the exit status is 1 when a promise was broken."""
    chosen = options()
    end_on_signals()
    described = machine({name: importlib.metadata.version(name) for name in ("retinue", "trio", "msgpack")})
    found, counted, kills = measure(chosen.seconds)
    rows = results(found, counted, kills)
    show(form(described, rows), as_json=chosen.json)
    for error, times in found["errors"].items():
        print(f"{times} calls ended with {error}", file=sys.stderr)
    broken = [row.name for row in rows if row.met is False]
    for name in broken:
        print(f"FAILED: {name}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
