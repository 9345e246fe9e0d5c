"""Records on their way to what keeps them, in one process: for tests of what becomes of them."""

import pathlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgpack
import pytest
import trio
from tests.cp.keepers import handing_over, served

from retinue.cp import keeper as keeping
from retinue.cp.directory.model import LogPolicy, LogRate
from retinue.cp.log_policy import LogPolicies
from retinue.cp.records import Record
from retinue.cp.syslog import Syslog
from retinue.cp.tape import record_of
from retinue.pipes import Message, Path, wire

K = 1024
EVERYTHING = 1_000_000
EVER = LogRate(10, 3600.0)


def policies(policy: LogPolicy, *names: str) -> LogPolicies:
    made = LogPolicies()
    made._of.update(dict.fromkeys(names or ("M",), policy))
    return made


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(number: int, text: str = "m") -> bytes:
    return wire.encode([wire.Kind.SEND, number, [1.5, 6, "x", text, {}]])


async def until(condition: Callable[[], bool]) -> None:
    """Poll for what happens in another thread."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.001)


def there(folder: pathlib.Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


class Store:
    """What keeps records, when it is let to."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.runs: list[str] = []
        self.go = trio.Event()

    def let(self, whether: bool) -> None:
        if whether:
            self.go.set()
        else:
            self.go = trio.Event()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Path]:
        async with served(lambda other: other.serve(self._store)) as (path, _):
            yield path

    async def _store(self, message: Message) -> None:
        await self.go.wait()
        _, body = message.body
        self.runs.append(body["run"])
        for machine, generation, first, blob in body["chunks"]:
            for seq, each in enumerate(msgpack.unpackb(blob), first):
                self.records.append(record_of(seq, machine, generation, each))

    def of(self, machine: str) -> list[Record]:
        return [each for each in self.records if each["machine"] == machine]


def losses(records: list[Record]) -> dict[str, int]:
    """The gaps by cause."""
    found: dict[str, int] = {}
    for each in records:
        if "lost" in each["fields"]:
            found[each["fields"]["cause"]] = found.get(each["fields"]["cause"], 0) + each["fields"]["lost"]
            assert each["message"].startswith(f"-- {each['fields']['lost']} lines lost: ")
            assert (each["logger"], each["severity"]) == ("retinue.cp", 4)
    return found


def said(records: list[Record]) -> list[str]:
    return [each["message"] for each in records if "lost" not in each["fields"]]


@asynccontextmanager
async def kept(log: Syslog, store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(keeping, "AGAIN", 0.001)
    async with handing_over(log, store.connect):
        yield


async def settle(log: Syslog, store: Store) -> None:
    store.let(True)
    while log.keeper.unkept or log.journal.losses:
        await log.keeper.settle()
        await trio.lowlevel.checkpoint()
