"""``*LOG``: where the records of all machines come together.

Each machine writes into a descriptor whose other end is held here; it is read even when nobody wants the records and
after the machine has died, so that a last word is kept. The control program stamps machine, generation and a sequence
number. Records go to the followers, into a ring (for the system without a SYSLOG machine, and for the minutes in which
it is not there) and, if the topology names one, to the machine that keeps them.
"""

import heapq
import itertools
import select
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import attrs
import trio

from retinue.cp.broadcast import Broadcast
from retinue.cp.ring import Record, Ring
from retinue.cp.secrets import NO_SECRETS, Secrets
from retinue.pipes import Path, PathError, ProtocolViolation, Rejected, wire

# Records kept here of each machine, and their bytes: enough to explain a bad minute of it. Each has a ring of its own,
# so that one that floods does not drive out what others said.
RING: Final = 2_000
RING_ROOM: Final = 2 * 1024 * 1024
# Records that wait for the SYSLOG machine while it is away; what is older is dropped, and counted.
BACKLOG: Final = 50_000
BACKLOG_ROOM: Final = 32 * 1024 * 1024
# Records in one message to SYSLOG: large enough that a transaction pays, small enough to be written in milliseconds.
BATCH: Final = 500
BATCH_ROOM: Final = 1024 * 1024
# Seconds until a batch that SYSLOG could not store is offered again.
RETRY: Final = 1.0
# Seconds until a path to a SYSLOG that has just ended one is asked for again.
AGAIN: Final = 0.1
# Seconds a descriptor that was read empty is left alone, so that what comes meanwhile is read at once: shorter than its
# buffer (some 250 small records) takes to fill at 50,000 records a second.
PAUSE: Final = 0.005
# Seconds a small batch may wait for more records. Each batch costs SYSLOG a transaction.
GATHER: Final = 0.05
# Packets or records read from one machine before the others get their turn.
TURN: Final = 256
# Characters of one line of raw console text; a longer one becomes several records.
MAX_LINE: Final = 8 * 1024
# Lines of one packet of console text that become a record each; the rest of them come together in records of MAX_LINE.
# Sixty thousand empty lines fit a packet.
MAX_LINES: Final = 256
# Values in the fields of one record, and how deep they may be nested: more costs every reader more than it tells.
MAX_VALUES: Final = 256
MAX_DEPTH: Final = 8
# Empty packets in a row after which a hung-up descriptor has certainly nothing more: more than fit its buffer.
EMPTY: Final = 1024

# No record is from after the year 5138: a time beyond it is no time, and would not format as one.
LATEST: Final = 1e11

# The logger of what the control program itself says, also for a machine; no machine may use the name.
OURS: Final = "retinue.cp"

NOTICE, WARNING, ERROR, CRITICAL, INFO = 5, 4, 3, 2, 6


@attrs.define
class _Source:
    """What is remembered of one machine's descriptor: the last number seen, and a console line without its end."""

    machine: str
    generation: int
    number: int = 0
    line: str = ""
    decoder: wire.Decoder = attrs.field(factory=wire.Decoder)


class Syslog:
    """Takes, stamps and hands on the records of one system."""

    def __init__(self, secrets: Secrets = NO_SECRETS) -> None:
        self._secrets = secrets
        self.run = uuid.uuid4().hex
        """Tells the records of this run of the system from those of others: sequence numbers begin anew."""
        self._last = 0
        self._rings: dict[str, Ring] = {}
        self._buffer = memoryview(bytearray(wire.MAX_PACKET))
        self.broadcast = Broadcast()
        self._backlog: Ring | None = None
        self._dropped = 0
        self._came = trio.Event()
        self._stored = trio.Event()
        self._urgent = 0  # how many wait for everything to be stored

    # -- taking ----------------------------------------------------------------------------------------------------

    def write(
        self, severity: int, message: str, *, machine: str = "CP", generation: int = 0, fields: Any = None
    ) -> Record:
        """A record of the control program's own, or one it writes for a machine."""
        # An error text may hold the raw bytes of a file's name, which no message can carry.
        text = message.encode("utf-8", "backslashreplace").decode()
        return self._take(machine, generation, time.time(), severity, OURS, text, fields or {})

    def _take(
        self, machine: str, generation: int, when: float, severity: int, logger: str, message: str, fields: Any
    ) -> Record:
        # Here every record passes, and nobody has it yet.
        message, logger = self._secrets.hide(message), self._secrets.hide(logger)
        fields, _ = self._secrets.hide_in(fields)
        record = {
            "seq": self._last + 1,
            "time": when,
            "machine": machine,
            "generation": generation,
            "severity": severity,
            "logger": logger,
            "message": message,
            "fields": fields,
        }
        self._last += 1
        self._ring_of(machine).append(record)
        if self._backlog is not None:
            self._dropped += self._backlog.append(record)
            self._came.set()
        self.broadcast.publish(["record", record])
        return record

    async def read(self, machine: str, generation: int, sock: socket.socket) -> None:
        """Read one machine's descriptor until its last holder is gone; takes the socket over."""
        source = _Source(machine, generation)
        with sock:
            sock.setblocking(False)
            buffer = self._buffer  # shared: nothing in it is kept over a checkpoint
            empty = 0
            while True:
                await trio.lowlevel.wait_readable(sock)
                end_of_turn = self._last + TURN
                pause = 0.0
                for _ in range(TURN):
                    if self._last >= end_of_turn:
                        break
                    try:
                        count, _, flags, _ = sock.recvmsg_into([buffer])
                    except BlockingIOError:
                        pause = PAUSE
                        break
                    except ConnectionResetError:
                        continue
                    empty = empty + 1 if count == 0 else 0
                    if empty > EMPTY and _hung_up(sock):
                        self._end_line(source)
                        return
                    self._packet(source, buffer[:count])
                    if flags & socket.MSG_TRUNC:
                        text = f"-- a line of {machine} was cut: it wrote more than {wire.MAX_PACKET} bytes at once --"
                        self.write(WARNING, text, machine=machine, generation=generation)
                await trio.sleep(pause)

    def _packet(self, source: _Source, untrusted_packet: memoryview) -> None:
        # 0x93 is the head of a SEND frame and never the first byte of a text in UTF-8.
        if not untrusted_packet or untrusted_packet[0] != 0x93:
            self._console(source, untrusted_packet)
            return
        try:
            frames = source.decoder.decode(untrusted_packet)
        except ProtocolViolation:
            source.decoder = wire.Decoder()
            self._console(source, untrusted_packet)
            return
        for frame in frames:
            record = _checked(frame)
            if record is None:
                self._console(source, untrusted_packet)
                return
            self._gap(source, frame[1])
            self._take(source.machine, source.generation, *record)

    def _gap(self, source: _Source, untrusted_number: int) -> None:
        missing = untrusted_number - source.number - 1
        source.number = untrusted_number
        if missing > 0:
            text = f"-- {missing} records of {source.machine} lost: its log descriptor was full --"
            self.write(
                WARNING,
                text,
                machine=source.machine,
                generation=source.generation,
                fields={"lost": min(missing, 2**53)},
            )

    def _console(self, source: _Source, untrusted_text: memoryview) -> None:
        *lines, source.line = (source.line + bytes(untrusted_text).decode("utf-8", "backslashreplace")).split("\n")
        if len(source.line) > MAX_LINE:
            lines.append(source.line)
            source.line = ""
        for line in lines[:MAX_LINES]:
            self._line(source, line)
        if rest := "\n".join(lines[MAX_LINES:]):
            self._line(source, rest)

    def _end_line(self, source: _Source) -> None:
        if source.line:
            self._line(source, source.line)
            source.line = ""

    def _line(self, source: _Source, line: str) -> None:
        line = self._secrets.hide(line)  # before it is cut
        for start in range(0, max(len(line), 1), MAX_LINE):
            part = line[start : start + MAX_LINE]
            self._take(source.machine, source.generation, time.time(), NOTICE, "console", part, {})

    # -- giving ----------------------------------------------------------------------------------------------------

    def recent(self, machine: str | None, count: int, *, after: int = 0) -> list[Record]:
        """The newest records there are here, oldest first, of one machine or of all."""
        rings = self._rings.values() if machine is None else [self._ring_of(machine)]
        newest_first = heapq.merge(*map(reversed, rings), key=lambda record: -record["seq"])
        found = list(itertools.takewhile(lambda record: record["seq"] > after, itertools.islice(newest_first, count)))
        found.reverse()
        return found

    def last_complaint(self, machine: str, generation: int) -> str | None:
        """The last line of a machine's newest record that is an error or worse."""
        for record in reversed(self.recent(machine, 100)):
            if record["generation"] == generation and record["severity"] <= ERROR:
                return str(record["message"]).rstrip().rpartition("\n")[2][:500]
        return None

    def _ring_of(self, machine: str) -> Ring:
        ring = self._rings.get(machine)
        if ring is None:
            ring = self._rings[machine] = Ring(RING, RING_ROOM)
        return ring

    @property
    def last(self) -> int:
        """The sequence number of the newest record; 0 before the first."""
        return self._last

    # -- keeping ---------------------------------------------------------------------------------------------------

    async def keep(self, connect: Callable[[], AbstractAsyncContextManager[Path]]) -> None:
        """Hand every record, from the first one on, to the machine that keeps them; runs until it is cancelled.

        ``connect`` opens a path to that machine, waiting while it is not there. A batch leaves the backlog when the
        machine has answered that it is stored.
        """
        self._backlog = Ring(BACKLOG, BACKLOG_ROOM, self.recent(None, BACKLOG))
        while True:
            try:
                async with connect() as path:
                    await self._pour(path)
            except* PathError:
                pass  # it died, or was not ready after all: again
            await trio.sleep(AGAIN)

    async def _pour(self, path: Path) -> None:
        backlog = self._backlog
        assert backlog is not None
        while True:
            while not backlog and not self._dropped:
                self._came = trio.Event()
                await self._came.wait()
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                text = f"-- {dropped} records lost: the syslog machine was away for too long --"
                self.write(WARNING, text, fields={"lost": dropped})
            if len(backlog) < BATCH and not self._urgent:
                await trio.sleep(GATHER)
            batch = backlog.oldest(BATCH, BATCH_ROOM)
            try:
                await path.call(["store", {"run": self.run, "records": batch}])
            except Rejected:
                # It said why in a record of its own; the batch stays here until its disk takes it.
                await trio.sleep(RETRY)
                continue
            backlog.drop_to(batch[-1]["seq"])
            self._stored.set()
            self._stored = trio.Event()

    async def settle(self) -> None:
        """Until every record there is now has been stored; at once when nobody keeps them."""
        last = self.last
        self._urgent += 1
        try:
            while self._backlog and self._backlog.first <= last:
                await self._stored.wait()
        finally:
            self._urgent -= 1

    @property
    def unkept(self) -> int:
        """How many records wait for the machine that keeps them."""
        return len(self._backlog) if self._backlog is not None else 0


def _hung_up(sock: socket.socket) -> bool:
    """Whether nobody can write any more; an empty read may also be an empty packet, with others after it."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))


def _checked(untrusted_frame: wire.Frame) -> tuple[float, int, str, str, dict[str, Any]] | None:
    """The content of a record's frame, or None when it is something else."""
    if untrusted_frame[0] != wire.Kind.SEND or len(untrusted_frame) != 3:
        return None
    body = untrusted_frame[2]
    if type(body) is not list or len(body) != 5:
        return None
    when, severity, logger, message, fields = body
    if type(when) is not float or type(severity) is not int or not 0 <= severity <= 7:
        return None
    if type(logger) is not str or type(message) is not str or type(fields) is not dict:
        return None
    if not 0.0 <= when < LATEST:
        return None
    if not _modest(fields):
        fields = {"cut": f"more than {MAX_VALUES} values, deeper than {MAX_DEPTH}, or keys that are no texts"}
    if logger.startswith(OURS):
        logger = f"not {logger}"
    return when, severity, logger[:256], message, fields


def checked_records(untrusted_answer: Any) -> list[Record]:
    """The records in the answer of the machine that keeps them; Rejected ``bad-answer`` when they are none."""
    match untrusted_answer:
        case {"records": list(untrusted)} if all(map(_is_record, untrusted)):
            return untrusted
    raise Rejected("bad-answer", "it did not answer with records")


# What a record is made of, apart from its time.
_SHAPE: Final[dict[str, type]] = {
    "seq": int,
    "machine": str,
    "generation": int,
    "severity": int,
    "logger": str,
    "message": str,
    "fields": dict,
}


def _is_record(untrusted: Any) -> bool:
    return (
        type(untrusted) is dict
        and untrusted.keys() == _SHAPE.keys() | {"time"}
        and all(type(untrusted[name]) is kind for name, kind in _SHAPE.items())
        and type(untrusted["time"]) is float
        and _modest(untrusted["fields"])
    )


def _modest(untrusted_fields: dict[Any, Any]) -> bool:
    """Whether fields are few and flat enough to be carried on and stored as they are."""
    left = MAX_VALUES
    level: list[Any] = [untrusted_fields]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            left -= len(each)
            if left < 0:
                return False
            if type(each) is dict and not all(type(key) is str for key in each):
                return False
            values = each.values() if type(each) is dict else each
            below += [value for value in values if type(value) in (dict, list)]
        if not below:
            return True
        level = below
    return False
