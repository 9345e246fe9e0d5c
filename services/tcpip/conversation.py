"""A TCP connection and whoever answers it just then: what the client sends goes out as questions, see resumable.py."""

import logging
from typing import Any, Final

import trio

from retinue.pipes import Message, Path, PathError, PathSevered, Rejected
from retinue.pipes.message import close_all
from retinue.services.resumable import AGAIN, END, PIECE, READ, RESUME, WRITE, Asker, BadWord, NotResumable, Part

log: Final = logging.getLogger("retinue.tcpip")


class Conversation:
    """Carries one TCP connection over one path whose target may die and have a successor.

    It ends when both sides have ended, or the server has severed the path, or one of the two broke.
    """

    def __init__(self, connection: trio.SocketStream, path: Path, opening: dict[str, Any], most_kept: int) -> None:
        self.path = path
        self.orderly = False  # the server has ended its side, and all that it sent is with the client's kernel
        self._connection = connection
        self._opening = opening
        self._asker = Asker(most_kept)
        self._scope = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._changed = trio.lowlevel.ParkingLot()  # something has come from the client, or the end of the path
        self._room = trio.lowlevel.ParkingLot()
        self._writing = trio.Lock()
        self._finishing = False

    async def run(self) -> None:
        """Carry it to the end. The path is severed then; the socket is for the caller to close (:attr:`orderly`)."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                nursery.start_soon(self._serve)
                await self._ask_on()
                nursery.cancel_scope.cancel()
        if self._asker.over:
            await self.path.aclose()
        else:
            self.path.sever("lost", "the TCP connection is gone")

    def finish(self) -> None:
        """The system stops: the client may ask no more once it has the answer that it is owed."""
        self._finishing = True
        self._end_client()

    def _end_client(self) -> None:
        if self._finishing and not self._asker.owed:
            self._reading.cancel()
            self._asker.end()
            self._changed.unpark_all()

    # -- the client ---------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Read what the client sends; some of it ahead, so that its leaving is noticed while it is being answered."""
        asker, receive = self._asker, self._connection.receive_some
        try:
            with self._reading:
                while True:
                    while not asker.has_room:
                        await self._room.park()
                    data = await receive(PIECE)
                    if not data:
                        break
                    if not asker.finished:  # else nobody is there to read it
                        asker.take(data)
                        self._changed.unpark_all()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()
            return
        asker.end()
        if asker.asking and self.path.severed is None:
            try:
                self.path.send_nowait({"type": END})
            except (trio.WouldBlock, PathError):
                log.debug("the end of a client's side was not told: there is no room on the path")
        self._changed.unpark_all()

    async def _write(self, part: Part) -> None:
        lock = self._writing
        try:
            lock.acquire_nowait()  # as nearly always, and then without a checkpoint
        except trio.WouldBlock:
            await lock.acquire()
        try:
            if part.data:
                await self._connection.send_all(part.data)
            if part.end:
                await self._connection.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()
        finally:
            lock.release()

    # -- the server ---------------------------------------------------------------------------------------------------

    async def _ask_on(self) -> None:
        """Question after question, each when the answer before it is on its way to the client."""
        asker, path = self._asker, self.path
        while not asker.over:
            if not asker.due:
                if path.severed is not None:
                    break
                await self._changed.park()
                continue
            try:
                untrusted_reply = await path.call(asker.ask())
                part = asker.answer(untrusted_reply)
            except BadWord as exc:
                self._violated(exc)
                return
            except Rejected as exc:
                log.warning("%s refused what a client sent: %s", path.name, exc)
                return
            except PathError:
                break
            self._room.unpark_all()
            await self._write(part)
            if self._finishing:
                self._end_client()
        self.orderly = asker.over or _is_orderly(path)

    async def _serve(self) -> None:
        """Do what the server asks for while it answers, until the path has ended."""
        await self.path.serve(self._handle)
        if _is_orderly(self.path):
            self._changed.unpark_all()  # what is being written is finished
        else:
            self._scope.cancel()

    async def _handle(self, message: Message) -> Any:
        close_all(message.descriptors)
        untrusted = message.body
        kind = untrusted.get("type") if type(untrusted) is dict else None
        if not message.wants_reply:
            return None  # a successor that has taken up the offer once more
        try:
            if kind == READ:
                return await self._read(untrusted)
            if kind == WRITE:
                # The answer that stands before it may have come in the same packet: its task has its turn first.
                await trio.lowlevel.checkpoint()
                await self._write(self._asker.write(untrusted))
                return None
            if kind == RESUME:
                return {**self._opening, **self._asker.resume()}
        except BadWord as exc:
            self._violated(exc)
            raise Rejected("violation", exc.rule) from None
        except NotResumable as exc:
            log.info("%s: a connection is lost with the machine that answered it: %s", self.path.name, exc.why)
            self._scope.cancel()
            raise Rejected("not-resumable", exc.why) from None
        raise Rejected("unknown-message", f"{READ}, {WRITE} and {RESUME} are known here")

    async def _read(self, untrusted: dict[str, Any]) -> dict[str, Any]:
        asker = self._asker
        while asker.asking:
            if not self.path.joined:
                # Whoever has asked is gone, or comes back and asks again: nothing is given to the dead.
                raise Rejected(AGAIN, "the descriptor of the path was lost")
            if (piece := asker.read(untrusted)) is not None:
                self._room.unpark_all()
                return piece
            await self._changed.park()
        raise Rejected("answered", "there is no question any more")

    def _violated(self, error: BadWord) -> None:
        log.warning("%s does not keep to the protocol: %s", self.path.name, error.rule)
        self.path.sever("violation", error.rule)
        self._scope.cancel()


def _is_orderly(path: Path) -> bool:
    why = path.severed
    return isinstance(why, PathSevered) and why.code == "closed"
