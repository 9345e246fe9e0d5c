"""Storage, disks and shares of real systems, with control groups and on a host that has none."""

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from tests.cp.host.driving import PROGRAMS

from retinue.cp.host.controllers import find
from retinue.cp.host.launch import launch
from retinue.cp.watch import mebibytes
from retinue.pipes import Path as Pipe
from retinue.pipes import PathError, SocketTransport, open_path, socket_pair

PATIENCE = 40
ENTRIES = {"groups": "retinue.cp.main:main", "none": "ungrouped:main"}
GROUPS = pytest.mark.parametrize("entry", ENTRIES)
present = find()

GREEDY = """\
import mmap, os
import attrs
import trio
from retinue.svm import Machine

@attrs.frozen
class Config:
    kind: str

kept = []
PIECE = 1 << 20

def take(kind):
    if kind == "private":
        kept.append(bytearray(b"x") * PIECE)
    elif kind == "shared":
        memory = mmap.mmap(-1, PIECE)
        kept.append(memory)
        for at in range(0, PIECE, 4096):
            memory[at] = 1
    elif kind == "memfd":
        descriptor = os.memfd_create("greedy")
        os.write(descriptor, b"x" * PIECE)
        kept.append(descriptor)

async def main(vm: Machine[Config]) -> None:
    await vm.ready()
    while True:
        for _ in range(4):
            take(vm.config.kind)
        await trio.sleep(0.02)
"""

QUIET = """\
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    await vm.stopping.wait()
"""

WRITER = """\
import os
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    folder = vm.disk("a")
    await vm.ready()
    number = len(os.listdir(folder))
    if number == 0:
        while True:
            number += 1
            (folder / f"file-{number}").write_bytes(b"x" * 262144)
            if number > 3:
                await trio.sleep(0.02)
    await vm.stopping.wait()
"""


T = TypeVar("T")


async def found_by(look: Callable[[], Awaitable[T | None]]) -> T:
    """What ``look`` finds, which looks again and again at what happens in other processes."""
    while True:
        if found := await look():
            return found
        await trio.sleep(0.02)


class System:
    """A system that runs, seen from its console."""

    def __init__(self, path: Pipe, folder: Path) -> None:
        self.path = path
        self.state = folder / "state"

    async def started(self) -> bool:
        return (await self.path.call(["status", {}]))["state"] in ("READY", "FAILED")

    async def machine(self, name: str) -> dict[str, Any]:
        listing = await self.path.call(["ps", {}])
        (found,) = [each for each in listing["machines"] if each["name"] == name]
        return dict(found)

    async def until(self, name: str, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The line of a machine in ``ps`` as soon as it fits."""

        async def look() -> dict[str, Any] | None:
            found = await self.machine(name)
            return found if condition(found) else None

        return await found_by(look)

    async def records(self) -> list[str]:
        answer = await self.path.call(["logs", {"count": 500}])
        return [str(record["message"]) for record in answer["records"]]


Up = Callable[..., AbstractAsyncContextManager[System]]


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Up:
    """``async with up(entry, machines, name=source, ...) as system``: one that is READY."""
    monkeypatch.syspath_prepend(PROGRAMS)

    @contextlib.asynccontextmanager
    async def begin(entry: str, machines: str, **programs: str) -> AsyncIterator[System]:
        name = "T" + secrets.token_hex(3).upper()
        for folder in ("state", "runtime"):
            (tmp_path / folder).mkdir()
        for program, source in programs.items():
            (tmp_path / f"{program}.py").write_text(source)
        file = tmp_path / "it.toml"
        file.write_text(f'[system]\nname = "{name}"\n{machines}')
        ours, theirs = socket_pair()
        with contextlib.ExitStack() as stack:
            log = stack.enter_context((tmp_path / "nucleus.log").open("wb"))
            with theirs:
                nucleus = launch(
                    system=name,
                    topology=str(file),
                    runtime=str(tmp_path / "runtime"),
                    state=str(tmp_path / "state"),
                    console=theirs,
                    stderr_file=log,
                    network=False,
                    cp_entry=ENTRIES[entry],
                )
            stack.callback(nucleus.wait)
            stack.callback(nucleus.kill)
            async with open_path(SocketTransport(ours), name="console") as path:
                system = System(path, tmp_path)
                with trio.fail_after(PATIENCE):
                    await found_by(system.started)
                    yield system
                    with contextlib.suppress(PathError):
                        await path.call(["down", {"force": True}])
                    await trio.to_thread.run_sync(nucleus.wait)
        if said := (tmp_path / "nucleus.log").read_text():
            print(said)

    return begin


def test_sizes_are_told_as_people_write_them() -> None:
    assert mebibytes(64 << 20) == "64 MiB"
    assert mebibytes((120 << 20) + 300_000) == "120.3 MiB"


# -- storage --------------------------------------------------------------------------------------------------------


@GROUPS
async def test_out_of_storage_is_the_end_of_that_machine_alone(up: Up, entry: str) -> None:
    """Whatever kind of storage it is."""
    kinds = ("private", "shared", "memfd")
    machines = """
        [machines.QUIET]
        program = "quiet"
        storage = "64M"
        """
    for kind in kinds:
        machines += f"""
        [machines.{kind.upper()}]
        program = "greedy"
        storage = "64M"
        restart = "never"
        config.kind = "{kind}"
        """
    async with up(entry, machines, greedy=GREEDY, quiet=QUIET) as system:
        greedy = [await system.until(kind.upper(), lambda line: line["state"] == "BROKEN") for kind in kinds]
        quiet = await system.machine("QUIET")
    assert (quiet["state"], quiet["generation"]) == ("READY", 1)
    for each in greedy:
        assert each["cause"].startswith("out of storage: "), each
        assert " 64 MiB" in each["cause"]
        if entry == "groups" and present["memory"].version:
            assert "MiB)" in each["cause"]


@GROUPS
async def test_limits_that_are_not_enforced_are_told_once(up: Up, entry: str) -> None:
    machines = """
        [machines.ONE]
        program = "quiet"
        cpu = "30%"
        disks.a = { size = "1M" }
        [machines.TWO]
        program = "quiet"
        """
    async with up(entry, machines, quiet=QUIET) as system:
        records = await system.records()
        limits = {limit["limit"]: limit for limit in (await system.path.call(["status", {}]))["limits"]}
    told = [record for record in records if "not enforced" in record]
    assert any(record.startswith("the size of disks (ONE) is not enforced but watched") for record in told)
    assert any(record.startswith("cpu (ONE) is not enforced") for record in told) is not limits["cpu"]["enforced"]
    stored = [record for record in told if record.startswith("storage (every machine) is not enforced")]
    assert len(stored) == (not limits["storage"]["enforced"])
    if entry == "none":
        assert not limits["storage"]["enforced"]
        assert not limits["cpu"]["enforced"]


# -- disks ----------------------------------------------------------------------------------------------------------


@GROUPS
async def test_who_fills_a_disk_is_ended_until_there_is_room_whoever_owns_it(up: Up, entry: str) -> None:
    """And nobody else, not even the owner."""
    machines = """
        [machines.WRITER]
        program = "writer"
        pause = "1s"
        disks.a = { size = "1M" }
        [machines.OWNER]
        program = "quiet"
        disks.a = { size = "1M", linked_by = { GUEST = "rw" } }
        [machines.GUEST]
        program = "writer"
        restart = "never"
        links.a = { disk = "OWNER.a", mode = "rw" }
        """
    async with up(entry, machines, quiet=QUIET, writer=WRITER) as system:
        guest = await system.until("GUEST", lambda line: line["state"] == "BROKEN")
        owner = await system.machine("OWNER")
        assert guest["cause"].startswith("disk OWNER.a is full: ")
        assert (owner["state"], owner["generation"]) == ("READY", 1)

        await system.until("WRITER", lambda line: "remove files in" in (line["cause"] or ""))
        texts = await system.records()
        died = [text for text in texts if text.startswith("WRITER died: disk a is full: ")]
        assert died
        assert died[0].endswith(" MiB of 1 MiB")
        refused = next(text for text in texts if text.startswith("WRITER") and "remove files in" in text)
        folder = system.state / "disks" / "WRITER" / "a"
        assert refused.endswith(f"remove files in {folder}, or raise the size of disks.a of WRITER")
        for file in sorted(folder.iterdir())[1:]:
            file.unlink()
        await system.until("WRITER", lambda line: line["state"] == "READY")


# -- shares ---------------------------------------------------------------------------------------------------------


async def test_shares_without_groups_are_weights_of_sessions(up: Up) -> None:
    """The largest has the weight of an ordinary session, half of it is three steps."""
    machines = """
        [machines.HALF]
        program = "quiet"
        share = 100
        [machines.WHOLE]
        program = "quiet"
        share = 200
        """
    async with up("none", machines, quiet=QUIET) as system:
        mechanism = next(
            limit["mechanism"]
            for limit in (await system.path.call(["status", {}]))["limits"]
            if limit["limit"] == "share"
        )
        pids = {name: (await system.machine(name))["pid"] for name in ("HALF", "WHOLE")}

        def values() -> list[int]:
            if mechanism == "autogroup":
                texts = [Path(f"/proc/{pid}/autogroup").read_text() for pid in pids.values()]
                return [int(text.rpartition(" ")[2]) for text in texts]
            return [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids.values()]

        async def set_right() -> bool:
            return values() == [3, 0]

        await found_by(set_right)
