"""The records that SYSLOG has stored, for whoever asks while the system does not run: a process of its own.

``retinue logs`` starts it and speaks with it over its standard streams: a message is msgpack behind its length, four
bytes, big-endian. Each request has one answer, ``["done", answer]`` or ``["failed", code, text]``::

    ["open", state, machine, disk]    about the database: {"whole": bool, "moving": bool}
    ["machines", {}]                  the names of which something is stored
    ["newest", run]                   the number of its last record that is stored; 0 when there is none
    ["select", query]                 {"records": [each as msgpack], "more": place or nil, "spoilt": number}

A query is what SYSLOG is asked, with places of this process' own. The database was written by a machine and is not
believed: it is read by the user whose it is, who sees nothing but the folder (as root), whole files that are no links
(as anybody), through its tables and nothing that they could call, with bounds for memory and time. Whoever starts the
process gives it a fence to put up before the database is opened. What comes out is looked at by whoever asks.
"""

import contextlib
import errno
import os
import resource
import sqlite3
import stat
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
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
# Characters of a name: no machine has one that is longer.
NAME_MAX: Final = 64
# Seconds in which somebody else who writes may have come to an end.
PATIENCE: Final = 1.0

_DENIED: Final = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY)
# What the primary code of an error says of; any other says of nothing that could be known here.
_SAYING: Final = {
    **dict.fromkeys(_DENIED, "denied"),
    **dict.fromkeys((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL), "busy"),
    **dict.fromkeys((sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOLFS), "disk"),
    **dict.fromkeys((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR), "corrupt"),
    **dict.fromkeys((sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_FORMAT), "corrupt"),
    sqlite3.SQLITE_INTERRUPT: "too-long",
}

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
        waiting = f"busy_timeout = {PATIENCE * 1000:.0f}"
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "temp_store = MEMORY", waiting):
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
        return [name for name in super().machines() if type(name) is str and len(name) <= NAME_MAX]

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


def enter(state: str, names: Sequence[str]) -> None:
    """Make the folder of a disk the working directory and, as root, all that there is, and become who it belongs to.

    Failed when what is in there is not what SYSLOG has made; OSError.
    """
    descriptor = _descend(state, ("disks", *names))
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


def _descend(state: str, names: Sequence[str]) -> int:
    """A descriptor of the folder below that of the state: each name is looked up in the one before, and is no link."""
    if wrong := [name for name in names if name in ("", ".", "..") or "/" in name or "\0" in name]:
        raise Failed("denied", f"{wrong[0]!r} is the name of no machine and of no disk")
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    way = ""
    try:
        descriptor = os.open(state, flags)
        for name in names:
            way = os.path.join(way, name)
            above = descriptor
            try:
                descriptor = os.open(name, flags | os.O_NOFOLLOW, dir_fd=above)
            finally:
                os.close(above)
    except FileNotFoundError:
        raise Failed("nothing", "there is no disk") from None
    except NotADirectoryError:
        raise Failed("strange", f"{way or state} is no folder") from None
    return descriptor


def look() -> None:
    """Failed when there is no database in the working directory, or something else in its place; OSError."""
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
    except sqlite3.OperationalError as error:
        if _primary(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        archive = Archive(frozen=True)
    return archive, not any(map(_size, ("-wal", "-journal")))


def _size(end: str) -> int:
    try:
        return os.lstat(NAME + end).st_size
    except FileNotFoundError:
        return 0


def main(fence: Callable[[], None]) -> int:
    """Answer until there is nobody who asks; returns the exit status of the process.

    ``fence`` is called in the folder, before anything in it is opened: then nothing outside is needed any more.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    archive: Archive | None = None
    with contextlib.suppress(BrokenPipeError):
        while (request := _receive(sys.stdin.buffer)) is not None:
            try:
                match request:
                    case ["open", str(state), str(machine), str(disk)] if archive is None:
                        enter(state, (machine, disk))
                        fence()
                        look()
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
                reply = msgpack.packb(["failed", *why(error)], unicode_errors="backslashreplace")
            _send(sys.stdout.buffer, reply)
    return 0


def why(error: Exception) -> tuple[str, str]:
    """The code and the text of an answer that cannot be given."""
    match error:
        case Failed() | Rejected():
            return error.code, error.text
        case MemoryError():
            return "corrupt", "a record in it is larger than any that there can be"
        case OSError():
            code = "denied" if error.errno in (errno.EACCES, errno.EPERM) else "disk"
        case sqlite3.Error():
            code = _SAYING.get(_primary(error), "failed")
        case ValueError() | TypeError() | OverflowError() | RecursionError():
            code = "corrupt"  # there is something in a table that SYSLOG has not written
        case _:
            return "failed", f"{type(error).__name__}: {error}"[:500]
    text = (error.strerror if isinstance(error, OSError) else str(error)[:500]) or type(error).__name__
    return code, f"{text}, for the user {os.geteuid()}" if code == "denied" else text


def _primary(error: sqlite3.Error) -> int:
    """The code of SQLite without what it adds to it; what Python says by itself is like an error in a statement."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


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
