"""What it takes to talk to Redis: its protocol RESP, as far as one command at a time needs it.

https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

import trio

from retinue.pipes import PathError
from retinue.svm import Machine

Reply = bytes | int | None | list["Reply"]


class Refused(Exception):
    """Redis has answered with an error; the text is its own."""


class Unavailable(Exception):
    """Redis is not there, or was lost before it had answered; the command may have been executed."""


class Redis:
    """One connection along an edge, made when it is needed. Several tasks may use it; each waits for its turn."""

    def __init__(self, vm: Machine[None], edge: str) -> None:
        self._vm = vm
        self._edge = edge
        self._stream: trio.abc.Stream | None = None
        self._buffer = bytearray()
        self._turn = trio.Lock()

    async def command(self, *words: str | bytes | int) -> Reply:
        """Have a command executed. Raises :exc:`Refused`, :exc:`Unavailable`."""
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        async with self._turn:
            try:
                if self._stream is None:
                    self._stream = await self._connect()
                await self._stream.send_all(request)
                reply = await self._reply(self._stream)
            except (PathError, trio.BrokenResourceError) as exc:
                self._stream = None
                raise Unavailable(str(exc)) from exc
            except BaseException:
                self._stream = None  # cancelled: an answer may be on its way that is not for the next one
                raise
        if isinstance(reply, Refused):
            raise reply
        return reply

    async def _connect(self) -> trio.abc.Stream:
        path = await self._vm.connect(self._edge)
        self._buffer.clear()
        return path.stream()

    async def _reply(self, stream: trio.abc.Stream) -> "Reply | Refused":
        line = await self._line(stream)
        kind, text = line[:1], line[1:]
        match kind:
            case b"+":
                return text
            case b"-":
                return Refused(text.decode(errors="replace"))
            case b":":
                return int(text)
            case b"$" if text == b"-1":
                return None
            case b"$":
                while len(self._buffer) < int(text) + 2:
                    await self._more(stream)
                value = bytes(self._buffer[: int(text)])
                del self._buffer[: int(text) + 2]
                return value
            case b"*":
                return [await self._reply(stream) for _ in range(int(text))]  # type: ignore[misc]
        raise trio.BrokenResourceError(f"this is no RESP: {line!r:.40}")

    async def _line(self, stream: trio.abc.Stream) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            await self._more(stream)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    async def _more(self, stream: trio.abc.Stream) -> None:
        data = await stream.receive_some()
        if not data:
            raise trio.BrokenResourceError("Redis has closed the connection")
        self._buffer += data
