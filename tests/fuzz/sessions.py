"""One session between a program and a hostile peer, both steered by the bytes; a model knows what must hold."""

import os
from collections.abc import Callable
from typing import Any, Final

from tests.fuzz.frames import draw_body, draw_packet
from tests.fuzz.script import Script

from retinue.pipes import LimitExceeded, PathError, ProtocolViolation, bulk, wire
from retinue.pipes.link import Greeting
from retinue.pipes.session import Session
from retinue.pipes.states import Binding, State
from retinue.pipes.wire import Frame, Kind

TOKEN: Final = 1000
# Steps of one input: every state is reached in far fewer.
MOST_STEPS: Final = 200
# A step below is a packet of the peer, one from here a command of the program.
FIRST_COMMAND: Final = 128
# A body that travels in a memfd.
_LARGE: Final = bytes(wire.MAX_PACKET)
_ANSWERS: Final = (Kind.REPLY, Kind.REJECT)


def session_target(data: bytes) -> None:
    """Steer a session; whatever happened, it ends, and nothing of it is left."""
    harness = Harness(Script(data))
    try:
        harness.play()
    finally:
        harness.tidy()


class Harness:
    """A session, what lies below it (as the pump does it), and the model of what both programs may expect."""

    def __init__(self, script: Script) -> None:
        self.script = script
        flags = script.byte()
        self.keeps = bool(flags & 1)
        self.shelf = bulk.Shelf()
        self.owned: set[int] = set()  # descriptors that are the session's
        self.session = Session(
            script.pick((1, 2, 3, 64)),
            "fuzzed",
            keeps=self.keeps,
            store=lambda frame: self.shelf.store(bulk.split(frame)),
            close=self.close_owned,
            token=TOKEN,
            quiesced=bool(flags & 2),
        )
        self.over = False
        self.ours: dict[int, bool] = {}  # not ended; whether it is a call
        self.theirs: dict[int, Kind] = {}
        self.greetings = 0
        self.unread = 0  # bytes of the stream that the program may credit
        self.bytes_out = 0  # sent and not credited
        if flags & 4:
            self.session.bind()
            self.flush()

    # -- descriptors --------------------------------------------------------------------------------------------------

    def close_owned(self, descriptors: tuple[int, ...]) -> None:
        """What the session calls when nobody needs them any more."""
        for each in descriptors:
            self.owned.remove(each)  # KeyError: for the second time
            os.close(each)

    def with_descriptors(self, say: Callable[[tuple[int, ...]], object]) -> None:
        """Say something with descriptors, which are the session's if it returns something true, and ours if not."""
        count = self.script.byte() % (wire.MAX_DESCRIPTORS + 2)
        descriptors = tuple(os.memfd_create("fuzzed") for _ in range(count))
        self.owned.update(descriptors)
        taken: object = None
        try:
            taken = say(descriptors)
        finally:
            if not taken:
                self.close_owned(descriptors)

    # -- the course of a session --------------------------------------------------------------------------------------

    def play(self) -> None:
        """Step after step to the end of the script, then the end of the session."""
        script = self.script
        for _ in range(MOST_STEPS):
            if script.over or self.over:
                break
            step = script.byte()
            if step < FIRST_COMMAND:
                self.packet()
            else:
                try:
                    _COMMANDS[(step - FIRST_COMMAND) % len(_COMMANDS)](self)
                except ProtocolViolation as exc:
                    raise AssertionError("a command of the program is blamed on the peer") from exc
                except PathError:
                    pass  # the program learns that it cannot have that now
            self.check()
        if not self.over:
            self.give_up("violation", "enough")
        self.check_end()

    def packet(self) -> None:
        """A packet of the peer comes in, or nothing comes because nothing is there to carry it."""
        packet = draw_packet(self.script, TOKEN)
        if self.session.link.binding is Binding.UNBOUND:
            return
        try:
            for frame in wire.decoder().decode(packet):
                self.frame(frame)
                if self.over:
                    return
        except ProtocolViolation as exc:
            self.give_up("violation", exc.rule)
            return
        self.session.link.note(len(packet), at_once=self.script.flag())
        if not self.session.link.idle:
            self.flush()

    def frame(self, frame: Frame) -> None:
        """The session takes a frame, and the model what it says to the program."""
        session = self.session
        withdrawn = set(session._withdrawn)
        accepted = session.receive(frame)
        assert accepted is None or accepted is frame
        match accepted:
            case [Kind.HELLO, *_]:
                self.greetings += 1
                if session.greeting is Greeting.SUCCESSOR:
                    self.theirs.clear()
                    for ident in withdrawn:
                        self.ours.pop(ident, None)
            case [Kind.SEND | Kind.CALL as kind, ident, *_]:
                assert ident not in self.theirs
                assert len(self.theirs) < session.peer_limit
                assert not session.still
                self.theirs[ident] = Kind(kind)
            case [Kind.REPLY | Kind.REJECT, ident, *_]:
                assert self.ours.pop(ident) is True, "an answer to what was no call"
            case [Kind.ACK, first, last]:
                step = 1 if first > 0 else -1
                ended = [ident for ident in range(first, last + step, step) if self.ours.get(ident) is False]
                for ident in ended:
                    if ident not in session._sends:
                        del self.ours[ident]
                assert any(ident not in self.ours for ident in ended), "it has ended nothing"
            case [Kind.PURGE, ident]:
                assert self.theirs[ident] is Kind.CALL
                self.theirs[ident] = Kind.PURGE
            case [Kind.DATA, data]:
                self.unread += len(data)
            case [Kind.CREDIT, count]:
                self.bytes_out -= count
            case [Kind.SEVER, *_]:
                self.finish()
        if session.state is State.SEVERED and not self.over:
            self.flush()
            self.finish()

    def flush(self) -> None:
        """Write what there is to write; the other end can read all of it."""
        session = self.session
        session.settle()
        while True:
            try:
                packet = session.link.next_packet()
            except ProtocolViolation as exc:
                session.lose("violation", exc.rule)
                self.finish()
                return
            if packet is None:
                return
            assert 0 < len(packet.data) <= wire.MAX_PACKET
            assert len(packet.descriptors) <= wire.MAX_DESCRIPTORS
            frames = wire.Decoder().decode(packet.data)
            assert sum(map(wire.descriptors_of, frames)) <= len(packet.descriptors)
            for each in packet.descriptors:
                os.fstat(each)  # still open
            if frames[-1][0] == Kind.SEVER:
                assert session.state is State.SEVERED

    def give_up(self, code: str, text: str) -> None:
        """As the pump does it."""
        self.session.give_up(code, text)
        assert self.session.state is State.SEVERED
        self.flush()
        if not self.over:
            self.finish()

    def finish(self) -> None:
        """The end of the path."""
        if not self.over:
            self.over = True
            self.session.end()

    # -- what the program does ----------------------------------------------------------------------------------------

    def say(self) -> None:
        """It sends or calls."""
        script = self.script
        flags = script.byte()
        is_call, priority = bool(flags & 1), bool(flags & 2)
        body = _LARGE if flags & 0x1C == 0x1C else draw_body(script)
        remaining = script.number() if flags & 0x20 else None
        session = self.session
        room = session.room

        def do(descriptors: tuple[int, ...]) -> int:
            if is_call:
                return session.call(body, descriptors, priority=priority, remaining=remaining)
            return session.send(body, descriptors, priority=priority)

        def note(ident: int) -> int:
            assert room > 0
            assert (ident < 0) is priority
            assert ident not in self.ours
            self.ours[ident] = is_call
            return ident

        try:
            if flags & 0x40:
                self.with_descriptors(lambda descriptors: note(do(descriptors)))
            else:
                note(do(()))
        except (LimitExceeded, TypeError):
            assert room <= 0 or flags & 0x40 or isinstance(body, list)

    def answer(self) -> None:
        """It replies to a message of the peer, or to one that there never was."""
        script = self.script
        ident = self.pick_theirs()
        flags = script.byte()
        body = _LARGE if flags & 0x1C == 0x1C else draw_body(script)
        session = self.session
        kind = self.theirs.get(ident)
        delivered = False

        def do(descriptors: tuple[int, ...]) -> bool:
            nonlocal delivered
            delivered = session.reply(ident, body, descriptors)
            assert kind in (Kind.CALL, Kind.PURGE)
            assert delivered is (kind is Kind.CALL)
            del self.theirs[ident]
            return delivered

        try:
            if flags & 1:
                self.with_descriptors(do)
            else:
                do(())
        except TypeError:
            assert isinstance(body, list)

    def refuse(self) -> None:
        """It rejects a call."""
        ident = self.pick_theirs()
        detail = draw_body(self.script)
        try:
            self.session.reject(ident, "no", "x" * (self.script.number() % (2 * wire.MAX_TEXT)), detail)
        except TypeError:
            assert isinstance(detail, list)
        else:
            assert self.theirs.pop(ident) in (Kind.CALL, Kind.PURGE)

    def acknowledge(self) -> None:
        """It has received a one-way message."""
        ident = self.pick_theirs()
        self.session.acknowledge(ident)
        assert self.theirs.pop(ident) is Kind.SEND

    def pick_theirs(self) -> int:
        """One of the peer's messages, or any number."""
        nth = self.script.byte()
        return list(self.theirs)[nth % len(self.theirs)] if self.theirs and nth < 240 else nth - 250

    def purge(self) -> None:
        """It withdraws a message of its own, mostly a call."""
        nth = self.script.byte()
        ident = list(self.ours)[nth % len(self.ours)] if self.ours and nth < 240 else nth - 250
        had = self.session.outstanding[0]
        self.session.purge(ident)
        if self.session.outstanding[0] < had:
            assert self.ours.pop(ident) is True

    def send_bytes(self) -> None:
        """It writes into the stream."""
        count = self.script.number() % (wire.MAX_CHUNK + 2)
        self.session.send_bytes(bytes(count))
        self.bytes_out += count

    def credit(self) -> None:
        """It has taken bytes out of the stream."""
        count = min(self.script.number() * 16, self.unread)
        if count:
            self.session.credit(count)
            self.unread -= count

    def bind(self) -> None:
        """There is another descriptor."""
        if self.session.link.binding is Binding.UNBOUND:
            self.session.bind()
            self.flush()

    def lose(self) -> None:
        """The descriptor has ended."""
        session = self.session
        if session.link.binding is Binding.UNBOUND:
            return
        if self.keeps:
            session.unbind()
        else:
            session.lose()
            self.finish()

    def end(self) -> None:
        """The program severs, or there is no other descriptor to be had."""
        code = self.script.byte()
        if code & 1:
            self.session.sever("x" * code)
            self.flush()
        else:
            self.session.lose("gone", "for good")
        self.finish()

    # -- what must hold -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """After every step."""
        session = self.session
        link = session.link
        if self.over:  # what the last frame has counted too much counts no more
            assert session.room == 0
            return
        window = 0 if session.turns_later else wire.STREAM_WINDOW - self.bytes_out
        assert 0 <= session.window == window <= wire.STREAM_WINDOW
        assert 0 <= self.unread <= wire.STREAM_WINDOW
        assert session.outstanding == (len(self.ours), len(self.theirs))
        assert all(session.waits(ident) for ident in self.theirs)
        waits = session.unreceived(1, session.last_sent)
        assert waits is any(ident > 0 and not is_call for ident, is_call in self.ours.items())
        assert len(self.theirs) <= session.peer_limit <= session.limit
        # Below 0 it is when the peer has greeted again with a lower limit, and said that it had met nobody before.
        assert session.room <= max(0, session.peer_limit - len(self.ours))
        assert session.room >= 0 or self.greetings > 1
        assert session.room == 0 or (session.state is State.OPEN and not session.held)
        assert link.said <= link.received
        assert link.seen <= link._numbered
        assert (session.state is State.OPENING) >= (link.peer == 0)

    def check_end(self) -> None:
        """After the end: it says why, does nothing more, and has let go of everything."""
        session = self.session
        assert self.over
        assert session.state is State.SEVERED
        assert session.severed_by is not None
        assert session.link.binding is Binding.ENDED
        assert session.room == 0
        assert session.outstanding[0] == 0
        assert session.receive([Kind.SEND, 1, None]) is None
        session.give_up("violation", "again")
        session.end()
        assert session.link.next_packet() is None
        assert not self.owned, "descriptors of messages that are open"
        assert not self.shelf._out, "memfds that were not given back"

    def tidy(self) -> None:
        """Leave nothing behind, also when something was wrong."""
        self.shelf.close()
        for each in self.owned:
            os.close(each)


def _quietly(say: Callable[[Session], Any]) -> Callable[[Harness], None]:
    def do(harness: Harness) -> None:
        say(harness.session)

    return do


# By name for those who write inputs; a step takes one by its place.
COMMANDS: Final[dict[str, Callable[[Harness], None]]] = {
    "say": Harness.say,
    "answer": Harness.answer,
    "refuse": Harness.refuse,
    "acknowledge": Harness.acknowledge,
    "purge": Harness.purge,
    "flush": Harness.flush,
    "bind": Harness.bind,
    "lose": Harness.lose,
    "send_bytes": Harness.send_bytes,
    "credit": Harness.credit,
    "end": Harness.end,
    "settle": _quietly(Session.settle),
    "quiesce": _quietly(Session.quiesce),
    "resume": _quietly(Session.resume),
    "stream": _quietly(Session.stream),
    "send_eof": _quietly(Session.send_eof),
}
_COMMANDS: Final = tuple(COMMANDS.values())
