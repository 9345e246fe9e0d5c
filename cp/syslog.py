"""``*LOG``: where the records of all machines come together.

Each machine writes into a descriptor whose other end is held here; it is read even when nobody wants the records and
after the machine has died, so that a last word is kept. The control program stamps machine, generation and a sequence
number. Records go into the journal, which the next control program finds if this one is killed
(:mod:`retinue.cp.journal`), then to the followers and, if the topology names one, to the machine that keeps them.
"""

import functools
import itertools
import pathlib
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import trio

from retinue.cp.broadcast import Broadcast
from retinue.cp.checking import OURS, Body, checked_bodies, checked_body
from retinue.cp.directory import Directory
from retinue.cp.directory.model import LogPolicy
from retinue.cp.intake import ended
from retinue.cp.journal import Journal
from retinue.cp.keeper import Keeper
from retinue.cp.log_policy import UNDECLARED, Allowance, LogPolicies
from retinue.cp.losses import MOST as MOST_LOST
from retinue.cp.losses import Cause, gap, untold_text
from retinue.cp.records import OVERHEAD, Machines, Record
from retinue.cp.secrets import NO_SECRETS, Secrets
from retinue.cp.source import Source
from retinue.cp.spill import Spill
from retinue.cp.tape import ENDLESS, record_of
from retinue.cp.turns import PAUSE, Turns, go_on, rest
from retinue.pipes import ProtocolViolation, wire
from retinue.pipes.beat import Beat, read_beat

# Records on one page of the oldest ones, and about the bytes of it.
PAGE: Final = 500
PAGE_ROOM: Final = 1024 * 1024
# Seconds a machine that writes faster than its records are stored waits for room, before they go to the disk: shorter
# than its own patience (:mod:`retinue.svm.log`), so that nothing is lost while it waits.
PACE: Final = 0.01
# Seconds after which it is told that a machine waits.
STILL: Final = 1.0
# Records that become of what one call receives, beyond which packets of that machine are received one by one.
MANY: Final = 256
# Bytes of packets that are committed together: a commit costs as much as a record.
COMMIT: Final = 64 * 1024
# Characters of one line of raw console text; a longer one becomes several records.
MAX_LINE: Final = 8 * 1024
# Lines of one packet of console text that become a record each; the rest of them come together in records of MAX_LINE.
# Sixty thousand empty lines fit a packet.
MAX_LINES: Final = 256
NOTICE, WARNING, ERROR, CRITICAL, INFO = 5, 4, 3, 2, 6

# The head of a SEND frame without descriptors; never the first byte of a text in UTF-8.
_SEND: Final = 0x93


class Syslog:
    """Takes, stamps and hands on the records of one system.

    With an adopted ``journal`` it goes on where its predecessor was killed: with its run, its numbers and its records,
    and with the packets that it had received. Without one, records end with this process. ``spill`` is the folder for
    what the journal has no room for.
    """

    def __init__(
        self,
        secrets: Secrets = NO_SECRETS,
        journal: Journal | None = None,
        policies: LogPolicies | None = None,
        spill: pathlib.Path | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._secrets = secrets
        self.journal = Journal.private() if journal is None else journal
        """Where they are; its descriptor is for the nucleus to keep."""
        self.policies = policies or LogPolicies()
        self.turns = turns or Turns()
        self.waiting = trio.lowlevel.ParkingLot()
        """Readers that wait for room in the journal."""
        self.journal.room.declare(self.policies)
        if spill is not None:
            self.journal.room.adopt(Spill(spill, self.journal.run))
        self.run = self.journal.run
        """Tells the records of this run of the system from those of others: sequence numbers begin anew."""
        self._decoder = wire.Decoder()
        self.broadcast = Broadcast()
        self.keeper = Keeper(self)
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

    def write_told(self, machine: str, cause: Cause, lost: int) -> None:
        """A record that says how many of a machine were lost in here: they are told with it."""
        text, fields = gap(machine, cause, lost, self.policies.of(machine))
        self._write(WARNING, text, machine, 0, fields, told=(cause, lost))

    def _write(
        self,
        severity: int,
        message: str,
        machine: str,
        generation: int,
        fields: Any,
        *,
        told: tuple[Cause, int] | None = None,
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
        self.keeper.notice()
        if followers := self.broadcast.followers_of(machine):
            for seq, body in enumerate(bodies, first):
                item = ["record", record_of(seq, machine, generation, body)]
                for follower in followers:
                    follower.offer(item)

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
                turn = functools.partial(self._turn, source, sock, beat)
                pause: float | None = PAUSE
                while pause is not None:
                    if pause:
                        await self._wait_readable(source, sock)
                    await self._wait_for_room(source)
                    pause = await self.turns.take(source, turn)
                    if pause:
                        await trio.sleep(pause)
            self._end(source)
        finally:
            source.reading = False

    async def _wait_readable(self, source: Source, sock: socket.socket) -> None:
        """Until there is something to read; what its rate has cost a machine that is silent now is told meanwhile."""
        tape = self.journal.tape(source.machine)
        if tape.over:
            self._allow(source, self.policies.of(source.machine))
            if source.allowance is not None:
                with trio.move_on_after(source.allowance.until_next()):
                    await trio.lowlevel.wait_readable(sock)
                    return
            self._commit(source, self._told_over(source), 0)
        await trio.lowlevel.wait_readable(sock)

    async def _wait_for_room(self, source: Source) -> None:
        """A machine that blocks waits here until it may write on, and one that spills for a moment."""
        machine, room = source.machine, self.journal.room
        policy = self.policies.of(machine)
        self._allow(source, policy)
        if policy.policy == "drop" or source.free:
            return
        blocks = policy.policy == "block"
        try:
            source.held = blocks
            while blocks and source.allowance is not None and not source.free and (wait := source.allowance.wait()):
                with trio.move_on_after(wait):
                    await self.waiting.park()
                if self.policies.of(machine) is not policy:
                    policy = self.policies.of(machine)
                    blocks = policy.policy == "block"
                    self._allow(source, policy)
            if not room.full(machine) or not (blocks or self.keeper.there):
                return
            for limit in (STILL, float("inf")) if blocks else (PACE,):
                with self.keeper.urgent(), trio.move_on_after(limit):
                    while room.full(machine) and not source.free and self.policies.of(machine) is policy:
                        await self.waiting.park()
                    return
                if blocks:
                    text = f"{machine} stands still: its records wait to be stored, and log.policy is block"
                    self.write(NOTICE, text, fields={"of": machine, "generation": source.generation})
        finally:
            source.held = False

    def _allow(self, source: Source, policy: LogPolicy) -> None:
        if policy.rate is None:
            source.allowance = None
        elif source.allowance is None or source.allowance.rate != policy.rate:
            source.allowance = Allowance(policy.rate, time.monotonic)

    def held(self, machine: str, generation: int) -> bool:
        """Whether a machine may stand still because its log descriptor is not read."""
        return any(source.held for source in self._sources(machine, generation))

    def _sources(self, machine: str, generation: int) -> list[Source]:
        return [each for each in self.journal.sources if (each.machine, each.generation) == (machine, generation)]

    def release(self, machine: str, generation: int) -> None:
        """Let a machine wait no more: it is to end, or has ended."""
        for source in self._sources(machine, generation):
            source.free = True
        self.waiting.unpark_all()

    def declare(self, topology: Directory) -> None:
        """From now on the policies are those of this topology. What a rate has cost that is none any more is told."""
        entries = topology.entries
        for source in self.journal.sources:
            rate = entries[source.machine].log.rate if source.machine in entries else None
            if rate is None and (told := self._told_over(source)):
                self._commit(source, told, 0)
        self.policies.declare(topology)
        self.journal.room.declare(self.policies)
        self.waiting.unpark_all()

    def finish(self) -> str:
        """The system ends: what is not stored is left on the disk for the next one, or what tells that it is lost.

        Returns what could not be left there either, as a line for the operator; nothing if there is no such thing.
        """
        journal, room = self.journal, self.journal.room
        if not journal.keeping:
            return ""
        ended = room.give_up_all()
        for source in journal.sources:
            if told := self._told_over(source):
                self._commit(source, told, 0)
        for machine, cause, lost in journal.losses:
            at_end = min(ended.get(machine, 0), lost) if cause == "buffer" else 0
            for why, count in ((cause, lost - at_end), ("end", at_end)):
                if count:
                    self.write_told(machine, why, count)
        untold = room.leave_all()
        if room.spill is not None:
            room.spill.close()
        return untold_text(untold) if untold else ""

    def _source(self, machine: str, generation: int) -> Source:
        try:
            return self.journal.source(machine, generation)
        except OSError:
            for source in self.unread():
                self._end(source)
            return self.journal.source(machine, generation)

    def _turn(self, source: Source, sock: socket.socket, beat: Callable[[Beat], None] | None) -> float | None:
        """Read what there is, if it is not too much; returns the seconds until the next turn, at the end None."""
        journal, turns = self.journal, self.turns
        if self._blocked(source):  # while it waited for its turn others have taken the room
            return go_on(source)
        end = turns.end()
        while True:
            before, slots = journal.last, source.slots
            packets = journal.receive(source, sock)
            if packets is None:
                return rest(source)
            if packets:
                self._packets(source, packets, beat)
                if not packets[-1][0] and ended(sock):
                    return None
                made = journal.last - before
                source.trust(made <= MANY)
                source.came += max(made, len(packets))
                if len(packets) < slots:
                    return rest(source, late=turns.clock() >= end)
            if turns.clock() >= end or self._blocked(source):
                return go_on(source)

    def _blocked(self, source: Source) -> bool:
        machine = source.machine
        return self.policies.of(machine).policy == "block" and not source.free and self.journal.room.full(machine)

    def _packets(
        self,
        source: Source,
        untrusted_packets: Sequence[tuple[memoryview | bytes, bool]],
        beat: Callable[[Beat], None] | None,
        *,
        poisonous: bool = False,
    ) -> None:
        """Make records of packets that are in the journal's intake."""
        frames = None if poisonous else self._decode(untrusted_packets)
        if frames is not None and source.allowance is None:
            plain = checked_bodies(frames, source.number)
            if plain is not None:
                self._secrets.hide_in(plain)
                source.number += len(plain)
                self._commit(source, plain, len(plain))
                return
        bodies: list[Body] = []
        beats: list[Beat] = []
        done = size = 0
        for place, (packet, cut) in enumerate(untrusted_packets):
            before = len(bodies)
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
            if source.allowance is not None:
                self._limit(source, bodies, before)
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
            body = checked_body(frame)
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
            bodies.append(self._ours(WARNING, *gap(source.machine, "descriptor", missing, UNDECLARED)))

    def _limit(self, source: Source, bodies: list[Body], start: int) -> None:
        """Leave out what is more than the rate of a machine allows; or let it wait for that later, if it blocks."""
        assert source.allowance is not None
        new = bodies[start:]
        count = sum(body[2] != OURS for body in new)
        if self.policies.of(source.machine).policy == "block":
            source.allowance.take(count)
            return
        granted = source.allowance.grant(count)
        told = self._told_over(source) if granted else []
        if granted < count or told:
            bodies[start:] = told
            whole = granted == count
            for body in new:
                ours = body[2] == OURS
                if whole or (source.allowance.tell() if ours else granted):
                    granted -= not ours
                    count -= not ours
                    bodies.append(body)
                elif ours:  # told with the others: a machine chooses its numbers, and so how many gaps it has
                    count += body[4].get("lost", 0)
            source.over += max(0, min(count, MOST_LOST - self.journal.tape(source.machine).over - source.over))

    def _told_over(self, source: Source) -> list[Body]:
        """A record that says what its rate has cost a machine, if it has; part of the next commit."""
        machine = source.machine
        over = self.journal.tape(machine).over + source.over
        source.over -= over
        return [self._ours(WARNING, *gap(machine, "rate", over, self.policies.of(machine)))] if over else []

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
        bodies += self._told_over(source)
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

    def recent(self, machine: Machines, count: int, *, after: int = 0, before: int = ENDLESS) -> list[Record]:
        """The newest records there are here between two numbers, oldest first, of some machines or of all."""
        found = [*itertools.islice(self.journal.newest(machine, after=after, before=before), max(count, 0))]
        found.reverse()
        return found

    def since(self, after: int, machine: Machines = None, *, most: int = PAGE) -> list[Record]:
        """The oldest records there are here after a number, also one of an earlier control program: a page of them.

        Numbers of all machines follow each other: of those that are missing among all, nothing is here any more.
        """
        page: list[Record] = []
        room = PAGE_ROOM
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
