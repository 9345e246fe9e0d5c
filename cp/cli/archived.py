"""The records of a system that does not run, from a process that reads what its syslog machine has stored.

That process is the syslog machine's own code (``retinue.services.syslog.archive``), because nobody else knows how it
stores; what it answers is looked at like what the machine answers itself.
"""

import os
import pathlib
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import msgpack
import trio

from retinue.cp.archive import Archive, read_archive
from retinue.cp.checking import checked_names, checked_records
from retinue.cp.cli.command import Selection
from retinue.cp.cli.errors import NO_SYSTEM, CommandError, NoSystem, UnknownMachine
from retinue.cp.cli.output import neutralise, tell
from retinue.cp.cli.waiting import FIRST, Waiting
from retinue.cp.places import find_places
from retinue.cp.records import Record
from retinue.cp.selection import Selection as Wanted
from retinue.cp.selection import selection
from retinue.cp.tape import ENDLESS
from retinue.pipes import Rejected

# The program whose records can be read, and what reads them.
STOCK: Final = "retinue.services.syslog"
_READER: Final = f"{STOCK}.archive:main"
# Bytes of one answer that are believed: 8 Mi characters of records, or one record that is larger.
ANSWER: Final = 128 * 1024 * 1024
# Seconds an answer may take: the reader gives one after some.
ANSWER_WAIT: Final = 30.0

_LENGTH: Final = struct.Struct(">I")


class NotStored(CommandError):
    """The system does not run, and there are no records of it that could be read."""

    code = NO_SYSTEM


@attrs.frozen
class Left:
    """A system that does not run, and what its last run has said of its records."""

    state: pathlib.Path
    archive: Archive
    why: NoSystem
    """What a command is told that needs it to run."""

    @property
    def system(self) -> str:
        return self.archive.system

    def folder(self) -> pathlib.Path:
        """Where its records are. Raises NotStored when only somebody else could tell, or nobody."""
        archive = self.archive
        if archive.machine is None:
            raise NotStored(
                f"{self.system} is not running, and its last run had no machine that keeps records",
                f'name one in its topology: [system] syslog = "SYSLOG"\n{self.why.cure}',
            )
        folder = archive.folder(self.state)
        if archive.program != STOCK or folder is None:
            raise NotStored(
                f"{self.system} is not running, and its records can be read by {archive.machine} alone, "
                f"which runs {archive.program}",
                self.why.cure,
            )
        return folder


def find_left(chosen: Selection, why: NoSystem) -> Left:
    """What is left of the system that the options mean, or of that which was started last. Raises ``why``."""
    places = find_places(chosen.state)
    if places.single:
        folders = [places.state]
    elif chosen.system is not None:
        folders = [places.folders(chosen.system).state]
    else:
        folders = [*places.state.glob("*")]
    found = [Left(folder, archive, why) for folder in folders if (archive := read_archive(folder)) is not None]
    if chosen.system is not None:
        found = [each for each in found if each.system == chosen.system]
    if not found:
        raise why
    return max(found, key=lambda each: each.archive.time)


class NothingStored(NotStored):
    """There is no database."""


class NotFollowed(CommandError):
    """Nothing comes from a system that does not run."""

    code = NO_SYSTEM

    def __init__(self, left: Left) -> None:
        problem = f"{left.system} is not running: nothing is written that could be followed"
        super().__init__(problem, f"what it has written, as far as it is stored: leave out -f\n{left.why.cure}")


class Reader:
    """The process that reads, while :func:`open_reader` holds it."""

    def __init__(self, left: Left, process: trio.Process, folder: pathlib.Path) -> None:
        self._left = left
        self._process = process
        self._folder = folder
        self._buffer = bytearray()
        self._names: list[str] = []
        self._waiting = Waiting(left.state)
        self._empty = False
        self._spoilt = False

    async def begin(self) -> None:
        """Open the database, and tell what it is that will be read."""
        left = self._left
        stored: dict[str, int] = {}
        text = ""
        try:
            about = await self._call("open", str(self._folder))
        except NothingStored:
            if not self._waiting.border({}):
                raise
            self._empty = True
        else:
            self._names = checked_names(await self._call("machines", {}))
            for run in self._waiting.runs:
                stored[run] = int(await self._call("newest", run))
            if not about["whole"]:
                text += ", without the newest, which are in a file that cannot be used as it is"
            if about["moving"]:
                text += ", without some of an earlier release, which the next retinue up takes over"
        if self._waiting.border(stored):
            text += ", and those that wait on the disk until the next retinue up"
        what = f"these are the records that {left.archive.machine} has stored{text}"
        tell(f"-- {left.system} is not running: {neutralise(what)} --")

    async def ask(self, **query: Any) -> dict[str, Any]:
        """One page, as the control program answers it."""
        names = ["CP", *self._left.archive.machines, *self._names]
        try:
            wanted = selection(query, "", names)
        except Rejected as error:
            if error.code == "unknown-machine":
                raise _unknown(query["machine"], self._left.system, error) from None
            raise CommandError(f"{error.text} ({error.code})") from None
        records, more = await (self._oldest(wanted) if wanted.oldest else self._newest(wanted))
        place = None if more is None else ["", more]
        return {"records": records, "more": place, "kept": True, "spilled": [], "seq": 0, "end": None}

    async def _oldest(self, wanted: Wanted) -> tuple[list[Record], int | None]:
        after = 0 if wanted.after is None else wanted.after[1]
        records: list[Record] = []
        if after < FIRST - 1:
            records, more = await self._select(wanted)
            if more is not None:
                return records, more
            if len(records) == wanted.count:
                return records, FIRST - 1
        late, more = await self._waiting.oldest(wanted, max(after, FIRST - 1), wanted.count - len(records))
        return records + late, more

    async def _newest(self, wanted: Wanted) -> tuple[list[Record], int | None]:
        before = ENDLESS if wanted.before is None else wanted.before[1]
        late: list[Record] = []
        if before > FIRST:
            late, more = await self._waiting.newest(wanted, before, wanted.count)
            if more is not None:
                return late, more
            wanted = attrs.evolve(wanted, before=None, count=wanted.count - len(late))
        elif before == FIRST:
            wanted = attrs.evolve(wanted, before=None)
        early, more = await self._select(wanted)
        return early + late, more

    async def _select(self, wanted: Wanted) -> tuple[list[Record], int | None]:
        if self._empty:
            return [], None
        match await self._call("select", wanted.as_query()):
            case {"records": list(untrusted), "more": None | ["", int()] as place, "spoilt": int(spoilt)}:
                records = _checked(untrusted)
            case _:
                raise self._corrupt("whoever read it has answered nonsense")
        self._tell_spoilt(spoilt + len(untrusted) - len(records))
        if place is None:
            return records, None
        least = 0 if wanted.after is None else wanted.after[1]
        most = FIRST if wanted.before is None else wanted.before[1]
        if not least < place[1] < most:  # not further than where this page began
            raise self._corrupt("its records are in no order")
        return records, place[1]

    def _tell_spoilt(self, count: int) -> None:
        if count and not self._spoilt:
            self._spoilt = True
            tell("-- some of what is stored is no record, and is not shown --")

    async def _call(self, *request: Any) -> Any:
        try:
            with trio.fail_after(ANSWER_WAIT):
                answer = await self._exchange(msgpack.packb(request))
        except trio.TooSlowError:
            raise CommandError(
                f"the disk did not give the records within {ANSWER_WAIT:g} s", str(self._folder)
            ) from None
        except (ValueError, trio.BrokenResourceError, EOFError):
            raise self._corrupt("whoever read it has died") from None
        match answer:
            case ["done", found]:
                return found
            case ["failed", str(code), str(text)]:
                raise self._failed(code, text)
        raise self._corrupt("whoever read it has answered nonsense")

    async def _exchange(self, request: bytes) -> Any:
        process = self._process
        assert process.stdin is not None
        await process.stdin.send_all(_LENGTH.pack(len(request)) + request)
        (length,) = _LENGTH.unpack(await self._receive(_LENGTH.size))
        if length > ANSWER:
            raise ValueError("too much")
        return msgpack.unpackb(await self._receive(length))

    async def _receive(self, count: int) -> bytes:
        process = self._process
        assert process.stdout is not None
        while len(self._buffer) < count:
            chunk = await process.stdout.receive_some()
            if not chunk:
                raise EOFError
            self._buffer += chunk
        found = bytes(self._buffer[:count])
        del self._buffer[:count]
        return found

    def _failed(self, code: str, text: str) -> CommandError:
        left, file = self._left, self._folder / "records.sqlite3"
        match code:
            case "nothing":
                problem = f"{left.system} is not running, and {left.archive.machine} has stored no records of it"
                return NothingStored(problem, left.why.cure)
            case "earlier":
                problem = f"{left.system} is not running, and its records were stored by an earlier release: {text}"
                return NotStored(problem, f"the next start takes them over\n{left.why.cure}")
            case "denied":
                return CommandError(f"the records of {left.system} cannot be read: {text}", f"look at it: {file}")
            case "strange":
                problem = f"what {left.archive.machine} has stored is not read: {text}"
                return CommandError(problem, f"a machine has made it so; look at it, and move it away: {file}")
            case "too-long":
                return CommandError(text)
        return self._corrupt(text)

    def _corrupt(self, text: str) -> CommandError:
        machine, file = self._left.archive.machine, self._folder / "records.sqlite3"
        cure = f"move it away, and {machine} begins a new one: {file}\nwhat is in it: sqlite3 {file} .recover"
        return CommandError(f"what {machine} has stored is no database of records: {text}", cure)


@asynccontextmanager
async def open_reader(left: Left) -> AsyncIterator[Reader]:
    """The reader of what is left; its process does not survive the block."""
    from retinue.cp.host.image import environment
    from retinue.cp.host.process import command, import_path

    folder = left.folder()
    about = {"path": import_path(), "entry": _READER, "parent": os.getpid(), "title": "log-reader"}
    process = await trio.lowlevel.open_process(
        command(about, site=True),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us
        env=environment(dict(os.environ)),
    )
    try:
        reader = Reader(left, process, folder)
        await reader.begin()
        yield reader
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()


def _checked(untrusted: list[Any]) -> list[Record]:
    """Those that are records."""
    records: list[Record] = []
    for each in untrusted:
        try:
            records += checked_records({"records": [msgpack.unpackb(each, strict_map_key=False)]})
        except (Rejected, ValueError, TypeError):
            continue
    return records


def _unknown(asked: Any, system: str, error: Rejected) -> UnknownMachine:
    known = list(map(str, error.detail)) if isinstance(error.detail, list) else []
    given = asked if isinstance(asked, list) else [asked]
    return UnknownMachine(next(str(name) for name in given if name not in known), system, known)
