"""The program of a machine that has been taken over: it writes whatever it can to every descriptor it has.

It does what an operator asks of it (see :meth:`Hostile.handle`), so that a test can look at the system in between.
What it has done to its control path, of which it dies, stands in a file on its disk: the next generation goes on there.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import pathlib
import random
import resource
import select
import socket
import stat
from collections import Counter
from typing import Any, Final

import attrs
import trio

from retinue.pipes import Message, Rejected, wire
from retinue.pipes.wire import Kind
from retinue.svm import Machine

CONTROL, LOG = 3, 4
# Writes to a path after the first one that was refused with EPIPE; then another path is asked for.
REFUSED: Final = 8
# Packets in one turn; between two of them this machine answers the control program.
TURN: Final = 512
# Milliseconds to wait for room in a buffer, which somebody should empty.
PATIENCE: Final = 1000
# A packet that never fits: some buffers take it, no reader does.
OVERSIZE: Final = bytes(wire.MAX_PACKET + 1000)
_NOW: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
# Asks in one burst of a flood.
BURST: Final = 1000


@attrs.frozen
class Config:
    """``seed`` of everything that is random, ``control`` the number of packets for the control path."""

    seed: int
    control: int


class Packets:
    """Random packets, and valid frames with some bytes changed, put in or cut off."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(str(seed))
        self._memfds = _memfds()
        self.badness = 0.5  # of the valid frames, how many are mutated
        self.calls = False  # no one-way messages among those
        self._ident = 0
        rng = self._random
        self._bodies: list[Any] = [
            None,
            "x" * 100,
            *(["connect", {"edge": edge, "wait": True}] for edge in ("victim", "cp", "*CP", "OTHER", "", 5)),
            *(
                ["rebind", {"path": path, "stream": rng.choice((True, False, 1)), "wanted": True}]
                for path in range(-1, 9)
            ),
            *([verb, {}] for verb in ("ready", "ps", "connect", "what")),
            ["follow", {"events": True, "after": 0}],
            ["logs", {"count": 5}],
            [[[rng.random()] * 5] * 5],
            *([when, severity, "retinue.cp", "a record", {}] for when in (0.0, 1.7e9, 1e300) for severity in (0, 6, 9)),
        ]

    def restart(self, badness: tuple[float, ...] = (0.01, 0.1, 0.5, 1.0)) -> None:
        """For another path: its messages begin anew; some paths are left whole for longer than others."""
        self.badness = self._random.choice(badness)
        self._ident = 0

    def next(self) -> tuple[bytes, list[int]]:
        """A packet, and the descriptors that go with it."""
        draw = self._random.random()
        if draw > self.badness * 0.2:
            packet = self._frames()
            if self._random.random() < self.badness:
                packet = self._mutated(packet)
        elif draw < self.badness * 0.001:
            packet = OVERSIZE
        else:
            packet = self._random.randbytes(self._random.randrange(200))
        given: list[int] = []
        if self._random.random() < 0.01:
            most = wire.MAX_DESCRIPTORS + (self._random.random() < self.badness)
            given = self._random.choices(self._memfds, k=self._random.choice((1, 1, 1, 3, most)))
        return packet, given

    def _frames(self) -> bytes:
        return b"".join(wire.encode(self._frame()) for _ in range(self._random.choice((1, 1, 1, 2, 5))))

    def _frame(self) -> list[Any]:
        rng = self._random
        self._ident += 1
        body = self._bodies[int(rng.random() * len(self._bodies))]
        if rng.random() > self.badness:
            return [Kind.CALL if self.calls else rng.choice((Kind.CALL, Kind.SEND)), self._ident, body]
        ident = rng.choice((1, self._ident, -self._ident, 2**62))
        match rng.choice(tuple(Kind)):
            case Kind.HELLO:
                return [Kind.HELLO, wire.VERSION, 64, 5, 0, 0, 0, 0, 0]
            case Kind.CALL:
                return [Kind.CALL, ident, body, rng.randrange(4), rng.choice((1, 10**9))]
            case Kind.SEND | Kind.REPLY as kind:
                return [kind, ident, body, rng.randrange(2)]
            case Kind.REJECT:
                return [Kind.REJECT, ident, "violation", "x" * rng.randrange(3000), None]
            case Kind.ACK:
                return [Kind.ACK, ident, ident + rng.randrange(9) if ident > 0 else ident]
            case Kind.SEVER:
                return [Kind.SEVER, "violation", "it broke the protocol"]
            case Kind.DATA:
                return [Kind.DATA, b"y" * rng.randrange(1, 3000)]
            case Kind.CREDIT:
                return [Kind.CREDIT, rng.choice((1, wire.STREAM_WINDOW))]
            case Kind.BULK:
                return [Kind.BULK, rng.choice((wire.MAX_PACKET + 1, 100_000, wire.MAX_MESSAGE))]
            case Kind.PURGE:
                return [Kind.PURGE, ident]
            case Kind.SEEN:
                return [Kind.SEEN, rng.choice((0, self._ident, 2**62))]
            case kind:  # STREAM, EOF, QUIESCE, QUIESCED, RESUME
                return [kind]

    def _mutated(self, packet: bytes) -> bytes:
        rng, data = self._random, bytearray(packet)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(4):
                case 0 if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    data[at:at] = rng.randbytes(rng.choice((1, 1, 4)))
                case 2:
                    del data[at : at + rng.choice((1, 1, 4))]
                case _ if rng.random() < 0.1:
                    del data[at:]
        return bytes(data)


def _memfds() -> list[int]:
    """What a bulk frame may come with: good and bad contents, sealed, not sealed, empty; and what is no memfd."""
    good = wire.encode([Kind.SEND, 1, bytes(99_992)])
    found = [0]
    for contents, seals in ((good, True), (good[:-5], True), (b"\xc1" * 100_000, True), (good, False), (b"", True)):
        descriptor = os.memfd_create("bulk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(descriptor, contents)
        if seals:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        found.append(descriptor)
    return found


def descriptors() -> list[int]:
    """Every descriptor this process has open: there is no /proc to ask in here."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = []
    for number in range(most):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    return found


class Hostile:
    """What the machine does, and what came of it."""

    def __init__(self, vm: Machine[Config]) -> None:
        self._vm = vm
        self._control = vm._control  # its asks are well formed; what it sends on the paths it gets is not
        self._offered, self._came = trio.open_memory_channel[int](0)
        self.born_with = descriptors()

    async def offer(self, peer: str, limit: int, descriptor: int, *, ident: int = 0, edge: str = "") -> None:
        """Instead of the runtime: take a path that somebody opens to this machine, and attack it."""
        if peer.startswith("*"):
            await Machine.offer(self._vm, peer, limit, descriptor, ident=ident, edge=edge)
            return
        if self._offered.statistics().tasks_waiting_receive == 0:
            os.close(descriptor)
            raise Rejected("not-now")
        self._offered.send_nowait(descriptor)

    async def connect(self, edge: str) -> int:
        """The raw end of a new path."""
        reply = await self._control.call_reply(["connect", {"edge": edge, "wait": True}])
        (descriptor,) = reply.descriptors
        return descriptor

    async def handle(self, message: Message) -> Any:
        """What the test wants."""
        match message.body:
            case ["descriptors"]:
                return self.born_with
            case ["attack", str(edge), int(count)]:
                return await self.attack_paths(edge, count)
            case ["attack", int(descriptor), int(count)]:
                return await self.attack_descriptor(descriptor, count)
            case ["flood", int(bursts)]:
                return await self.flood(bursts)
            case ["hold", str(edge)]:
                return await self.hold(edge)
            case ["say", body]:
                await self._control.send(body)
                return None
        raise Rejected("what")

    async def attack_descriptor(self, descriptor: int, count: int) -> dict[str, int]:
        """One that the machine was born with."""
        packets = Packets((self._vm.config.seed, descriptor))
        done: Counter[str] = Counter()
        sock = socket.socket(fileno=descriptor) if stat.S_ISSOCK(os.fstat(descriptor).st_mode) else None
        patience = PATIENCE if descriptor <= LOG else 0  # what trio has for itself is read by nobody else
        # Nobody looks at what is written there: the same ones will do again and again.
        pool = [] if 0 < descriptor <= LOG else [packets.next() for _ in range(TURN)]
        while done.total() < count:
            if done.total() % (4 * TURN) == 0:
                packets.restart()
            for number in range(min(TURN, count - done.total())):
                packet, given = pool[number] if pool else packets.next()
                done[_write(descriptor, packet) if sock is None else _send(sock, packet, given, patience)] += 1
            await trio.lowlevel.checkpoint()
        if sock is not None:
            sock.detach()
        return dict(done)

    async def attack_paths(self, edge: str, count: int) -> dict[str, int]:
        """Paths along an edge, or (``""``) those that others open to this machine, until there were enough packets."""
        packets = Packets((self._vm.config.seed, edge))
        done: Counter[str] = Counter()
        paths = 0
        while done.total() < count:
            descriptor = await self.connect(edge) if edge else await self._came.receive()
            paths += 1
            with socket.socket(fileno=descriptor) as sock:
                with trio.move_on_after(PATIENCE / 1000):
                    await trio.lowlevel.wait_readable(sock)  # it has got its end as well
                await self._attack_path(sock, packets, done, count)
        return {"paths": paths, **done}

    async def _attack_path(self, sock: socket.socket, packets: Packets, done: Counter[str], count: int) -> None:
        packets.restart()
        if packets.badness < 1:
            _send(sock, wire.encode([Kind.HELLO, wire.VERSION, 64, 5, 0, 0, 0, 0, 0]), [])
        refused = 0
        while refused < REFUSED and done.total() < count:
            for _ in range(TURN):
                packet, given = packets.next()
                if packets.badness < 0.5:
                    _empty(sock)
                end = _send(sock, packet, given)
                done[end] += 1
                refused += end == "EPIPE"
                if refused >= REFUSED or done.total() >= count:
                    break
            await trio.lowlevel.checkpoint()

    async def flood(self, bursts: int) -> dict[str, int]:
        """Ask the control program for what there is and what there is not, as fast as it answers."""
        codes: Counter[str] = Counter()

        async def ask(body: Any) -> None:
            try:
                reply = await self._control.call_reply(body)
            except Rejected as exc:
                codes[exc.code] += 1
                return
            codes["granted"] += 1
            for descriptor in reply.descriptors:
                os.close(descriptor)

        bodies = (
            ["connect", {"edge": "victim", "wait": True}],
            ["connect", {"edge": "cp", "wait": True}],
            ["connect", {"edge": "nothing", "wait": True}],
            ["rebind", {"path": 1, "stream": False, "wanted": True}],
            ["what", {}],
        )
        for _ in range(bursts):
            async with trio.open_nursery() as nursery:
                for number in range(BURST):
                    nursery.start_soon(ask, bodies[number % len(bodies)])
        return dict(codes)

    async def hold(self, edge: str) -> dict[str, Any]:
        """Paths that are never closed, as many as there are to be had."""
        held: list[int] = []
        try:
            while True:
                held.append(await self.connect(edge))
        except Rejected as exc:
            return {"held": len(held), "code": exc.code, "text": exc.text}
        finally:
            for descriptor in held:
                os.close(descriptor)


def _write(descriptor: int, packet: bytes) -> str:
    try:
        os.write(descriptor, packet)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return "accepted"


def _send(sock: socket.socket, packet: bytes, given: list[int], patience: int = PATIENCE) -> str:
    """Send once, or twice when there was no room at first."""
    for _ in range(2):
        try:
            if given:
                socket.send_fds(sock, [packet], given, _NOW)
            else:
                sock.send(packet, _NOW)
            return "accepted"
        except BlockingIOError:
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            poll.poll(patience)
        except BrokenPipeError:
            return "EPIPE"
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
    return "EAGAIN"


def _empty(sock: socket.socket) -> None:
    """Read what the other end says, so that it does not wait."""
    with contextlib.suppress(OSError):
        while True:
            data, given, _, _ = socket.recv_fds(sock, wire.MAX_PACKET, wire.MAX_DESCRIPTORS, socket.MSG_DONTWAIT)
            for each in given:
                os.close(each)
            if not data:
                return


def attack_control(file: pathlib.Path, seed: int, count: int) -> None:
    """If the test has made the file: write to the control path until this process is killed for it.

    Its successors go on until there were enough packets.
    """
    if not file.exists():
        return
    with file.open("r+b") as disk:
        book = memoryview(mmap.mmap(disk.fileno(), 4096)).cast("Q")  # accepted, refused, generations
    book[2] += 1
    packets = Packets((seed, "control", book[2]))
    packets.calls = True
    packets.restart(((0.0002, 0.5, 0.0002, 0.01)[book[2] % 4],))  # each violation costs a generation
    with socket.socket(fileno=os.dup(CONTROL)) as sock:
        while book[0] + book[1] < count:
            packet, given = packets.next()
            _empty(sock)
            book[_send(sock, packet, given) != "accepted"] += 1


async def main(vm: Machine[Config]) -> None:
    attack_control(vm.disk("d") / "control", vm.config.seed, vm.config.control)
    hostile = Hostile(vm)
    vm.offer = hostile.offer  # type: ignore[method-assign]  # what comes in is attacked as well
    await vm.serve(hostile.handle)
