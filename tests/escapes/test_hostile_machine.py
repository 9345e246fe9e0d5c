"""A machine that has been taken over writes anything to everything it has; it harms nobody but itself.

``RETINUE_HOSTILE_PACKETS=1000000`` makes a long run of it, ``RETINUE_HOSTILE_SEED`` another one.
"""

import contextlib
import mmap
import os
import pathlib
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

import attrs
import pytest
import trio
from tests.escapes.prison import begin, wait_until_ready
from tests.leaks import kinds_of
from tests.systems import LIMIT, Bench, open_bench, wait_for

from retinue.cp.circuit import MAX_TAKEN
from retinue.cp.operator_socket import connect_operator
from retinue.pipes import Path, PathError, SocketTransport, open_path

PACKETS: Final = int(os.environ.get("RETINUE_HOSTILE_PACKETS", "2000"))
# Each violation on its control path is its end, so that it needs some before there are all kinds.
CONTROL: Final = max(PACKETS, 5000)
SEED: Final = int(os.environ.get("RETINUE_HOSTILE_SEED", "1"))
# Packets to each descriptor before anything is measured.
WARM_UP: Final = 500

# What the others may grow by, in MiB. The control program remembers what a machine has said (2,000 records and 2 MiB)
# and, for a minute, some 4,000 paths that it has had.
GROWTH: Final = {"CP": 24, "VICTIM": 8, "CALLER": 8, "GOOD": 4, "OTHER": 4}
# The same when the machine may have had as many paths at once as it could get: MAX_TAKEN / 2 of 20 KiB and more.
GROWTH_WITH_PATHS: Final = GROWTH | {"CP": 64, "VICTIM": 64}
# Seconds that a call between two others may take meanwhile.
LATENCY: Final = 2.0

GOOD = """\
import time
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    book = {}

    async def talk(edge):
        path = await vm.connect(edge)
        while True:
            begun = time.perf_counter()
            assert await path.call(begun) == begun
            calls, worst = book.get(edge, (0, 0.0))
            book[edge] = calls + 1, max(worst, time.perf_counter() - begun)
            await trio.sleep(0.001)

    async def tell(message):
        while len(book) < len(vm.edges):  # a call along each since it was last asked
            await trio.sleep(0.001)
        told = dict(book)
        book.clear()
        return told

    async with trio.open_nursery() as nursery:
        for edge in vm.edges:
            nursery.start_soon(talk, edge)
        await vm.serve(tell)
        nursery.cancel_scope.cancel()
"""

ECHO = """\
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    async def echo(message):
        return message.body
    await vm.serve(echo)
"""

CALLER = """\
import trio
from retinue.pipes import PathError
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    async def call_again_and_again(message):
        while True:
            with trio.move_on_after(1):
                try:
                    path = await vm.connect("hostile")
                    try:
                        with trio.move_on_after(0.2):
                            await path.call("hello")
                    finally:
                        path.sever()
                except PathError:
                    await trio.sleep(0.001)
    await vm.serve(call_again_and_again)
"""


def write(bench: Bench) -> None:
    hostile = pathlib.Path(__file__).with_name("hostile.py").read_text()
    for name, source in {"hostile": hostile, "good": GOOD, "echo": ECHO, "caller": CALLER}.items():
        (bench.folder / f"{name}.py").write_text(source)
    bench.file.write_text(
        f"""
        [system]
        name = "{bench.name}"
        [machines.HOSTILE]
        program = "hostile"
        config = {{ seed = {SEED}, control = {CONTROL} }}
        disks.d = {{}}
        pause = "0s"
        uses = {{ victim = "VICTIM", cp = "*CP", log = "*LOG" }}
        [machines.VICTIM]
        program = "echo"
        [machines.OTHER]
        program = "echo"
        [machines.CALLER]
        program = "caller"
        uses.hostile = "HOSTILE"
        [machines.GOOD]
        program = "good"
        uses = {{ victim = "VICTIM", other = "OTHER" }}
        """
    )


@attrs.frozen
class State:
    """What a process costs: MiB of real storage, and its descriptors."""

    rss: float
    descriptors: Counter[str]


class Scene:
    """A running system with a hostile machine in it, as an operator sees it."""

    def __init__(self, bench: Bench, operator: Path) -> None:
        self.bench = bench
        self._operator = operator
        self.slowest = 0.0  # listing

    async def ask(self, machine: str, body: Any) -> Any:
        """Ask one of its machines something, on a path of its own."""
        reply = await self._operator.call_reply(["connect", {"machine": machine}])
        async with open_path(SocketTransport(socket.socket(fileno=reply.descriptors[0]))) as path:
            return await path.call(body)

    async def machines(self) -> dict[str, dict[str, Any]]:
        """What ``retinue ps`` says."""
        begun = time.perf_counter()
        listing = await self._operator.call(["ps", {}])
        self.slowest = max(self.slowest, time.perf_counter() - begun)
        return {each["name"]: each for each in listing["machines"]}

    async def records(self, machine: str) -> list[dict[str, Any]]:
        """What ``retinue logs`` says of a machine."""
        found: list[dict[str, Any]] = []
        more = None
        while True:
            page = await self._operator.call(["logs", {"machine": machine, "before": more}])
            found[:0] = page["records"]
            if (more := page["more"]) is None:
                return found

    async def states(self) -> dict[str, State]:
        """Of the control program and all machines but the hostile one."""
        pids = {name: each["pid"] for name, each in (await self.machines()).items() if name != "HOSTILE"}
        return {name: state(pid) for name, pid in {"CP": self.bench.cp_pid(), **pids}.items()}

    async def attack(self, target: Any, count: int) -> dict[str, int]:
        """Have the hostile machine write that many packets; what became of them."""
        async with trio.open_nursery() as nursery:
            if target == "":
                nursery.start_soon(self.ask, "CALLER", "call HOSTILE")  # until it is cancelled
            done = await self.ask("HOSTILE", ["attack", target, count])
            nursery.cancel_scope.cancel()
        assert sum(done.values()) - done.get("paths", 0) == count
        return dict(done)

    async def while_watched(self, attack: Callable[[], Awaitable[Any]]) -> Any:
        """Run it, while somebody lists the system again and again."""

        async def watch() -> None:
            while True:
                await self.machines()
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            result = await attack()
            nursery.cancel_scope.cancel()
        return result

    async def check_neighbours(self) -> float:
        """The others have talked all the time since this was last asked; returns the slowest call."""
        told = await self.ask("GOOD", "told")
        assert told.keys() == {"victim", "other"}
        worst = max(worst for _, worst in told.values())
        assert worst < LATENCY
        return float(worst)

    async def settled(self, before: dict[str, State]) -> dict[str, State]:
        """As soon as nobody has more descriptors than before."""
        with trio.move_on_after(LIMIT):
            while True:
                after = await self.states()
                if all(after[name].descriptors.total() <= old.descriptors.total() for name, old in before.items()):
                    break
        for name, one in after.items():
            old = before[name].descriptors
            assert one.descriptors.total() <= old.total(), f"{name} has more: {one.descriptors - old}"
        return after


def state(pid: int) -> State:
    status = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return State(int(status["VmRSS"].split()[0]) / 1024, kinds_of(pid))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A system with a hostile machine, for all tests of this module."""
    with open_bench(tmp_path_factory.mktemp("hostile")) as bench:
        write(bench)
        wait_until_ready(bench, begin(bench))
        yield bench


def on_scene(bench: Bench, what: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        with trio.fail_after(LIMIT + PACKETS / 500):
            async with open_path(SocketTransport(connect_operator(bench.runtime / bench.name))) as operator:
                await what(Scene(bench, operator))

    trio.run(run)


async def check_records(scene: Scene, machine: str, who: str, paths: int, seconds: float) -> int:
    """The machine has told who broke which rule, every time and not more often than once a second."""
    with trio.fail_after(LIMIT):
        while True:  # the last of them a second later
            found = [record for record in await scene.records(machine) if record["fields"].get(who) == "HOSTILE"]
            found = [record for record in found if "rule" in record["fields"]]
            if sum(record["fields"]["count"] for record in found) > 0.1 * paths:
                break
            await trio.sleep(0.05)
    assert all("HOSTILE broke the protocol" in record["message"] for record in found)
    assert all(record["fields"]["rule"] in record["message"] for record in found)
    assert len(found) <= 2 * (seconds + 2)
    assert sum(record["fields"]["count"] for record in found) <= paths
    return len(found)


def test_anything_written_to_everything(stage: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads it ends that path with a record and lives on: as large as before, and as quick for all others."""
    on_scene(stage, partial(_anything_to_everything, lambda *text: _tell(capsys, *text)))


def _tell(capsys: pytest.CaptureFixture[str], *text: object) -> None:
    if PACKETS >= 100_000:
        with capsys.disabled():
            print(*text, flush=True)
    else:
        print(*text)


async def _anything_to_everything(tell: Callable[..., None], scene: Scene) -> None:
    tell("seed", SEED, "packets", PACKETS)
    await scene.check_neighbours()  # they have their paths
    quiet = await scene.states()
    (pid,) = [each["pid"] for name, each in (await scene.machines()).items() if name == "HOSTILE"]
    born_with = await scene.ask("HOSTILE", ["descriptors"])
    assert set(born_with) <= set(map(int, os.listdir(f"/proc/{pid}/fd")))
    targets: list[Any] = [*(each for each in born_with if each != 3), "victim", "cp", "log", ""]
    assert {0, 1, 2, 4} < set(targets)
    paths: dict[Any, int] = {}
    begun = time.monotonic()
    for target in targets:
        done = await scene.attack(target, WARM_UP)
        paths[target] = done.pop("paths", 0)
        tell(f"{target!r:9} {paths[target]} paths, {done}")
    await scene.check_neighbours()
    before = await scene.settled(quiet)

    async def attack() -> None:
        for target in targets:
            since = time.monotonic()
            done = await scene.attack(target, PACKETS)
            more = done.pop("paths", 0)
            paths[target] += more
            worst = await scene.check_neighbours()
            took = time.monotonic() - since
            tell(f"{target!r:9} {more} paths, {done}, {took:.1f} s, slowest call {worst * 1000:.0f} ms")

    await scene.while_watched(attack)
    after = await scene.settled(before)
    machines = await scene.machines()
    assert {each["generation"] for each in machines.values()} == {1}
    await _check_growth(tell, scene, before, after)

    seconds = time.monotonic() - begun
    for machine, who, count in (("VICTIM", "peer", "victim"), ("CALLER", "peer", ""), ("CP", "of", "cp")):
        all_paths = paths[count] + (paths["log"] if machine == "CP" else 0)
        number = await check_records(scene, machine, who, all_paths, seconds)
        tell(f"{machine}: {number} records of {paths[count]} paths")
    await _attack_control(tell, scene, before)


async def _check_growth(
    tell: Callable[..., None],
    scene: Scene,
    before: dict[str, State],
    after: dict[str, State],
    most: dict[str, int] = GROWTH,
) -> None:
    tell(f"slowest listing {scene.slowest:.1f} s")
    for name, old in before.items():
        new = after[name]
        counts = f"{old.descriptors.total()} -> {new.descriptors.total()}"
        tell(f"{name}: {old.rss:.1f} -> {new.rss:.1f} MiB, {counts} descriptors")
        assert new.rss - old.rss < most[name], name


async def _attack_control(tell: Callable[..., None], scene: Scene, before: dict[str, State]) -> None:
    """The machine is ended for each violation and started again, until it has written everything."""
    since = time.monotonic()
    file = scene.bench.folder / "state" / "retinue" / scene.bench.name / "disks" / "HOSTILE" / "d" / "control"
    file.write_bytes(bytes(mmap.PAGESIZE))
    file.chmod(0o666)  # as root: the machine has a user of its own
    os.kill((await scene.machines())["HOSTILE"]["pid"], signal.SIGKILL)

    async def until_over() -> tuple[int, int, int]:
        with file.open("rb") as disk, mmap.mmap(disk.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            book = memoryview(mapping).cast("Q")
            try:
                while True:
                    ready = (await scene.machines())["HOSTILE"]["state"] == "READY"
                    if ready and book[0] + book[1] >= CONTROL:
                        return book[0], book[1], book[2]
                    await trio.sleep(0.01)
            finally:
                book.release()

    accepted, refused, generations = await scene.while_watched(until_over)
    worst = await scene.check_neighbours()
    tell(
        f"control: {generations} generations, {accepted} accepted, {refused} refused, "
        f"{time.monotonic() - since:.1f} s, slowest call {worst * 1000:.0f} ms"
    )
    after = await scene.settled(before)
    await _check_growth(tell, scene, before, after, GROWTH_WITH_PATHS)
    machines = await scene.machines()
    assert {name: each["generation"] for name, each in machines.items() if name != "HOSTILE"} == {
        name: 1 for name in machines if name != "HOSTILE"
    }
    ends = [each["message"] for each in await scene.records("HOSTILE") if "HOSTILE died" in each["message"]]
    rules = [end for end in ends if "it broke the protocol on its control path: " in end]
    tell(f"{len(ends)} deaths are known, {len(rules)} of them for a rule")
    assert rules


def test_paths_that_are_held_and_asks_by_the_thousand(stage: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine gets its share of another's paths; its asks take their turns with those of others."""
    on_scene(stage, partial(_hold_and_flood, lambda *text: _tell(capsys, *text)))


async def _hold_and_flood(tell: Callable[..., None], scene: Scene) -> None:
    generations = {name: each["generation"] for name, each in (await scene.machines()).items()}
    await scene.check_neighbours()
    quiet = await scene.states()
    held = await scene.ask("HOSTILE", ["hold", "victim"])
    worst = await scene.check_neighbours()
    tell(f"{held}, slowest call {worst * 1000:.0f} ms")
    assert (held["held"], held["code"]) == (MAX_TAKEN // 2, "exhausted")
    before = await scene.settled(quiet)
    done = await scene.while_watched(partial(scene.ask, "HOSTILE", ["flood", 1]))
    worst = await scene.check_neighbours()
    tell(f"{done}, slowest call {worst * 1000:.0f} ms, slowest listing {scene.slowest:.1f} s")
    assert {"granted", "denied", "lost", "unknown-verb"} <= done.keys()
    after = await scene.settled(before)
    await _check_growth(tell, scene, before, after)
    machines = await scene.machines()
    assert {name: each["generation"] for name, each in machines.items()} == generations
    with trio.fail_after(LIMIT):  # the last of them is told a second later
        while True:
            told = [record for record in await scene.records("CP") if "asked for an edge" in record["message"]]
            if sum(record["fields"]["count"] for record in told) >= done["denied"]:
                break
            await trio.sleep(0.05)


@pytest.mark.parametrize("body", [["connect", {"edge": "victim", "wait": True}], ["ready", {}], None])
def test_one_way_ask_is_the_end_of_who_asks(stage: Bench, body: Any) -> None:
    """And of nobody else: it cannot be answered, least of all with a descriptor."""

    async def say(scene: Scene) -> None:
        while (before := await scene.machines())["HOSTILE"][
            "state"
        ] != "READY":  # the test before this one has ended it
            await trio.lowlevel.checkpoint()
        with contextlib.suppress(PathError):  # it may die before it can answer
            await scene.ask("HOSTILE", ["say", body])
        while (await scene.machines())["HOSTILE"]["generation"] == before["HOSTILE"]["generation"]:
            await trio.lowlevel.checkpoint()
        machines = await scene.machines()
        changed = {name for name, each in machines.items() if each["generation"] > before[name]["generation"]}
        assert changed == {"HOSTILE"}
        assert machines["HOSTILE"]["cause"].startswith("it broke the protocol on its control path: ")
        await scene.check_neighbours()

    on_scene(stage, say)


def test_it_stops_in_order_after_all_that(stage: Bench) -> None:
    assert stage.run("down").returncode == 0
    wait_for(lambda: not stage.processes())
    stage.started[0].wait()
    stage.assert_gone()
