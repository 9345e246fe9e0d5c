"""A client whose connection TCPIP holds: it goes on with a successor of this process where this one has ended.

What the client sends comes as questions, and the end of each response is the answer to one (resumable.py).
"""

from typing import Any

import trio

from retinue.pipes import Message, Path, PathError, Rejected
from retinue.pipes.message import close_all
from retinue.services.httpd.client import WRITE_SLICE, Address, Client
from retinue.services.httpd.config import Config
from retinue.services.httpd.errors import ClientGone
from retinue.services.resumable import AGAIN, END, RESUME, Answerer, BadWord


class ResumableClient(Client):
    """A client at the other end of a path that carries questions."""

    resumable = True

    def __init__(
        self, path: Path, config: Config, address: Address | None = None, server: Address | None = None
    ) -> None:
        super().__init__(config, address, server)
        self._path = path
        self._answerer = Answerer()
        self._question: Message | None = None
        self._reading: trio.CancelScope | None = None
        self._half_closed = trio.Event()

    async def resume(self, question: Message) -> Any:
        """Go on with a connection of which ``question`` is the first that came; returns TCPIP's whole reply.

        Raises :exc:`BadWord`, and PathError when nobody can go on with it.
        """
        untrusted_reply = await self._path.call({"type": RESUME})
        self._question = question
        self.buffer += self._answerer.on_resume(untrusted_reply, redelivered=question.redelivered)
        self._note_end()
        return untrusted_reply

    # -- reading ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            try:
                async for message in self._path:
                    close_all(message.descriptors)
                    if message.wants_reply:
                        self._on_question(message)
                    elif type(message.body) is dict and message.body.get("type") == END:
                        self._half_closed.set()
            except BadWord as exc:
                self._path.sever("violation", exc.rule)
            nursery.cancel_scope.cancel()
        self.lose()

    async def _watch(self) -> None:
        await self._half_closed.wait()
        await self._watch_half_closed()

    def _on_question(self, message: Message) -> None:
        untrusted = message.body
        self.buffer += self._answerer.on_ask(untrusted)
        self._question = message
        self._note_end()
        self._arrived.unpark_all()

    def _note_end(self) -> None:
        if self._answerer.ended:
            self.ended = True
            self._half_closed.set()

    async def _wait(self) -> None:
        if self._question is None:
            await self._arrived.park()
            return
        # Given up, it is asked again: TCPIP keeps what is not answered.
        with trio.CancelScope() as self._reading:
            try:
                untrusted_reply = await self._path.call(self._answerer.read())
                self.buffer += self._answerer.on_read(untrusted_reply)
                self._note_end()
            except BadWord as exc:
                self._path.sever("violation", exc.rule)
                self.lose()
            except Rejected as exc:
                if exc.code != AGAIN:
                    self.lose()
            except PathError:
                self.lose()

    def wake(self) -> None:
        super().wake()
        if self._reading is not None:
            self._reading.cancel()

    async def begin(self) -> bool:
        # The next question comes when the answer before it is written.
        if self._question is None and not self.gone:
            with trio.move_on_after(self.config.write_time) as scope:
                await self._arrived.park()
            if scope.cancelled_caught:
                self.cut = True
                self.lose()
        if self.gone:
            raise ClientGone("the connection is gone")
        return self._question is not None

    def may_be_begun(self, needed: int) -> bool:
        answerer = self._answerer
        return answerer.may_be_begun(answerer.position - len(self.buffer) + needed)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def _put(self, data: bytes | memoryview) -> None:
        await self._call_write(bytes(data))

    async def _call_write(self, data: bytes, *, end: bool = False) -> None:
        try:
            await self._path.call(self._answerer.write(data, end=end))
        except PathError as exc:
            raise trio.BrokenResourceError from exc

    async def complete(self, data: bytes, rest: int, *, last: bool) -> None:
        if len(data) > WRITE_SLICE:
            await self.write(data[:-WRITE_SLICE])
            data = data[-WRITE_SLICE:]
        while self._writing:
            await self._writers.park()
        if self.gone or self._question is None:
            raise ClientGone("the connection is gone")
        self._answer(self._question, data, rest, last or (self.ended and not rest))

    def _answer(self, question: Message, data: bytes, rest: int, end: bool) -> None:
        self._question = None
        self._progress += 1
        self._path.reply(question, self._answerer.answer(data, rest, end=end))

    def give_back(self) -> None:
        if self._question is not None:
            self._answer(self._question, b"", len(self.buffer), False)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def linger(self, seconds: float) -> None:
        if self._question is not None:
            self._answer(self._question, b"", 0, True)
        try:
            with trio.move_on_after(self.config.write_time) as scope:
                # The reply comes when all that was written is with the client's kernel.
                await self._call_write(b"", end=True)
        except trio.BrokenResourceError:
            return
        self.cut = scope.cancelled_caught
        if not self.cut:
            with trio.move_on_after(seconds):
                while not self.gone:
                    await self._arrived.park()
