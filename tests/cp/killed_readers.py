"""A program for test_journal.py: two machines flood their log, and the control program that reads it is killed.

It plays the nucleus: it holds the journal and the machines' descriptors, ends each reader by SIGKILL after some
milliseconds and starts the next one. Prints what the last one has found, as JSON.

    python killed_readers.py KILLS RECORDS SEED [DATABASE [SPILL]]

With SPILL, a folder, what waits has little room in memory, and most of it goes through files there.
"""

import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from retinue.cp.directory.model import LogPolicy
from retinue.cp.journal import Journal
from retinue.cp.log_policy import LogPolicies
from retinue.cp.syslog import Syslog
from retinue.pipes import Message, Path, memory_pair, open_path, socket_pair, wire
from retinue.services.syslog import Store
from retinue.services.syslog.retention import Retention

MACHINES = ("NUMBERED", "CONSOLE")
EVERYTHING = 10_000_000


def flood(sock: socket.socket, machine: str, count: int) -> None:
    """All that one machine says. It waits for room, so that what is missing was lost by the reader."""
    sock.setblocking(True)
    rng = random.Random(machine)
    for number in range(1, count + 1):
        if machine == "NUMBERED":
            text = f"record {number} " + "x" * (rng.randrange(3000) if number % 50 == 0 else 0)
            sock.send(wire.encode([wire.Kind.SEND, number, [time.time(), 6, "x", text, {"n": number}]]))
        else:
            # Every line is cut in two packets.
            line = f"line {number}\n".encode()
            cut = rng.randrange(1, len(line))
            sock.send(line[:cut])
            sock.send(line[cut:])


async def read(log: Syslog, ends: dict[str, socket.socket], database: str | None) -> None:
    """What a control program does with the log."""
    async with trio.open_nursery() as nursery:
        if database is not None:
            nursery.start_soon(log.keeper.run, lambda: connect(Store(database, Retention(EVERYTHING))))
        async with trio.open_nursery() as readers:
            for machine, end in ends.items():
                readers.start_soon(log.read, machine, 1, end)
        if database is not None:
            await log.keeper.settle()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connect(store: Store) -> AsyncIterator[Path]:
    """A path to a SYSLOG in this process: it is killed in the middle of its transactions, too."""
    ours, theirs = memory_pair()

    async def handle(message: Message) -> Any:
        _, body = message.body
        store.add(body["run"], body["chunks"])

    async with open_path(ours) as path, open_path(theirs) as other, trio.open_nursery() as nursery:
        nursery.start_soon(other.serve, handle)
        yield path
        nursery.cancel_scope.cancel()


def fork(work: Callable[[], None]) -> int:
    """The pid of a process that does this and ends; a failure is its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def begin(journal: int, spill: str | None) -> Syslog:
    """The log as a control program has it that adopts a journal."""
    policies = LogPolicies()
    if spill is None:
        return Syslog(journal=Journal.adopt(journal), policies=policies)
    policies.every(LogPolicy("spill", 64 * 1024, 2**40))
    return Syslog(journal=Journal.adopt(journal), policies=policies, spill=pathlib.Path(spill))


def main(kills: int, count: int, seed: int, database: str | None, spill: str | None = None) -> dict[str, Any]:
    """Run it; what there is at the end."""
    rng = random.Random(seed)
    made = Journal.create()
    run, kept = made.run, os.dup(made.fileno())
    if database is None:
        made.keep()  # so that nothing is let go of before the end
    made.close()
    ends, machines = {}, []
    for name in MACHINES:
        ends[name], theirs = socket_pair()

        def machine(theirs: socket.socket = theirs, name: str = name) -> None:
            for end in ends.values():
                end.close()
            flood(theirs, name, count)

        machines.append(fork(machine))
        theirs.close()

    def control_program() -> None:
        log = begin(os.dup(kept), spill)
        log.journal.keep()
        trio.run(read, log, ends, database if stores else None)

    killed = spilt = 0
    stores = True
    for _ in range(kills):
        # With a folder for what waits there is mostly nobody who stores.
        stores = spill is None or rng.random() < 0.1
        pid = fork(control_program)
        time.sleep(rng.uniform(0.002, 0.04) * (1 if spill is None else 3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
        spilt = max(spilt, sum(len(files) for _, _, files in os.walk(spill or "/nowhere")))
    stores = True
    reader = fork(control_program)
    status = [os.waitpid(pid, 0)[1] for pid in (reader, *machines)]
    log = begin(kept, spill)
    found = log.recent(None, EVERYTHING)
    if database is not None:
        found = Store(database, Retention(EVERYTHING)).newest(None, EVERYTHING)
    texts = {
        name: [each["message"].split("x")[0].rstrip() for each in found if each["machine"] == name] for name in MACHINES
    }
    word = {"NUMBERED": "record", "CONSOLE": "line"}
    return {
        "killed": killed,
        "spilt": spilt,
        "left": sum(len(files) for _, _, files in os.walk(spill or "/nowhere")),
        "status": status,
        "run": log.run == run,
        "last": log.last,
        "unkept": log.keeper.unkept,
        "contiguous": all(b["seq"] == a["seq"] + 1 for a, b in itertools.pairwise(found)),
        "complete": {
            name: texts[name] == [f"{word[name]} {number}" for number in range(1, count + 1)] for name in MACHINES
        },
        "counts": {name: len(texts[name]) for name in MACHINES},
        "odd": [each["message"][:300] for each in found if not each["message"].startswith(("record ", "line "))][:10],
        "open": len(log.unread()),
    }


if __name__ == "__main__":
    kills, records, seed, *rest = sys.argv[1:]
    database, spill = ([*rest, None, None])[:2]
    print(json.dumps(main(int(kills), int(records), int(seed), database, spill)))
