"""A client's connection that outlives the machine that answers it: both ends of the conversation, without I/O.

TCPIP, the **asker**, holds the connection. It hands what the client sends to a server in calls (``tcp.ask``) and keeps
it until it is answered. The server, the **answerer**, may read on and write while such a call is open, and its reply
says up to which byte the client's wishes are answered. A server that dies has answered or it has not: its successor
asks TCPIP what is left (``tcp.resume``) and begins there. The messages stand in ``docs/reference/tcpip.md``.
"""

from typing import Any, Final, NamedTuple

# What TCPIP puts into tcp.open to offer it, and the one-way message of a server that takes it up.
OFFER: Final = "resumable"
ACCEPT: Final = "tcp.resumable"
# Of TCPIP: a call, and a one-way message.
ASK: Final = "tcp.ask"
END: Final = "tcp.end"
# Calls of the server.
READ: Final = "tcp.read"
WRITE: Final = "tcp.write"
RESUME: Final = "tcp.resume"
# The code with which a tcp.read is refused that may be called once more.
AGAIN: Final = "again"

# Messages that may be outstanding at a time: of TCPIP a question and the news that the client has ended; of the server
# one that reads, one that was given up, one that writes and one that resumes. With fewer the two could wait for ever.
LEAST_LIMIT: Final = 4
# Bytes handed over at a time: with what is around them they fit a packet.
PIECE: Final = 60 * 1024
# Bytes read from the client that nobody has been handed: it waits then.
READ_AHEAD: Final = 64 * 1024
# Bytes of one reply or write of the server.
MOST_WRITTEN: Final = 1024 * 1024
# Bytes that TCPIP keeps of one connection, unless its config says otherwise: a page of headers and a form, not a film.
MOST_KEPT: Final = 256 * 1024

Address = tuple[str, int]


class BadWord(ValueError):
    """The other end has said what does not belong here. ``rule`` says what it should have been."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        super().__init__(rule)


class NotResumable(Exception):
    """Nobody can go on with this connection: ``why`` says what is missing."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


class Part(NamedTuple):
    """What goes to the client: ``data``, and then the end of this side if ``end``."""

    data: bytes
    end: bool


class Asker:
    """TCPIP's end: what has come from the client, who has been handed it, and what is answered.

    Positions count the client's bytes from the first one on. ``asking``: a question is with the server. ``begun``: a
    part of an answer has gone to the client. ``finished``: the server has ended its side. ``ended``: so has the client.
    """

    __slots__ = ("_first", "_kept", "_most_kept", "answered", "asking", "begun", "ended", "finished", "given")

    def __init__(self, most_kept: int = MOST_KEPT) -> None:
        self.answered = 0  # everything before
        self.given = 0  # everything before, to some server
        self.asking = self.begun = self.ended = self.finished = False
        self._kept = bytearray()
        self._first = 0  # the position of the first byte that is kept
        self._most_kept = most_kept

    # -- the client ---------------------------------------------------------------------------------------------------

    @property
    def received(self) -> int:
        """The position behind the last byte that the client has sent."""
        return self._first + len(self._kept)

    @property
    def has_room(self) -> bool:
        """Whether more may be read from the client."""
        return self.received - self.given < READ_AHEAD

    def take(self, data: bytes | bytearray) -> None:
        """The client has sent this."""
        self._kept += data

    def end(self) -> None:
        """The client sends no more."""
        self.ended = True

    # -- questions ----------------------------------------------------------------------------------------------------

    @property
    def owed(self) -> bool:
        """Whether the client waits for an answer."""
        return self.asking or self.answered < self.received

    @property
    def due(self) -> bool:
        """Whether it is time for a question."""
        if self.asking or self.finished:
            return False
        return self.answered < self.received or self.ended

    @property
    def over(self) -> bool:
        """Whether both sides have ended."""
        return self.ended and self.finished

    def ask(self) -> dict[str, Any]:
        """The next question, to be called when it is :attr:`due`."""
        self.asking = True
        return {"type": ASK, **self._hand_over(self.given)}

    def _hand_over(self, at: int) -> dict[str, Any]:
        start = at - self._first
        data = bytes(self._kept[start : start + PIECE])
        self.given = max(self.given, at + len(data))
        self._forget(self.given - self._most_kept)
        return {"at": at, "data": data, "end": self.ended and at + len(data) == self.received}

    def _forget(self, before: int) -> None:
        if before > self._first:
            del self._kept[: before - self._first]
            self._first = before

    def answer(self, untrusted_reply: Any) -> Part:
        """The server's reply to the question. Raises :exc:`BadWord`."""
        part = _read_part(untrusted_reply)
        mark = untrusted_reply.get("mark")
        if type(mark) is not int or not self.answered <= mark <= self.given:
            raise BadWord("an answer has a mark, the position up to which all is answered")
        self.asking = False
        # Nothing is answered by an answer without progress: what was written is still the beginning of one.
        self.begun = self.begun and mark == self.answered
        self.answered = mark
        self._forget(mark)
        self._write(part)
        return part

    # -- what the server asks for meanwhile ---------------------------------------------------------------------------

    def read(self, untrusted: Any) -> dict[str, Any] | None:
        """What follows the position in a ``tcp.read``; None while nothing does. Raises :exc:`BadWord`.

        Only while :attr:`asking`: one that was given up may come too late.
        """
        at = untrusted.get("at")
        if type(at) is not int or not max(self._first, self.answered) <= at <= self.received:
            raise BadWord("tcp.read says a position that was reached and is not answered")
        return self._hand_over(at) if at < self.received or self.ended else None

    def write(self, untrusted: Any) -> Part:
        """What a ``tcp.write`` sends to the client. Raises :exc:`BadWord`."""
        part = _read_part(untrusted)
        if part.data:
            if not self.asking:
                raise BadWord("tcp.write without a question")
            self.begun = True
        self._write(part)
        return part

    def _write(self, part: Part) -> None:
        if self.finished and part.data:
            raise BadWord("data after the end")
        self.finished = self.finished or part.end

    def resume(self) -> dict[str, Any]:
        """What a server gets that does not know the connection. Raises :exc:`NotResumable`."""
        if self.begun:
            raise NotResumable("a part of the response has gone to the client")
        if self._first > self.answered:
            raise NotResumable(f"more than {self._most_kept} bytes of the request had come")
        # What was handed over since the last answer may have been begun, and nothing else.
        given = self.given if self.asking else self.answered
        data = bytes(self._kept)
        self.given = self.received
        return {"at": self.answered, "data": data, "given": given - self.answered, "end": self.ended}


class Answerer:
    """The server's end: how far it has come, and what of it a predecessor may have begun.

    ``position`` is behind the last byte that it has, ``asked`` whether a question is open, ``ended`` whether the client
    has ended behind ``position``. Each method raises :exc:`BadWord`.
    """

    __slots__ = ("asked", "ended", "exposed", "position")

    def __init__(self) -> None:
        self.position = 0
        self.asked = self.ended = False
        self.exposed = 0  # a predecessor may have begun what lies before, see may_be_begun

    def on_ask(self, untrusted: Any) -> bytes:
        """A question; returns the bytes that follow :attr:`position`, if there are any."""
        if self.asked:
            raise BadWord("a question while another one is open")
        self.asked = True
        return self._take(*_read_piece(untrusted))

    def _take(self, at: int, data: bytes, end: bool) -> bytes:
        if at != self.position:
            # What was to come before was given up with its tcp.read, and will be read again.
            return b""
        self.position += len(data)
        self.ended = end
        return data

    def read(self) -> dict[str, Any]:
        """The call that asks for what follows. It may be given up at any time."""
        return {"type": READ, "at": self.position}

    def on_read(self, untrusted_reply: Any) -> bytes:
        """What follows."""
        return self._take(*_read_piece(untrusted_reply))

    def on_resume(self, untrusted_reply: Any, *, redelivered: bool) -> bytes:
        """What is left of the connection; ``redelivered`` says so of the question with which it came."""
        at, data, end = _read_piece(untrusted_reply)
        given = untrusted_reply.get("given")
        if type(given) is not int or not 0 <= given <= len(data):
            raise BadWord("tcp.resume tells how many of its bytes were given to somebody before")
        self.position, self.ended, self.asked = at + len(data), end, True
        self.exposed = at + given if redelivered else 0
        return data

    def may_be_begun(self, position: int) -> bool:
        """Whether a predecessor may have worked on a request of which it needed the bytes before ``position``."""
        return position <= self.exposed

    def answer(self, data: bytes, rest: int, *, end: bool) -> dict[str, Any]:
        """The reply to the question: all is answered but the last ``rest`` bytes before :attr:`position`."""
        self.asked = False
        self.exposed = 0
        return {"mark": self.position - rest, "data": data, "end": end}

    @staticmethod
    def write(data: bytes, *, end: bool = False) -> dict[str, Any]:
        """A part of an answer, or the end of this side."""
        return {"type": WRITE, "data": data, "end": end}


def _read_part(untrusted: Any) -> Part:
    data, end = (untrusted.get("data"), untrusted.get("end")) if type(untrusted) is dict else (None, None)
    if type(data) is not bytes or type(end) is not bool:
        raise BadWord("what goes to the client has data and end")
    if len(data) > MOST_WRITTEN:
        raise BadWord(f"{len(data)} bytes for the client at once, the limit is {MOST_WRITTEN}")
    return Part(data, end)


def _read_piece(untrusted: Any) -> tuple[int, bytes, bool]:
    if type(untrusted) is dict:
        at, data, end = untrusted.get("at"), untrusted.get("data"), untrusted.get("end")
        if type(at) is int and at >= 0 and type(data) is bytes and type(end) is bool:
            return at, data, end
    raise BadWord("what comes from the client has at, data and end")
