"""Machines of real processes in less real storage than they want, on a host that may have no swap at all."""

import pathlib
from typing import Any

import pytest
from tests.systems import Bench, wait_for

GROWING = """\
import trio
from retinue.svm import Machine

MIB = 1 << 20

async def main(vm: Machine) -> None:
    held = [bytearray(b"x" * MIB) for _ in range({held})]

    def shrink(wanted: int) -> None:
        print("asked for", -(-wanted // MIB), "MiB")
        if {heeds}:
            held.clear()

    vm.on_shrink(shrink)

    async def answer(message):
        held.extend(bytearray(b"x" * MIB) for _ in range(message.body))
        return len(held)

    await vm.serve(answer)
"""

TOPOLOGY = """\
[system]
name = "{name}"
storage = "112M"

[machines.HIGH]
program = "high"
priority = 200

[machines.LOW]
program = "low"
priority = 50
reserve = "30M"

[machines.ASKER]
program = "asker"
priority = 300
uses.high = "HIGH"
"""

ASKING = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    path = await vm.connect("high")
    await trio.sleep({pause})
    print("HIGH has", await path.call({size}))
    await vm.stopping.wait()
"""


def write(bench: Bench, *, heeds: bool, size: int) -> None:
    bench.file.write_text(TOPOLOGY.format(name=bench.name))
    (bench.folder / "high.py").write_text(GROWING.format(held=20, heeds=False))
    (bench.folder / "low.py").write_text(GROWING.format(held=30, heeds=heeds))
    (bench.folder / "asker.py").write_text(ASKING.format(pause=0, size=size))


def storage(bench: Bench) -> dict[str, Any]:
    return dict(bench.ask("storage"))


@pytest.fixture
def no_swap() -> None:
    with open("/proc/swaps") as swaps:
        if len(swaps.readlines()) > 1:
            pytest.skip("this host has swap: nothing is over-committed here")


def test_real_machines_are_listed_asked_and_give_storage_back(bench: Bench, no_swap: None) -> None:
    """What a machine has allocated is resident; the table has a line for each; who gives something back lives on."""
    write(bench, heeds=True, size=40)
    bench.up()
    wait_for(lambda: any("HIGH has 60" in each["message"] for each in bench.records("ASKER")))
    told = storage(bench)
    machines = {machine["name"]: machine for machine in told["machines"]}
    assert told["storage"] == 112 << 20
    assert machines["HIGH"]["resident"] > 40 << 20
    assert machines["LOW"]["private"] <= machines["LOW"]["resident"] <= machines["LOW"]["instantiated"]
    assert machines["LOW"]["defined"] == 128 << 20
    assert told["totals"]["resident"] == sum(machine["resident"] for machine in told["machines"])
    wait_for(lambda: any("there is room in real storage again" in each["message"] for each in bench.records("CP")))
    told = storage(bench)
    assert {machine["generation"] for machine in told["machines"]} == {1}
    assert told["totals"]["resident"] <= 112 << 20
    lines = bench.run("ps", "--storage").stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["NAME", "HIGH", "LOW", "ASKER"]
    assert "of 112M resident; 384M defined" in lines[5]
    assert lines[7].startswith("paging by ")
    user = bench.run("indicate", "user", "low").stdout.splitlines()
    assert user[0] == "USERID=LOW      STATE=READY STOR=128M PRIO=50"
    assert user[1].startswith("PAGES: RES=")
    assert bench.run("indicate", "storage").stdout.splitlines()[0] == lines[0]
    assert bench.run("ps", "--storage", "--edges").returncode == 2
    table = bench.run("top", "-d", "0.2").stdout.splitlines()
    assert table[1].split()[3:7] == ["RESIDENT", "PAGED", "LIMIT", "PAGE/S"]
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_machine_of_lowest_priority_is_ended_and_started_again(bench: Bench, no_swap: None) -> None:
    """Its certificate says who wanted the storage, and the others never notice."""
    write(bench, heeds=False, size=50)
    bench.up()
    deaths = pathlib.Path(bench.environ["XDG_STATE_HOME"]) / "retinue" / bench.name / "deaths" / "LOW.jsonl"
    wait_for(deaths.exists)
    why = bench.run("why", "LOW").stdout
    assert "all machines together needed more real storage than there is" in why
    assert "nobody has a lower priority than 50" in why
    wait_for(lambda: {machine["name"]: machine["state"] for machine in storage(bench)["machines"]}["LOW"] == "WAITING")
    told = storage(bench)
    (low,) = [machine for machine in told["machines"] if machine["name"] == "LOW"]
    assert "real storage" in low["held"]
    assert {machine["generation"] for machine in told["machines"] if machine["name"] != "LOW"} == {1}
    logs = bench.run("logs").stdout
    assert "asked for" in logs
    assert "no machine is started before there is room" in logs
    assert "it is started again when there is room" in bench.run("why", "LOW").stdout
    assert bench.run("down").returncode == 0
    bench.assert_gone()
