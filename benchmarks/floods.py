"""A system whose machines do nothing but log, and what is found of it in the store."""

import contextlib
import json
import pathlib
import sqlite3
import time
from collections.abc import Iterator
from typing import Final

import attrs

from benchmarks import systems
from benchmarks.processes import cpu_time, descendants

# Nobody logs before all are there and were looked at: GATE answers when it was called so often and has the file ``go``.
GATE: Final = '''\
"""Lets everybody through at once."""

from typing import Any

import attrs
import trio

from retinue.pipes import Message
from retinue.svm import Machine


@attrs.frozen
class Config:
    callers: int


async def main(vm: Machine[Config]) -> None:
    there = 0
    full = trio.Event()

    async def pass_(message: Message) -> Any:
        nonlocal there
        there += 1
        if there == vm.config.callers:
            full.set()
        await full.wait()
        while not (vm.disk("a") / "go").exists():
            await trio.sleep(0.01)

    await vm.serve(pass_)
'''

FLOOD: Final = '''\
"""Logs as fast as it can, or at a pace, or logs nothing and computes."""

import logging

import attrs
import trio

from retinue.svm import Machine

log = logging.getLogger("flood")


@attrs.frozen
class Config:
    count: int
    how: str = "logging"
    pause: float = 0.0


async def main(vm: Machine[Config]) -> None:
    gate = await vm.connect("gate")
    await vm.ready()
    await gate.call(None)
    how, count = vm.config.how, vm.config.count
    if how == "logging":
        for number in range(count):
            log.info("record %d of a machine that has a lot to say about itself", number)
    elif how == "extra":
        for number in range(count):
            log.info("record %d of a machine that has a lot to say", number, extra={"number": number})
    elif how == "print":
        for number in range(count):
            print(f"record {number} of a machine that has a lot to say about itself")
    elif how == "compute":
        while not vm.stopping.is_set():
            sum(range(10_000))
            await trio.lowlevel.checkpoint()
    else:
        while not vm.stopping.is_set():
            log.info("a word now and then")
            await trio.sleep(vm.config.pause)
    await vm.stopping.wait()
'''

# Seconds without a new record after which nothing more is expected, and between two looks at the store.
STILL: Final = 10.0
LOOK: Final = 0.02


@attrs.frozen
class Flood:
    """A system that is up. ``pids`` are those of its machines and of the control program, ``CP``."""

    state: pathlib.Path
    pids: dict[str, int]
    machines: int
    count: int
    before: dict[str, float] = attrs.field(factory=dict)

    def cpu(self) -> dict[str, float]:
        """Seconds of processor time that each process has used since the flood began."""
        return {name: cpu_time(pid) - self.before.get(name, 0.0) for name, pid in self.pids.items()}

    def database(self) -> sqlite3.Connection:
        """The store, for reading."""
        path = self.state / "disks" / "SYSLOG" / "a" / "records.sqlite3"
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)

    def finished(self) -> float:
        """When the last record of the flood was stored, or the last one that came at all: seconds since the epoch."""
        with contextlib.closing(self.database()) as database:
            newest, seen, when = 0, 0, time.time()
            while seen < self.machines * self.count and time.time() < when + STILL:
                query = "SELECT max(e.id), count(*) FROM entries e WHERE e.id > ? AND e.severity = 6"
                last, more = database.execute(query, (newest,)).fetchone()
                if more:
                    newest, seen, when = last, seen + more, time.time()
                time.sleep(LOOK)
        return when

    def found(self) -> tuple[int, float, int]:
        """Records of the flood, the time of the first one, and how many are told to be lost."""
        with contextlib.closing(self.database()) as database:
            query = "SELECT count(*), min(time) FROM records WHERE machine LIKE 'FLOOD%' AND message LIKE 'record %'"
            count, first = database.execute(query).fetchone()
            gaps = "SELECT coalesce(sum(json_extract(fields, '$.lost')), 0) FROM records WHERE fields LIKE '%\"lost\"%'"
            (lost,) = database.execute(gaps).fetchone()
        return count, first or 0.0, lost


def topology(machines: int, count: int, how: str, policy: str, pace: float) -> str:
    """A syslog, a gate, so many that log, and PROBE that logs now and then if ``pace`` (seconds) is not 0."""
    parts = [
        '[system]\nname = "FLOODS"\nsyslog = "SYSLOG"\n',
        '[machines.SYSLOG]\nprogram = "retinue.services.syslog"\ndisks.a = {}\nconfig.keep = 100_000_000\n',
        f'[machines.GATE]\nprogram = "gate"\ndisks.a = {{}}\nconfig.callers = {machines + bool(pace)}\n',
    ]
    users = {f"FLOOD{number}": f'config = {{ count = {count}, how = "{how}" }}' for number in range(machines)}
    if pace:
        users["PROBE"] = f'config = {{ count = 0, how = "pace", pause = {pace} }}'
    for name, config in users.items():
        log = f'log.policy = "{policy}"\n' if policy and name != "PROBE" else ""
        parts.append(f'[machines.{name}]\nprogram = "flood"\nuses.gate = "GATE"\n{log}{config}\n')
    return "\n".join(parts)


@contextlib.contextmanager
def running(
    folder: pathlib.Path, machines: int, count: int, how: str = "logging", policy: str = "", pace: float = 0.0
) -> Iterator[Flood]:
    """Such a system in a folder that is made, up to the end of the block; the flood begins when all are ready."""
    folder.mkdir()
    (folder / "gate.py").write_text(GATE)
    (folder / "flood.py").write_text(FLOOD)
    file = folder / "floods.toml"
    file.write_text(topology(machines, count, how, policy, pace))
    state = folder / "state"
    with systems.running(file, state) as nucleus:
        listing = json.loads(systems.retinue(state, "ps", "--json").stdout)
        pids = {each["name"]: each["pid"] for each in listing["machines"] if each["pid"] is not None}
        pids["CP"] = min(pid for pid, name in descendants(nucleus).items() if name.startswith("control"))
        before = {name: cpu_time(pid) for name, pid in pids.items()}
        (state / "disks" / "GATE" / "a" / "go").touch()
        yield Flood(state, pids, machines, count, before)
