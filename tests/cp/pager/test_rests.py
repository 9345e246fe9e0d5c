"""Machines of real processes that start on demand, with room for two of three: idle ones rest, and lose nothing."""

from tests.cp.pager.test_real_storage import no_swap
from tests.systems import Bench, wait_for

__all__ = ["no_swap"]

SHELF = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    ballast = bytearray(b"x") * (40 << 20)
    kept = await vm.segment("kept", 1 << 20, keep=True)
    answers = 0
    go = trio.Event()

    async def answer(message):
        nonlocal answers
        verb, value = message.body
        if verb == "put":
            kept[-8:] = value
        elif verb == "wait":
            await go.wait()
        elif verb == "go":
            go.set()
        answers += 1
        return [answers, bytes(kept[-8:])]

    await vm.serve(answer)
"""

READER = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    a, again, b = [await vm.connect(name) for name in ("a", "a", "b")]

    async def slow():
        print("A:", await a.call(["wait", None]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow)
        print("B:", await b.call(["put", b"all of B"]))
        c = await vm.connect("c")
        print("C:", await c.call(["put", b"all of C"]))
        await again.call(["go", None])
    print("B:", await b.call(["get", None]))
    print("C:", await c.call(["get", None]))
    print("A:", await a.call(["get", None]))
    print("that is all")
    await vm.stopping.wait()
"""

TOPOLOGY = """\
[system]
name = "{name}"
storage = "128M"

[machines.READER]
program = "reader"
uses = {{ a = "A", b = "B", c = "C" }}

""" + "".join(
    f'[machines.{name}]\nprogram = "shelf"\nstart = "on-demand"\nsegments = "1M"\nstorage = "96M"\n' for name in "ABC"
)


def test_idle_machines_rest_for_one_that_is_called(bench: Bench, no_swap: None) -> None:
    """The one that has a call in flight stays; the other one is started again by a call, and has what it has kept."""
    bench.file.write_text(TOPOLOGY.format(name=bench.name))
    (bench.folder / "shelf.py").write_text(SHELF)
    (bench.folder / "reader.py").write_text(READER)
    bench.up()
    wait_for(lambda: any(record["message"] == "that is all" for record in bench.records("READER")))
    said = [record["message"] for record in bench.records("READER") if record["message"][1] == ":"]
    assert said[:3] == ["B: [1, b'all of B']", "C: [1, b'all of C']", f"A: [2, {bytes(8)!r}]"]
    assert said[3] == "B: [1, b'all of B']"
    assert said[4] in ("C: [1, b'all of C']", "C: [2, b'all of C']")
    events = [record["message"] for record in bench.records("CP") if "is STOPPING" in record["message"]]
    assert events
    assert events[0].startswith("B is STOPPING: rests: real storage was wanted, and nothing has passed for")
    assert not [record for record in bench.records("CP") if "over-committed" in record["message"]]
    machines = {machine["name"]: machine for machine in bench.ask("ps")["machines"]}
    assert sum(machine["state"] == "DORMANT" for machine in machines.values()) >= 1
    assert {machine["restarts"] for machine in machines.values()} == {0}
    assert machines["B"]["generation"] == 2
    assert "rests: real storage was wanted" in bench.run("why", "B").stdout
    assert bench.run("down").returncode == 0
    bench.assert_gone()
