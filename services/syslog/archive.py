"""The records that SYSLOG has stored, for whoever asks while the system does not run: a process of its own.

``retinue logs`` starts it and speaks with it over its standard streams: a message is msgpack behind its length, four
bytes, big-endian. Each request has one answer, ``["done", answer]`` or ``["failed", code, text]``::

    ["open", folder]       about the database: {"whole": bool, "moving": bool}
    ["machines", {}]       the names of which something is stored
    ["newest", run]        the number of its last record that is stored; 0 when there is none
    ["select", query]      {"records": [each as msgpack], "more": place or nil, "spoilt": number}

A query is what SYSLOG is asked, with places of this process' own. The database was written by a machine and is not
believed: it is read by the user whose it is, who sees nothing but the folder (as root), whole files that are no links
(as anybody), through its tables and nothing that they could call, with bounds for memory and time. What comes out is
looked at by whoever asks.
"""

import contextlib
import os
import resource
import sqlite3
import stat
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

import msgpack

from retinue.pipes import Rejected
from retinue.services.syslog.query import ENDLESS, Reader
from retinue.services.syslog.schema import RUN_BITS, VERSION

NAME: Final = "records.sqlite3"
# What SQLite may have beside it, and would use.
BESIDE: Final = ("", "-wal", "-shm", "-journal")
# Bytes of one value: more than any message of a machine has.
LONGEST: Final = 64 * 1024 * 1024
# Address space of the process: an answer is some 8 MiB, and is made three times over.
MEMORY: Final = 2 * 1024**3
# Bytes of one request: a query names a thousand machines at most.
REQUEST: Final = 16 * 1024 * 1024
TABLES: Final = ("runs", "machines", "loggers", "entries")

_LENGTH: Final = struct.Struct(">I")


class Failed(Exception):
    """A request that cannot be answered. Fields: ``code``, ``text``."""

    def __init__(self, code: str, text: str) -> None:
        self.code, self.text = code, text
        super().__init__(text)


class Archive(Reader):
    """The database in the working directory, which is not written to.

    ``frozen`` reads the file alone: for a folder in which nothing can be made, where SQLite cannot look at what stands
    in the log beside it.
    """

    def __init__(self, *, frozen: bool) -> None:
        super().__init__(f"file:{NAME}?{'immutable=1' if frozen else 'mode=ro'}", uri=True)
        database = self._database
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        database.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "temp_store = MEMORY"):
            database.execute(f"PRAGMA {pragma}")
        try:
            self.moving = self._look()
        except BaseException:
            self.close()
            raise

    def _look(self) -> bool:
        """Whether records of an earlier schema wait in there; Failed when the tables are not those of SYSLOG."""
        (version,) = self._execute("PRAGMA user_version", {}).fetchone()
        found = self._execute("SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0 LIMIT 1000", {})
        there = {name for (name,) in found}
        if version < VERSION and "records" in there:
            raise Failed("earlier", f"it has the form {version} of an earlier release")
        if missing := [name for name in TABLES if name not in there]:
            raise Failed("corrupt", f"it has no table {missing[0]}")
        return "first_records" in there

    def machines(self) -> list[str]:
        return [name for name in super().machines() if type(name) is str]

    def newest(self, run: str) -> int:
        """The number of the last record of a run; 0 when there is none."""
        found = self._execute("SELECT number FROM runs WHERE name = :run", {"run": run}).fetchone()
        if found is None:
            return 0
        bounds = {"least": int(found[0]) << RUN_BITS, "most": int(found[0]) + 1 << RUN_BITS}
        query = "SELECT max(id) FROM entries WHERE id >= :least AND id < :most"
        return int(self._execute(query, bounds).fetchone()[0] or bounds["least"]) - bounds["least"]

    def answer(self, untrusted_query: Mapping[Any, Any]) -> dict[str, Any]:
        """:meth:`Reader.select`, with records that can be carried on, and the number of others."""
        found = self.select(untrusted_query)
        packed = [*filter(None, map(_packed, found["records"]))]
        return {"records": packed, "more": found["more"], "spoilt": len(found["records"]) - len(packed)}

    # Places are ids: the tables could make a circle of runs.

    def _place(self, place: list[Any] | None, default: int) -> int:
        return default if place is None else place[1]

    def _place_of(self, ident: int) -> list[Any]:
        return ["", max(0, min(ident, ENDLESS - 1))]


def _packed(record: Mapping[str, Any]) -> bytes | None:
    try:
        packed: bytes = msgpack.packb(record)
        return packed
    except (ValueError, OverflowError, TypeError):
        return None


def enter(folder: str) -> None:
    """Make a folder the working directory and, as root, all that there is, and become who it belongs to.

    Failed when what is in there is not what SYSLOG has made; OSError.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Failed("nothing", "there is no disk") from None
    try:
        about = os.fstat(descriptor)
        os.fchdir(descriptor)
    finally:
        os.close(descriptor)
    if os.geteuid() == 0:
        os.chroot(".")
        if about.st_uid:
            os.setgroups([])
            os.setresgid(about.st_gid, about.st_gid, about.st_gid)
            os.setresuid(about.st_uid, about.st_uid, about.st_uid)
    for end in BESIDE:
        try:
            mode = os.lstat(NAME + end).st_mode
        except FileNotFoundError:
            if not end:
                raise Failed("nothing", "there is no database") from None
            continue
        if not stat.S_ISREG(mode):
            raise Failed("strange", f"{NAME}{end} is {'a symbolic link' if stat.S_ISLNK(mode) else 'no regular file'}")


def open_archive() -> tuple[Archive, bool]:
    """The archive, and whether it is read whole: the newest records may be in the log beside it, and that unread.

    Failed, sqlite3.Error.
    """
    try:
        return Archive(frozen=False), True
    except sqlite3.OperationalError:
        archive = Archive(frozen=True)
    with contextlib.suppress(OSError):
        return archive, os.lstat(f"{NAME}-wal").st_size == 0
    return archive, True


def main(arguments: Mapping[str, Any]) -> int:
    """Answer until there is nobody who asks; returns the exit status of the process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    archive: Archive | None = None
    with contextlib.suppress(BrokenPipeError):
        while (request := _receive(sys.stdin.buffer)) is not None:
            try:
                match request:
                    case ["open", str(folder)]:
                        enter(folder)
                        archive, whole = open_archive()
                        answer: Any = {"whole": whole, "moving": archive.moving}
                    case ["machines", {}] if archive is not None:
                        answer = archive.machines()
                    case ["newest", str(run)] if archive is not None:
                        answer = archive.newest(run)
                    case ["select", dict(query)] if archive is not None:
                        answer = archive.answer(query)
                    case _:
                        raise Failed("unknown-verb", "only open, machines, newest and select are known")
                reply = msgpack.packb(["done", answer])
            except Exception as error:
                reply = msgpack.packb(["failed", *_why(error)], unicode_errors="backslashreplace")
            _send(sys.stdout.buffer, reply)
    return 0


def _why(error: Exception) -> tuple[str, str]:
    match error:
        case Failed():
            return error.code, error.text
        case Rejected():
            return error.code, error.text
        case OSError():
            return "denied", error.strerror or str(error)
        case MemoryError():
            return "corrupt", "a record in it is larger than any that there can be"
    # Whatever a table makes SQLite or Python say, it is because there is in it what SYSLOG has not written.
    return "corrupt", str(error)[:500] or type(error).__name__


def _receive(stream: BinaryIO) -> Any:
    """The next request; None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length) if length <= REQUEST else b""
    return msgpack.unpackb(data) if len(data) == length else None


def _send(stream: BinaryIO, reply: bytes) -> None:
    stream.write(_LENGTH.pack(len(reply)) + reply)
    stream.flush()
