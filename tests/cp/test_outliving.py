"""What outlives what, with real processes: machines their control program, callers a machine, and nobody a hang."""

import json
import os
import signal
from typing import Any

import pytest
from tests.systems import Bench, wait_for

CALLER = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    path = await vm.connect("server")
    await vm.ready()
    number = 0
    while not vm.stopping.is_set():
        answer = await path.call(number)
        assert answer == number, (answer, number)
        print("answered", number)
        number += 1
        await trio.sleep(0.002)
"""

SERVER = """\
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    async def answer(message):
        return message.body
    await vm.serve(answer)
"""

BLOCKED = """\
import time
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    wait_for_ever()

def wait_for_ever():
    time.sleep(1000)
"""

BUSY = """\
import time
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        pass
    print("computed")
    await vm.stopping.wait()
"""


def listing(bench: Bench) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in bench.ask("ps")["machines"]}


def answered(bench: Bench) -> list[int]:
    """The numbers that the caller has told, in the order of its records."""
    messages = [record["message"] for record in bench.records("CALLER")]
    return [int(message.removeprefix("answered ")) for message in messages if message.startswith("answered ")]


def test_machines_paths_and_records_outlive_the_control_program(bench: Bench) -> None:
    """Killed over and over, also before another one waits: no machine notices, no record is missing."""
    bench.write(caller=CALLER, server=SERVER)
    bench.file.write_text(bench.file.read_text().replace('"caller"', '"caller"\nuses.server = "SERVER"'))
    bench.up()
    before = listing(bench)
    for _ in range(3):
        killed = bench.cp_pid()
        seen = len(answered(bench))
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda seen=seen: len(answered(bench)) > seen)  # type: ignore[misc]
        assert bench.cp_pid() != killed
    after = listing(bench)
    assert {name: each["pid"] for name, each in after.items()} == {name: each["pid"] for name, each in before.items()}
    numbers = answered(bench)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 100
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_an_upgrade_is_noticed_by_nobody(bench: Bench) -> None:
    bench.write(caller=CALLER, server=SERVER)
    bench.file.write_text(bench.file.read_text().replace('"caller"', '"caller"\nuses.server = "SERVER"'))
    bench.up()
    before, program = listing(bench), bench.cp_pid()
    done = bench.run("upgrade")
    assert done.returncode == 0, done.stderr
    assert bench.cp_pid() != program
    assert {name: each["pid"] for name, each in listing(bench).items()} == {
        name: each["pid"] for name, each in before.items()
    }
    numbers = answered(bench)
    assert numbers == list(range(len(numbers)))


def test_a_machine_that_blocks_is_ended_and_its_certificate_says_where(bench: Bench) -> None:
    bench.write(blocked=BLOCKED)
    bench.file.write_text(bench.file.read_text() + 'watchdog = "1s"\n')
    bench.up()
    wait_for(lambda: listing(bench)["BLOCKED"]["generation"] > 1)
    done = bench.run("why", "BLOCKED", "--json")
    assert done.returncode == 0, done.stderr
    certificate = json.loads(done.stdout)
    assert certificate["cause"] == "watchdog"
    assert "wait_for_ever" in certificate["traceback"]


def test_a_machine_that_computes_is_left_alone(bench: Bench) -> None:
    bench.write(busy=BUSY)
    bench.file.write_text(bench.file.read_text() + 'watchdog = "1s"\n')
    bench.up()
    wait_for(lambda: "computed" in [record["message"] for record in bench.records("BUSY")])
    assert listing(bench)["BUSY"]["generation"] == 1


@pytest.mark.parametrize("option", ["overlap", "stop-first"])
def test_a_replaced_machine_answers_every_call_once(bench: Bench, option: str) -> None:
    bench.write(caller=CALLER, server=SERVER)
    text = bench.file.read_text().replace('"caller"', '"caller"\nuses.server = "SERVER"')
    bench.file.write_text(text + f'replace = "{option}"\n')
    bench.up()
    caller = listing(bench)["CALLER"]["pid"]
    for _ in range(3):
        done = bench.run("replace", "SERVER")
        assert done.returncode == 0, done.stderr
    after = listing(bench)
    assert (after["CALLER"]["pid"], after["SERVER"]["generation"]) == (caller, 4)
    numbers = answered(bench)
    assert numbers == list(range(len(numbers)))
    edges = json.loads(bench.run("ps", "--edges", "--json").stdout)["edges"]
    (edge,) = [each for each in edges if each["to"] == "SERVER"]
    assert edge["meters"]["from"]["redelivered"] == 0
