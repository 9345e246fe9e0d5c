"""A program for test_syslog_crashes.py: a system logs without end, and its syslog machine has all that can befall it.

In each round one of three things happens while two machines log: SYSLOG is ended by SIGKILL in the middle of its work,
its disk takes nothing for some time (its files may not grow), or a machine that logs is ended by SIGKILL. Then the
system goes down in order. Prints what is in the store, as JSON.

    python crashed_syslog.py FOLDER ROUNDS SEED
"""

import collections
import contextlib
import json
import os
import pathlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from typing import Any

import trio

from retinue.cp.operator_socket import connect_operator
from retinue.pipes import SocketTransport, open_path

# Logs numbered records, some hundred at a time, and says at its end how many there were.
PROGRAM = """\
import logging
import trio
from retinue.svm import Machine

log = logging.getLogger("numbers")

async def main(vm: Machine) -> None:
    await vm.ready()
    number = 0
    while not vm.stopping.is_set():
        for _ in range(100):
            number += 1
            log.info("number %d", number)
        await trio.sleep(0.01)
    log.info("in all %d", number)
"""

# The syslog machine itself, which for as long as a file is on its disk can write nothing more.
LIMITED = """\
import pathlib
import resource
import trio
from retinue.services import syslog
from retinue.svm import Machine

Config = syslog.Config

async def limit(disk: pathlib.Path) -> None:
    (_, most), full = resource.getrlimit(resource.RLIMIT_FSIZE), False
    while True:
        if (disk / "full").exists() != full:
            full = not full
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 if full else most, most))
        await trio.sleep(0.01)

async def main(vm: Machine[Config]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limit, vm.disk("a"))
        await syslog.main(vm)
        nursery.cancel_scope.cancel()
"""

TOPOLOGY = """\
[system]
name = "{name}"
syslog = "SYSLOG"

[machines.SYSLOG]
program = "limited"
disks.a = {{}}
pause = "0s"

[machines.STEADY]
program = "counting"

[machines.VICTIM]
program = "counting"
pause = "0s"
"""

WHAT = ("syslog", "disk", "victim")
RETINUE = (sys.executable, "-P", "-c", "from retinue.cp.cli import main; raise SystemExit(main())")
# Seconds that a step may take.
LIMIT = 60.0


class Round:
    """A system, and what befalls it."""

    def __init__(self, folder: pathlib.Path, seed: int) -> None:
        self.state = folder / "state"
        self.random = random.Random(seed)
        self.done: collections.Counter[str] = collections.Counter()

    def retinue(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [*RETINUE, "--state", str(self.state), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL)

    def ready(self, name: str, generation: int = 0) -> tuple[int, int]:
        """Generation and process id of a machine, once it is ready with a later generation."""

        async def look() -> tuple[int, int]:
            with trio.fail_after(LIMIT):
                async with open_path(SocketTransport(connect_operator(self.state / "run"))) as path:
                    while True:
                        for each in (await path.call(["ps", {}]))["machines"]:
                            if each["name"] == name and each["state"] == "READY" and each["generation"] > generation:
                                return each["generation"], each["pid"]
                        await trio.sleep(0.01)
            raise AssertionError

        return trio.run(look)

    def befall(self, what: str) -> None:
        """One of WHAT, at some time in the next tenth of a second."""
        generation, pid = self.ready("VICTIM" if what == "victim" else "SYSLOG")
        time.sleep(self.random.uniform(0, 0.1))
        if what == "disk":
            full = self.state / "disks" / "SYSLOG" / "a" / "full"
            full.touch()
            time.sleep(self.random.uniform(0.1, 0.3))
            full.unlink()
        else:
            os.kill(pid, signal.SIGKILL)
            self.ready("VICTIM" if what == "victim" else "SYSLOG", generation)
        self.done[what] += 1

    def found(self) -> dict[str, Any]:
        """What is in the store, by machine and generation."""
        with contextlib.closing(sqlite3.connect(self.state / "disks" / "SYSLOG" / "a" / "records.sqlite3")) as database:
            query = "SELECT seq, machine, generation, logger, message, fields FROM records ORDER BY seq"
            rows = database.execute(query).fetchall()
        numbers: dict[tuple[str, int], list[int]] = collections.defaultdict(list)
        lost: collections.Counter[str] = collections.Counter()
        said: collections.Counter[str] = collections.Counter()
        complaints = gaps = last = 0
        for seq, machine, generation, logger, message, fields in rows:
            gaps += seq - last - 1
            last = seq
            if logger == "numbers" and message.startswith("number "):
                numbers[machine, generation].append(int(message.split()[1]))
            elif logger == "numbers":
                said[machine] += int(message.split()[2])
            elif logger == "retinue.cp" and "lost" in fields:
                lost[machine] += json.loads(fields)["lost"]
            complaints += machine == "SYSLOG" and "cannot be stored" in message
        missing: collections.Counter[str] = collections.Counter()
        for (machine, _), each in numbers.items():
            missing[machine] += each[-1] - len(each)
        steady = numbers["STEADY", 1]
        return {
            "records": sum(map(len, numbers.values())),
            "generations": len(numbers),
            "in order": all(each == sorted(set(each)) for each in numbers.values()),
            "steady said": said["STEADY"],
            "steady stored": len(steady),
            "missing": dict(missing),
            "lost": dict(lost),
            "numbers not stored": gaps,
            "complaints": complaints,
        }


def main(folder: pathlib.Path, rounds: int, seed: int) -> dict[str, Any]:
    """Run it; what there is at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "counting.py").write_text(PROGRAM)
    (folder / "limited.py").write_text(LIMITED)
    (folder / "it.toml").write_text(TOPOLOGY.format(name="CRASHED"))
    going = Round(folder, seed)
    up = going.retinue("up", "-d", str(folder / "it.toml"))
    if up.returncode:
        raise RuntimeError(up.stderr)
    try:
        for number in range(rounds):
            going.befall(WHAT[number % len(WHAT)])
        going.ready("SYSLOG")
        down = going.retinue("down")
    except BaseException:
        with contextlib.suppress(subprocess.TimeoutExpired):
            going.retinue("down", "--force")
        raise
    return {"done": dict(going.done), "down": down.returncode, **going.found()}


if __name__ == "__main__":
    where, count, begin = sys.argv[1:]
    print(json.dumps(main(pathlib.Path(where), int(count), int(begin))))
