"""``*LOG``: where the records of all machines come together.

Each machine writes into a descriptor whose other end is held here; it is read even when nobody wants the records and
after the machine has died, so that a last word is kept. The control program stamps machine, generation and a sequence
number. Records go into the journal, which the next control program finds if this one is killed
(:mod:`retinue.cp.journal`), then to the followers and, if the topology names one, to the machine that keeps them.
"""

import fcntl
import itertools
import select
import socket
import termios
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import trio

from retinue.cp.broadcast import Broadcast
from retinue.cp.journal import Journal
from retinue.cp.records import OVERHEAD, Record
from retinue.cp.secrets import NO_SECRETS, Secrets
from retinue.cp.source import Source
from retinue.cp.tape import record_of
from retinue.pipes import Path, PathError, ProtocolViolation, Rejected, wire
from retinue.pipes.beat import Beat, read_beat

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
# Bytes of packets that are committed together: a commit costs as much as a record.
COMMIT: Final = 64 * 1024
# Characters of one line of raw console text; a longer one becomes several records.
MAX_LINE: Final = 8 * 1024
# Lines of one packet of console text that become a record each; the rest of them come together in records of MAX_LINE.
# Sixty thousand empty lines fit a packet.
MAX_LINES: Final = 256
# Values in the fields of one record, and how deep they may be nested: more costs every reader more than it tells.
MAX_VALUES: Final = 256
MAX_DEPTH: Final = 8

# No record is from after the year 5138: a time beyond it is no time, and would not format as one.
LATEST: Final = 1e11

# The logger of what the control program itself says, also for a machine; no machine may use the name.
OURS: Final = "retinue.cp"

NOTICE, WARNING, ERROR, CRITICAL, INFO = 5, 4, 3, 2, 6

# The head of a SEND frame without descriptors; never the first byte of a text in UTF-8.
_SEND: Final = 0x93
Body = list[Any]  # of a record: time, severity, logger, message, fields


class Syslog:
    """Takes, stamps and hands on the records of one system.

    With an adopted ``journal`` it goes on where its predecessor was killed: with its run, its numbers and its records,
    and with the packets that it had received. Without one, records end with this process.
    """

    def __init__(self, secrets: Secrets = NO_SECRETS, journal: Journal | None = None) -> None:
        self._secrets = secrets
        self.journal = Journal.private() if journal is None else journal
        """Where they are; its descriptor is for the nucleus to keep."""
        self.run = self.journal.run
        """Tells the records of this run of the system from those of others: sequence numbers begin anew."""
        self._decoder = wire.Decoder()
        self.broadcast = Broadcast()
        self._came = trio.Event()
        self._stored = trio.Event()
        self._urgent = 0  # how many wait for everything to be stored
        if (left := self.journal.left) is not None:
            source, packets = left
            for packet in packets:
                self._packets(source, [packet], None, poisonous=not self.journal.try_next())

    # -- taking ----------------------------------------------------------------------------------------------------

    def write(
        self, severity: int, message: str, *, machine: str = "CP", generation: int = 0, fields: Any = None
    ) -> Record:
        """A record of the control program's own, or one it writes for a machine."""
        return self._write(severity, message, machine, generation, fields or {})

    def _write(
        self, severity: int, message: str, machine: str, generation: int, fields: Any, *, told: bool = False
    ) -> Record:
        body = self._ours(severity, message, fields)
        seq = self.journal.append(machine, generation, [body], told=told)
        self._publish(machine, generation, seq, [body])
        return record_of(seq, machine, generation, body)

    def _ours(self, severity: int, message: str, fields: Any) -> Body:
        # An error text may hold the raw bytes of a file's name, which no message can carry.
        text = message.encode("utf-8", "backslashreplace").decode()
        body = [time.time(), severity, OURS, text, fields]
        self._secrets.hide_in(body)
        return body

    def _publish(self, machine: str, generation: int, first: int, bodies: Iterable[Body]) -> None:
        """Hand on what is in the journal."""
        self._came.set()
        if self.broadcast.followed:
            for seq, body in enumerate(bodies, first):
                self.broadcast.publish(["record", record_of(seq, machine, generation, body)])

    async def read(
        self, machine: str, generation: int, sock: socket.socket, beat: Callable[[Beat], None] | None = None
    ) -> None:
        """Read one machine's descriptor until its last holder is gone; takes the socket over.

        Goes on where the reader of a control program that was killed has stopped, if there was one. Others may hold
        duplicates of the socket: what ends it is that nobody can write any more. ``beat`` gets the heartbeats.
        """
        source = self._source(machine, generation)
        source.reading = True
        try:
            with sock:
                sock.setblocking(False)
                while True:
                    await trio.lowlevel.wait_readable(sock)
                    pause = self._turn(source, sock, beat)
                    if pause is None:
                        break
                    await trio.sleep(pause)
            self._end(source)
        finally:
            source.reading = False

    def _source(self, machine: str, generation: int) -> Source:
        try:
            return self.journal.source(machine, generation)
        except OSError:
            for source in self.unread():
                self._end(source)
            return self.journal.source(machine, generation)

    def _turn(self, source: Source, sock: socket.socket, beat: Callable[[Beat], None] | None) -> float | None:
        """Read what there is, if it is not too much; returns the seconds until the next turn, at the end None."""
        journal = self.journal
        left = TURN
        while left > 0:
            before, slots = journal.last, source.slots
            packets = journal.receive(source, sock)
            if packets is None:
                return PAUSE
            if packets:
                self._packets(source, packets, beat)
                if not packets[-1][0] and _ended(sock):
                    return None
                made = journal.last - before
                source.trust(made <= TURN)
                left -= max(made, len(packets))
                if len(packets) < slots:
                    return PAUSE
        return 0.0

    def _packets(
        self,
        source: Source,
        untrusted_packets: Sequence[tuple[memoryview | bytes, bool]],
        beat: Callable[[Beat], None] | None,
        *,
        poisonous: bool = False,
    ) -> None:
        """Make records of packets that are in the journal's intake."""
        bodies: list[Body] = []
        beats: list[Beat] = []
        done = size = 0
        frames = None if poisonous else self._decode(untrusted_packets)
        for place, (packet, cut) in enumerate(untrusted_packets):
            if frames is not None:
                self._frames(source, packet, [frames[place]], bodies)
            elif poisonous:
                text = f"-- a packet of {source.machine} was not read as records: control programs died with it --"
                bodies.append(self._ours(CRITICAL, text, {}))
                self._console(source, bytes(packet) + b"\n", bodies)
            else:
                self._packet(source, packet, bodies, beats)
            if cut:
                text = f"-- a line of {source.machine} was cut: it wrote more than {wire.MAX_PACKET} bytes at once --"
                bodies.append(self._ours(WARNING, text, {}))
            done += 1
            size += len(packet)
            if size >= COMMIT:
                self._commit(source, bodies, done)
                bodies, done, size = [], 0, 0
        if done:
            self._commit(source, bodies, done)
        if beats and beat is not None:
            beat(beats[-1])

    def _decode(self, untrusted_packets: Sequence[tuple[memoryview | bytes, bool]]) -> list[wire.Frame] | None:
        """The frames of packets that are one each, all at once: that costs a third. None when they may be others."""
        for packet, cut in untrusted_packets:
            if not packet or packet[0] != _SEND or cut:
                return None
        whole = b"".join([packet for packet, _ in untrusted_packets])
        if len(whole) > wire.MAX_PACKET:
            return None
        try:
            frames = self._decoder.decode(whole)
        except ProtocolViolation:
            return None
        return frames if len(frames) == len(untrusted_packets) else None

    def _commit(self, source: Source, bodies: list[Body], done: int, *, ends: bool = False) -> None:
        machine, generation = source.machine, source.generation
        first = self.journal.append(machine, generation, bodies, source=source, done=done, ends=ends)
        if bodies:
            self._publish(machine, generation, first, bodies)

    def _packet(
        self, source: Source, untrusted_packet: memoryview | bytes, bodies: list[Body], beats: list[Beat]
    ) -> None:
        if not untrusted_packet or untrusted_packet[0] != _SEND:
            self._console(source, untrusted_packet, bodies)
            return
        try:
            frames = self._decoder.decode(untrusted_packet)
        except ProtocolViolation:
            if (heartbeat := read_beat(untrusted_packet)) is not None:
                beats.append(heartbeat)
            else:
                self._console(source, untrusted_packet, bodies)
            return
        self._frames(source, untrusted_packet, frames, bodies)

    def _frames(
        self, source: Source, untrusted_packet: memoryview | bytes, frames: list[wire.Frame], bodies: list[Body]
    ) -> None:
        for frame in frames:
            body = _checked(frame)
            if body is None:
                self._console(source, untrusted_packet, bodies)
                return
            number = frame[1]
            if number != source.number + 1:
                self._gap(source, number, bodies)
            source.number = number
            self._secrets.hide_in(body)  # here every record of a machine passes, and nobody has it yet
            bodies.append(body)

    def _gap(self, source: Source, untrusted_number: int, bodies: list[Body]) -> None:
        missing = untrusted_number - source.number - 1
        if missing > 0:
            text = f"-- {missing} records of {source.machine} lost: its log descriptor was full --"
            bodies.append(self._ours(WARNING, text, {"lost": min(missing, 2**53)}))

    def _console(self, source: Source, untrusted_text: memoryview | bytes, bodies: list[Body]) -> None:
        *lines, source.line = (source.line + bytes(untrusted_text).decode("utf-8", "backslashreplace")).split("\n")
        if len(source.line) > MAX_LINE:
            lines.append(source.line)
            source.line = ""
        for line in lines[:MAX_LINES]:
            self._line(line, bodies)
        if rest := "\n".join(lines[MAX_LINES:]):
            self._line(rest, bodies)

    def _line(self, line: str, bodies: list[Body]) -> None:
        line = self._secrets.hide(line)  # before it is cut
        for start in range(0, max(len(line), 1), MAX_LINE):
            bodies.append([time.time(), NOTICE, "console", line[start : start + MAX_LINE], {}])

    def _end(self, source: Source) -> None:
        bodies: list[Body] = []
        if source.line:
            self._line(source.line, bodies)
            source.line = ""
        self._commit(source, bodies, 0, ends=True)

    def unread(self) -> list[Source]:
        """Machines' descriptors that were not read to their end, and which nobody reads now."""
        return [source for source in self.journal.sources if not source.reading]

    def end(self, machine: str, generation: int) -> None:
        """A descriptor will not be read any more: its last line is one, even without an end."""
        for source in self.unread():
            if (source.machine, source.generation) == (machine, generation):
                self._end(source)

    # -- giving ----------------------------------------------------------------------------------------------------

    def recent(self, machine: str | None, count: int, *, after: int = 0) -> list[Record]:
        """The newest records there are here, oldest first, of one machine or of all."""
        found = [*itertools.islice(self.journal.newest(machine, after=after), max(count, 0))]
        found.reverse()
        return found

    def since(self, after: int, machine: str | None = None, *, most: int = BATCH) -> list[Record]:
        """The oldest records there are here after a number, also one of an earlier control program: a page of them.

        Numbers of all machines follow each other: of those that are missing among all, nothing is here any more.
        """
        page: list[Record] = []
        room = BATCH_ROOM
        for size, record in self.journal.oldest(machine, after=after):
            room -= size + OVERHEAD
            if page and (room < 0 or len(page) >= most):
                break
            page.append(record)
        return page

    def last_complaint(self, machine: str, generation: int) -> str | None:
        """The last line of a machine's newest record that is an error or worse."""
        for record in itertools.islice(self.journal.newest(machine), 100):
            if record["generation"] == generation and record["severity"] <= ERROR:
                # The lines of a group of exceptions stand in a frame.
                lines = [line.strip(" |+-") for line in str(record["message"]).splitlines()]
                return next(filter(None, reversed(lines)), "")[:500]
        return None

    @property
    def last(self) -> int:
        """The sequence number of the newest record; 0 before the first."""
        return self.journal.last

    # -- keeping ---------------------------------------------------------------------------------------------------

    async def keep(self, connect: Callable[[], AbstractAsyncContextManager[Path]]) -> None:
        """Hand every record, from the first one on, to the machine that keeps them; runs until it is cancelled.

        ``connect`` opens a path to that machine, waiting while it is not there. A batch leaves the backlog when the
        machine has answered that it is stored. It is offered again by the next control program if this one is killed
        before it has taken note of the answer: a record is known by its run and its number.
        """
        self.journal.keep()
        while True:
            try:
                async with connect() as path:
                    await self._pour(path)
            except* PathError:
                pass  # it died, or was not ready after all: again
            await trio.sleep(AGAIN)

    async def _pour(self, path: Path) -> None:
        journal = self.journal
        while True:
            while not journal.unkept and not journal.lost:
                self._came = trio.Event()
                await self._came.wait()
            for machine, lost in journal.lost.items():
                text = f"-- {lost} records of {machine} lost: the syslog machine was away for too long --"
                self._write(WARNING, text, machine, 0, {"lost": lost}, told=True)
            if journal.unkept < BATCH and not self._urgent:
                await trio.sleep(GATHER)
            batch = self.since(journal.stored)
            journal.offered = batch[-1]["seq"]
            try:
                await path.call(["store", {"run": self.run, "records": batch}])
            except Rejected:
                # It said why in a record of its own; the batch stays here until its disk takes it.
                await trio.sleep(RETRY)
                continue
            journal.store(batch)
            self._stored.set()
            self._stored = trio.Event()

    async def settle(self) -> None:
        """Until every record there is now has been stored; at once when nobody keeps them."""
        last = self.last
        self._urgent += 1
        try:
            while self.journal.keeping and self.unkept and self.journal.stored < last:
                await self._stored.wait()
        finally:
            self._urgent -= 1

    @property
    def unkept(self) -> int:
        """How many records wait for the machine that keeps them."""
        return self.journal.unkept if self.journal.keeping else 0


def _ended(sock: socket.socket) -> bool:
    """Whether nobody can write any more and all was read; an empty read may also be an empty packet before others."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)):
        return False
    # Of SOCK_SEQPACKET the kernel tells the bytes of all packets (unix(7), SIOCINQ).
    return fcntl.ioctl(sock, termios.FIONREAD, bytes(4)) == bytes(4)


def _checked(untrusted_frame: wire.Frame) -> Body | None:
    """The body of a record's frame, or None when it is something else."""
    if len(untrusted_frame) != 3 or untrusted_frame[0] != 1 or untrusted_frame[1] < 0:  # a SEND
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
    if fields and not _modest(fields):
        body[4] = {"cut": f"more than {MAX_VALUES} values, deeper than {MAX_DEPTH}, or keys that are no texts"}
    if logger.startswith(OURS):
        body[2] = f"not {logger}"[:256]
    elif len(logger) > 256:
        body[2] = logger[:256]
    return body


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
    for key, value in untrusted_fields.items():
        if type(key) is not str or type(value) is dict or type(value) is list:
            break
    else:
        return len(untrusted_fields) <= MAX_VALUES
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
