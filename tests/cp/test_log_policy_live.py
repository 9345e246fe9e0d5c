"""Records of real machines while SYSLOG is away, is killed, or is too slow: all of them, in order, or counted."""

import contextlib
import json
import os
import pathlib
import signal
import sqlite3
from typing import Any

from tests.systems import Bench, wait_for

# It writes all that it has to say at once when it may, and then waits for its end.
FLOOD = """\
import logging
import trio
from retinue.svm import Machine

log = logging.getLogger("flood")
log.info("-1 born")

async def main(vm: Machine) -> None:
    await vm.ready()
    go = await vm.connect("go")
    await go.call("go")
    for number in range(COUNT):
        log.info("%d %s", number, "x" * 300)
        if number % 100 == 0:
            await trio.lowlevel.checkpoint()
    await go.call("done")
    await vm.stopping.wait()
"""

GATE = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    there = vm.disk("a") / "open"
    async def answer(message):
        if message.body == "go":
            while not there.exists():
                await trio.sleep(0.01)
        else:
            print(message.path.peer, "is done")
    await vm.serve(answer)
"""

LAST = """\
import logging, os, signal
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    for number in range(200):
        logging.info("last %d", number)
    print("the very last")
    os.kill(os.getpid(), signal.SIGKILL)
"""

QUIET = """\
import logging
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    number = 0
    while True:
        with trio.move_on_after(0.01):
            await vm.stopping.wait()
            return
        logging.info("%d quiet", number)
        number += 1
"""

SYSTEM = """\
[system]
name = "{name}"
syslog = "SYSLOG"
log = {{ buffer = "64K" }}
[machines.SYSLOG]
program = "retinue.services.syslog"
disks.a = {{}}
[machines.GATE]
program = "gate"
disks.a = {{}}
"""


class Log:
    """A system with a log, and machines that flood it when the gate is opened."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        (bench.folder / "gate.py").write_text(GATE)
        self.text = SYSTEM.format(name=bench.name)

    def add(self, name: str, source: str, log: str = "") -> None:
        (self.bench.folder / f"{name.lower()}.py").write_text(source)
        self.text += f'[machines.{name}]\nprogram = "{name.lower()}"\n'
        if "go" in source:
            self.text += 'uses.go = "GATE"\n'
        if log:
            self.text += f"log = {log}\n"

    @property
    def state(self) -> pathlib.Path:
        return next(pathlib.Path(self.bench.environ["XDG_STATE_HOME"]).rglob("disks")).parent

    def up(self) -> None:
        self.bench.file.write_text(self.text)
        self.bench.up()

    def open_gate(self) -> None:
        (self.state / "disks" / "GATE" / "a" / "open").touch()

    def said(self, *command: str) -> Any:
        done = self.bench.run(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def until_done(self, *names: str) -> None:
        wait_for(lambda: {f"{name} is done" for name in names} <= {each["message"] for each in self.heard("GATE")})

    def heard(self, machine: str) -> list[dict[str, Any]]:
        """Its newest records, as far as one answer holds them."""
        return list(self.bench.ask("logs", machine=machine, count=10_000)["records"])

    def spilt(self, machine: str) -> int:
        """Files with records of a machine that wait on the disk."""
        return len([*(self.state / "spill").glob(f"*/{machine}/*")])

    def stored(self, machine: str) -> list[str]:
        """The messages, in order, once each."""
        with contextlib.closing(sqlite3.connect(self.state / "disks" / "SYSLOG" / "a" / "records.sqlite3")) as database:
            rows = database.execute(
                "SELECT run, seq, message FROM records WHERE machine = ? ORDER BY rowid", [machine]
            ).fetchall()
        assert len({row[:2] for row in rows}) == len(rows)
        return [row[2] for row in rows]

    def lost(self, machine: str) -> dict[str, int]:
        with contextlib.closing(sqlite3.connect(self.state / "disks" / "SYSLOG" / "a" / "records.sqlite3")) as database:
            rows = database.execute("SELECT fields FROM records WHERE machine = ? AND fields LIKE '%lost%'", [machine])
            gaps = [json.loads(row[0]) for row in rows]
        found: dict[str, int] = {}
        for gap in gaps:
            found[gap["cause"]] = found.get(gap["cause"], 0) + gap["lost"]
        return found

    def numbers(self, machine: str) -> list[int]:
        words = [text.split()[0] for text in self.stored(machine)]
        return [int(word) for word in words if word.lstrip("-").isdecimal()]


def flood(count: int) -> str:
    return FLOOD.replace("COUNT", str(count))


def test_flood_while_syslog_is_away_and_the_control_program_is_killed(bench: Bench) -> None:
    """From birth on: spilt records are all stored, once and in order; dropped ones counted; who blocks waits."""
    log = Log(bench)
    log.add("SPILL", flood(3000), '{ policy = "spill" }')
    log.add("DROP", flood(3000), '{ policy = "drop" }')
    log.add("BLOCK", flood(3000), '{ policy = "block" }')
    log.up()
    log.said("stop", "SYSLOG")
    log.open_gate()
    log.until_done("SPILL", "DROP")
    assert log.spilt("SPILL") > 3
    before = bench.cp_pid()
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: bench.run("logs", "CP", "-n", "1").returncode == 0 and bench.cp_pid() != before)
    assert "BLOCK is done" not in log.said("logs", "GATE")
    log.said("start", "SYSLOG")
    log.until_done("BLOCK")
    log.said("down")
    everything = [-1, *range(3000)]
    assert log.numbers("SPILL") == everything
    assert log.numbers("BLOCK") == everything
    dropped = log.numbers("DROP")
    # Of the oldest some were on their way when SYSLOG was stopped: that control program keeps them.
    missing = [each for each in everything if each not in dropped]
    assert dropped == [each for each in everything if each not in missing]
    assert (len(missing), missing[-1] < 2999) == (log.lost("DROP")["buffer"], True)
    assert (log.lost("SPILL"), log.lost("BLOCK"), log.spilt("SPILL")) == ({}, {}, 0)


def test_what_a_system_could_not_store_is_stored_by_the_next_one(bench: Bench) -> None:
    """Its SYSLOG was away to the end."""
    log = Log(bench)
    log.add("SPILL", flood(1500))
    log.up()
    log.said("stop", "SYSLOG")
    log.open_gate()
    log.until_done("SPILL")
    log.said("down")
    assert log.spilt("SPILL") > 3
    (log.state / "disks" / "GATE" / "a" / "open").unlink()
    log.up()
    wait_for(lambda: log.spilt("SPILL") == 0)
    log.said("down")
    assert log.numbers("SPILL") == [-1, *range(1500), -1]
    # Also the last words of the first run, which SYSLOG had not heard.
    assert log.stored("CP").count(f"the system {bench.name} is STOPPED") == 1


def test_policy_is_set_in_place(bench: Bench) -> None:
    """A machine that stands still goes on when it may drop, and blocks again when it must."""
    log = Log(bench)
    log.add("BLOCK", flood(3000), '{ policy = "block", rate = "100000/s" }')
    log.up()
    log.said("stop", "SYSLOG")
    log.open_gate()
    wait_for(lambda: any(each["message"].startswith("100 ") for each in log.heard("BLOCK")))
    said = log.said("set", "BLOCK", "log.policy=drop", "log.rate=off")
    assert "log.policy: block -> drop" in said
    assert "log.rate: 100000/s -> off" in said
    log.until_done("BLOCK")
    log.said("start", "SYSLOG")
    log.said("down")
    numbers = log.numbers("BLOCK")
    assert numbers == sorted({*numbers})
    assert len(numbers) + sum(log.lost("BLOCK").values()) == 3001


def test_flood_neither_delays_nor_loses_what_another_says(bench: Bench) -> None:
    """SYSLOG is killed in the middle of it; every number is stored or counted, also of one that kills itself."""
    log = Log(bench)
    log.add("FLOOD", flood(12_000), '{ policy = "spill", rate = "6000/s" }')
    log.add("QUIET", QUIET)
    log.add("LAST", LAST)
    log.text += 'restart = "never"\n'
    log.up()
    log.open_gate()
    wait_for(lambda: any("xxx" in each["message"] for each in log.heard("FLOOD")))
    os.kill(bench.pid_of("SYSLOG"), signal.SIGKILL)
    log.until_done("FLOOD")
    log.said("down")
    quiet = log.numbers("QUIET")
    assert quiet == [*range(len(quiet))]
    assert log.lost("QUIET") == {}
    numbers = log.numbers("FLOOD")
    assert numbers == sorted({*numbers})
    assert len(numbers) + sum(log.lost("FLOOD").values()) == 12_001
    texts = log.stored("LAST")
    first = texts.index("last 0")
    assert texts[first : first + 201] == [*(f"last {number}" for number in range(200)), "the very last"]
