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

from retinue.cp.archive import DATABASE, STOCK, read_archive
from retinue.cp.checking import checked_names, checked_records
from retinue.cp.cli.errors import CommandError, UnknownMachine
from retinue.cp.cli.left import Left, NotStored
from retinue.cp.cli.output import neutralise, tell
from retinue.cp.cli.waiting import FIRST, Waiting
from retinue.cp.records import Record
from retinue.cp.selection import Selection as Wanted
from retinue.cp.selection import selection
from retinue.cp.tape import ENDLESS
from retinue.pipes import Rejected

# What reads the records of SYSLOG's program.
_READER: Final = f"{STOCK}.archive:main"
_FENCE: Final = "retinue.cp.host.fence:main"
# Names that records may be asked by: a query names no more.
NAMES: Final = 10_000
# Bytes of one answer that are believed: 8 Mi characters of records, or one record that is larger.
ANSWER: Final = 128 * 1024 * 1024
# Seconds an answer may take: the reader gives one after some.
ANSWER_WAIT: Final = 30.0

_LENGTH: Final = struct.Struct(">I")


class NothingStored(NotStored):
    """There is no database."""


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
        text = left.remark
        try:
            about = await self._call("open", str(left.state), *(left.archive.disk or ()))
        except NothingStored:
            if not self._waiting.border({}):
                self.finish()
                raise
            self._empty = True
        else:
            self._names = await self._stored_names()
            for run in self._waiting.runs:
                stored[run] = int(await self._call("newest", run))
            if not about["whole"]:
                text += ", without the newest, which are in a file that cannot be used as it is"
            if about["moving"]:
                text += ", without some of an earlier release, which the next retinue up takes over"
        if self._waiting.border(stored):
            text += ", and those that wait on the disk until the next retinue up"
        what = f"these are the records that {left.archive.machine} has stored{text}"
        tell(neutralise(f"-- {left.system} is not running: {what} --"))

    async def _stored_names(self) -> list[str]:
        try:
            return checked_names(await self._call("machines", {}))
        except Rejected:
            raise self._corrupt("whoever read it has answered nonsense") from None

    async def ask(self, **query: Any) -> dict[str, Any]:
        """One page, as the control program answers it."""
        names = [*dict.fromkeys(["CP", *self._left.archive.machines, *self._waiting.machines, *self._names])][:NAMES]
        try:
            wanted = selection(query, "", names)
        except Rejected as error:
            if error.code == "unknown-machine":
                raise _unknown(query["machine"], self._left.system, error) from None
            raise CommandError(f"{error.text} ({error.code})") from None
        records, more = await (self._oldest(wanted) if wanted.oldest else self._newest(wanted))
        place = None if more is None else ["", more]
        return {"records": records, "more": place, "kept": True, "spilled": [], "seq": 0, "end": None}

    def finish(self) -> None:
        """Tell what waits and could not be shown, and whether what was shown is of two moments."""
        left = self._left
        for text in self._waiting.left_out():
            tell(neutralise(f"-- {text} --"))
        note = read_archive(left.state)
        if self._waiting.gone or (note is not None and note.time != left.archive.time):
            text = f"{left.system} was started meanwhile, and some records may be missing or twice here: ask again"
            tell(neutralise(f"-- {text} --"))

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
        if wanted.before is None:  # so that no answer says to go on behind those that wait
            wanted = attrs.evolve(wanted, before=("", FIRST))
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
        except (trio.BrokenResourceError, EOFError):
            raise await self._died() from None
        except ValueError:
            raise self._corrupt("whoever read it has answered nonsense") from None
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
        left, file = self._left, self._folder / DATABASE
        match code:
            case "nothing":
                problem = f"{left.system} is not running, and {left.archive.machine} has stored no records of it"
                return NothingStored(problem, left.why.cure)
            case "earlier":
                problem = f"{left.system} is not running, and its records were stored by an earlier release: {text}"
                return NotStored(problem, f"the next start takes them over\n{left.why.cure}")
            case "denied":
                problem = f"the records of {left.system} cannot be read: {text}"
                return CommandError(problem, f"look who may read it, and what is beside it: {file}")
            case "strange":
                problem = f"what {left.archive.machine} has stored is not read: {text}"
                return CommandError(problem, f"it does not make it so; look at it, and move it away: {self._folder}")
            case "busy":
                problem = f"somebody is writing to the records of {left.system}: {text}"
                return CommandError(problem, f"try again; look who has it open: fuser -v {file}")
            case "disk":
                return CommandError(f"the disk does not give the records of {left.system}: {text}", str(file))
            case "too-long":
                return CommandError(text, f"ask for less, or try again; the records are in {file}")
            case "bad-arguments":
                return CommandError(f"the records of {left.system} cannot be asked for that: {text}")
            case "corrupt":
                return self._corrupt(text)
        return CommandError(f"the records of {left.system} cannot be read: {text} ({code})", str(file))

    async def _died(self) -> CommandError:
        """What is told when nobody reads any more, which says nothing of what there is to read."""
        how = ""
        with trio.move_on_after(1):
            status = await self._process.wait()
            how = f" by signal {-status}" if status < 0 else f" with status {status}"
        problem = f"the process that reads the records of {self._left.system} has ended{how}"
        return CommandError(problem, f"try again; the records are in {self._folder}")

    def _corrupt(self, text: str) -> CommandError:
        machine, file = self._left.archive.machine, self._folder / DATABASE
        cure = f"move it away, and {machine} begins a new one: {file}\nwhat is in it: sqlite3 {file} .recover"
        return CommandError(f"what {machine} has stored is no database of records: {text}", cure)


def reader_command() -> list[str]:
    """The process that reads, which ends with its standard input.

    It has no parent to die with: for the kernel that is the thread that has started it, and trio ends that after some
    seconds.
    """
    from retinue.cp.host.process import command, import_path

    about = {"path": import_path(), "entry": _FENCE, "reader": _READER, "parent": 0, "title": "log-reader"}
    return command(about, site=True)


@asynccontextmanager
async def open_reader(left: Left) -> AsyncIterator[Reader]:
    """The reader of what is left; its process does not survive the block."""
    from retinue.cp.host.image import environment

    folder = left.folder()
    process = await trio.lowlevel.open_process(
        reader_command(),
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
        reader.finish()
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
