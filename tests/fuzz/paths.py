"""A whole path under trio, a program above it and a hostile peer below: it ends severed, and raises nothing."""

import contextlib
import fcntl
import gc
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import trio
import trio.testing
from tests.fuzz.frames import draw_body, draw_packet
from tests.fuzz.script import Script
from tests.leaks import assert_none_left, descriptors

from retinue.pipes import (
    Draft,
    Message,
    Overflow,
    Path,
    PathError,
    PathSevered,
    PathStream,
    Rejected,
    SocketTransport,
    State,
    Transport,
    memory_pair,
    open_path,
    socket_pair,
    wire,
)

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# Steps of one input; each lets everything run that can.
MOST_STEPS: Final = 60
# Descriptors that a path is given after its first, before it is told that there are no more.
MOST_REBINDS: Final = 4
# A step below these is a packet of the peer; below the other a large message; else something else. After an odd one
# everything runs that can.
FIRST_BULK: Final = 160
FIRST_STEP: Final = 176
# Seconds after which a path that should have ended hangs.
PATIENCE: Final = 8
_OVERFLOWS: Final[tuple[Overflow, ...]] = ("block", "drop-newest", "drop-oldest", "sever")
# What the verbs of a stream may raise besides.
_STREAM_ERRORS: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError)


def path_target(data: bytes) -> None:
    """Run a path against the script; everything has ended after it, and nothing is open."""
    before = descriptors()
    with in_fixed_order(), no_unraisable():
        trio.run(Harness(Script(data)).run)
        if descriptors() - before:
            gc.collect()  # a message in a cycle, such as that of an exception, closes its descriptors later
    assert_none_left(before)


@contextlib.contextmanager
def in_fixed_order() -> Iterator[None]:
    """trio runs its tasks in a random order: the same one every time, so that an input does the same every time."""
    scheduler = vars(trio._core._run)
    was = scheduler["_ALLOW_DETERMINISTIC_SCHEDULING"]
    scheduler["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    scheduler["_r"].seed(0)
    try:
        yield
    finally:
        scheduler["_ALLOW_DETERMINISTIC_SCHEDULING"] = was


@contextlib.contextmanager
def no_unraisable() -> Iterator[None]:
    """What is raised where nobody can catch it, as when a message closes its descriptors, is raised here."""
    found: list[BaseException | None] = []

    def note(unraisable: "UnraisableHookArgs") -> None:
        found.append(unraisable.exc_value)

    was, sys.unraisablehook = sys.unraisablehook, note
    try:
        yield
    finally:
        sys.unraisablehook = was
    assert not found, f"raised and not caught: {found!r}"


class Harness:
    """A path, its program, and its peer."""

    def __init__(self, script: Script) -> None:
        self.script = script
        flags = script.byte()
        self.kind = "socket" if flags & 1 else "memory"
        self.limit = script.pick((1, 2, 4, 64))
        self.keeps = bool(flags & 2)
        self.rebinds = MOST_REBINDS if self.keeps else 0
        self.quiesced = bool(flags & 4)
        self.serves = not flags & 8
        self.overflow = _OVERFLOWS[flags >> 4 & 3]
        self.manner = script.byte()
        self.peer: Transport
        self.handled = 0
        self.stream: PathStream | None = None
        self.scopes: list[trio.CancelScope] = []

    def pair(self) -> Transport:
        """Another pair: one end is the path's, the other the peer's from now on."""
        ours: Transport
        if self.kind == "memory":
            ours, self.peer = memory_pair()
            return ours
        left, right = socket_pair()
        ours, self.peer = SocketTransport(left), SocketTransport(right)
        return ours

    async def rebind(self, _: Path) -> Transport:
        """Ask for another descriptor."""
        await trio.lowlevel.checkpoint()
        if self.rebinds == 0:
            raise PathSevered("gone", "there is no other")
        self.rebinds -= 1
        return self.pair()

    async def run(self) -> None:
        """The whole life of the path."""
        transport = self.pair()
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as self.nursery:
                async with open_path(
                    transport,
                    name="fuzzed",
                    limit=self.limit,
                    largest=4 * wire.MAX_PACKET,
                    overflow=self.overflow,
                    rebind=self.rebind if self.keeps else None,
                    quiesced=self.quiesced,
                ) as self.path:
                    if self.serves:
                        self.nursery.start_soon(self.serve)
                    self.nursery.start_soon(self.wait, self.path.wait_open)
                    self.nursery.start_soon(self.wait, self.path.wait_stream)
                    await self.play()
                    self.rebinds = 0
                    self.peer.close()
                    await self.path.wait_severed()
                assert self.path.severed is not None
                assert self.path.session.outstanding[0] == 0
                while self.path.next_message() is not None:
                    pass

    async def play(self) -> None:
        """Step after step to the end of the script."""
        script = self.script
        for _ in range(MOST_STEPS):
            if script.over:
                break
            step = script.byte()
            if step < FIRST_BULK:
                self.write(draw_packet(script, self.path.session.link.token), step % 5 == 4)
            elif step < FIRST_STEP:
                self.write_bulk()
            else:
                await _STEPS[(step - FIRST_STEP) // 2 % len(_STEPS)](self)
            if step & 1:
                await trio.testing.wait_all_tasks_blocked()

    # -- the peer -----------------------------------------------------------------------------------------------------

    def write(self, packet: bytes, with_descriptors: bool = False) -> None:
        """The peer writes a packet, if there is room."""
        descriptors = []
        if with_descriptors:
            descriptors = [os.memfd_create("fuzzed") for _ in range(self.script.byte() % (wire.MAX_DESCRIPTORS + 2))]
        try:
            if packet:
                self.peer.send(packet[: wire.MAX_PACKET + 1], descriptors)
        except (BlockingIOError, BrokenPipeError):
            pass
        finally:
            for each in descriptors:
                os.close(each)

    def write_bulk(self) -> None:
        """The peer writes a large message; something may be wrong with it."""
        script = self.script
        how = script.byte()
        large = bytes(wire.MAX_PACKET + script.number() % (4 * wire.MAX_PACKET))
        frame = wire.encode([1 + how % 4, script.signed(), large, *([] if how % 4 < 3 else ["", None])])
        size = len(frame) + (script.signed() if how & 0x30 == 0x30 else 0)
        memfd = os.memfd_create("fuzzed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(memfd, frame)
            if how & 0xC0 != 0xC0:
                fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                self.peer.send(wire.encode([wire.Kind.BULK, size]), [memfd])
        finally:
            os.close(memfd)

    async def read(self) -> None:
        """The peer reads everything; all of it is right."""
        while True:
            try:
                packet, descriptors = self.peer.receive()
            except BlockingIOError:
                return
            for each in descriptors:
                os.close(each)
            if not packet:
                return
            wire.Decoder().decode(packet)

    async def cut(self) -> None:
        """The descriptor of the peer is closed."""
        self.peer.close()

    # -- the program --------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Handle messages, each in another manner."""
        failures: list[Exception] = []
        await self.path.serve(self.handle, failed=lambda _, failure: failures.append(failure))
        assert all(type(failure) is KeyError for failure in failures), failures

    async def handle(self, message: Message) -> Any:
        """A handler that returns what came, refuses, fails, or waits."""
        self.handled += 1
        match (self.manner + self.handled) % 6:
            case 0:
                raise Rejected("no", "not today", message.body)
            case 1:
                raise KeyError("a handler that fails")
            case 2 if message.wants_reply:  # nothing else is ever withdrawn
                await message.purged.wait()
            case 3:
                for each in message.descriptors:
                    os.close(each)
            case 4:
                await trio.lowlevel.checkpoint()
                assert message.deadline > 0
        assert message.redelivered in (True, False)
        return message.body

    async def take(self) -> None:
        """Take one message without waiting, and answer it."""
        message = self.path.next_message()
        if message is None:
            return
        if not message.wants_reply:
            self.path.acknowledge(message)
        elif self.path.answers(message):
            if self.script.flag():
                descriptors = message.descriptors
                try:
                    await message.reply(message.body, descriptors=descriptors[:2])
                finally:
                    for each in descriptors:
                        os.close(each)
            else:
                await message.reject("no")

    async def wait(self, turned: Callable[[], Awaitable[None]]) -> None:
        """Until the peer has greeted or turned to a stream; at the end of the path at the latest."""
        with contextlib.suppress(PathError):
            await turned()

    async def receive(self) -> None:
        """Wait for message after message, and answer each."""

        async def verb() -> None:
            async for message in self.path:
                if message.wants_reply:
                    await message.reply(message.priority)

        self.begin(verb)

    def begin(self, verb: Callable[[], Awaitable[object]]) -> None:
        """Do something that may wait, in a task of its own."""

        async def task() -> None:
            with trio.CancelScope() as scope, contextlib.suppress(PathError, *_STREAM_ERRORS):
                self.scopes.append(scope)
                await verb()

        self.nursery.start_soon(task)

    def draft(self) -> Draft | None:
        """A body that is made in place, if the path lives."""
        with contextlib.suppress(PathError):
            return self.path.draft(wire.MAX_PACKET)
        return None

    async def call(self) -> None:
        """Call, with or without descriptors, deadline and priority."""
        path = self.path
        flags = self.script.byte()
        body = bytes(wire.MAX_PACKET) if flags & 7 == 7 else draw_body(self.script)
        if isinstance(body, list):  # may be too deep, which is another matter
            body = None
        if flags & 0x87 == 0x87:
            body = self.draft()
        # Standard error will do as any other: it is copied.
        descriptors = (2,) * (flags >> 4 & 3) if flags & 0x30 else ()

        async def verb() -> None:
            with trio.move_on_after(1000 if flags & 8 else float("inf")):
                reply = await path.call_reply(body, descriptors=descriptors, priority=bool(flags & 0x40))
                for each in reply.descriptors:
                    os.close(each)

        self.begin(verb)

    async def send(self) -> None:
        """Send, and wait until it was received."""
        flags = self.script.byte()
        body = (self.draft() if flags & 0x80 else bytes(wire.MAX_PACKET)) if flags & 7 == 7 else flags
        self.begin(lambda: self.path.send(body, priority=bool(flags & 0x40)))

    async def send_many(self) -> None:
        """Send several."""
        count = self.script.byte()
        self.begin(lambda: self.path.send_many(range(count)))

    async def send_nowait(self) -> None:
        """Send without waiting for anything."""
        with contextlib.suppress(PathError, trio.WouldBlock):
            self.path.send_nowait(self.script.byte(), priority=self.script.flag())

    async def cancel(self) -> None:
        """Cancel something that waits, or did."""
        if self.scopes:
            self.scopes.pop(self.script.byte() % len(self.scopes)).cancel()

    async def gate(self) -> None:
        """Take no more messages, or take them again."""
        self.begin(self.path.quiesce if self.script.flag() else self.path.resume)

    async def turn(self) -> None:
        """Turn the path into a stream, read it to its end, and write into it."""
        if self.stream is None:
            with contextlib.suppress(PathError):
                self.stream = self.path.stream()
                self.begin(self.read_stream)
        else:
            flags = self.script.byte()
            stream = self.stream
            data = bytes(flags * 1000)
            if flags == 0:
                self.begin(stream.aclose)
            else:
                self.begin(stream.send_eof if flags < 32 else lambda: stream.send_all(data))

    async def read_stream(self) -> None:
        """Read to the end."""
        assert self.stream is not None
        while await self.stream.receive_some():
            pass
        assert self.path.session.state in (State.STREAM, State.ASKED, State.SEVERED)

    async def end(self) -> None:
        """The program ends the path."""
        how = self.script.byte()
        if how & 3 == 0:
            self.begin(self.path.aclose)
        elif how & 3 == 1:
            self.path.sever("enough", "of it")


# By name for those who write inputs; a step takes one by its place.
STEPS: Final[dict[str, Callable[[Harness], Awaitable[None]]]] = {
    "read": Harness.read,
    "cut": Harness.cut,
    "take": Harness.take,
    "call": Harness.call,
    "send": Harness.send,
    "send_many": Harness.send_many,
    "send_nowait": Harness.send_nowait,
    "cancel": Harness.cancel,
    "gate": Harness.gate,
    "turn": Harness.turn,
    "end": Harness.end,
    "receive": Harness.receive,
}
_STEPS: Final = tuple(STEPS.values())
