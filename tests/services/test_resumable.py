"""The conversation of TCPIP with a server that may die at any time, without I/O."""

from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from retinue.services import resumable
from retinue.services.resumable import (
    ASK,
    MOST_WRITTEN,
    PIECE,
    READ,
    READ_AHEAD,
    RESUME,
    WRITE,
    Answerer,
    Asker,
    BadWord,
    NotResumable,
    Part,
)


def asked(data: bytes, most_kept: int = 1000) -> Asker:
    """A connection over which this has come, and which was asked about."""
    asker = Asker(most_kept)
    asker.take(data)
    asker.ask()
    return asker


def test_the_conversation_does_no_io() -> None:
    assert not {"trio", "os", "socket"} & vars(resumable).keys()


def test_asker_asks_for_what_has_come_and_once() -> None:
    asker = Asker()
    assert not asker.due
    asker.take(b"one")
    assert asker.due
    assert asker.ask() == {"type": ASK, "at": 0, "data": b"one", "end": False}
    asker.take(b"two")
    assert not asker.due
    assert asker.owed
    assert asker.answer({"mark": 3, "data": b"ONE", "end": False}) == Part(b"ONE", False)
    assert asker.due
    assert asker.ask() == {"type": ASK, "at": 3, "data": b"two", "end": False}
    asker.answer({"mark": 6, "data": b"TWO", "end": False})
    assert not asker.due
    assert not asker.owed


def test_asker_asks_about_the_end_until_it_is_answered_by_one() -> None:
    asker = Asker()
    asker.end()
    assert asker.ask() == {"type": ASK, "at": 0, "data": b"", "end": True}
    asker.answer({"mark": 0, "data": b"", "end": False})
    assert asker.due
    asker.ask()
    asker.answer({"mark": 0, "data": b"", "end": True})
    assert asker.over
    assert not asker.due


def test_asker_hands_over_pieces_and_any_of_them_again() -> None:
    asker = asked(bytes(3 * PIECE), most_kept=3 * PIECE)
    assert asker.given == PIECE
    for at in (PIECE, PIECE, PIECE + 1, 2 * PIECE):
        piece = asker.read({"at": at})
        assert piece is not None
        assert (piece["at"], len(piece["data"])) == (at, PIECE)
    assert asker.read({"at": 3 * PIECE}) is None
    asker.end()
    assert asker.read({"at": 3 * PIECE}) == {"at": 3 * PIECE, "data": b"", "end": True}


def test_asker_reads_no_more_ahead_than_it_may() -> None:
    asker = asked(b"x")
    asker.take(bytes(READ_AHEAD))
    assert not asker.has_room
    asker.read({"at": 1})
    assert asker.has_room


def test_successor_gets_what_is_not_answered() -> None:
    asker = asked(b"onetwo")
    asker.answer({"mark": 3, "data": b"ONE", "end": False})
    asker.take(b"three")
    assert asker.resume() == {"at": 3, "data": b"twothree", "given": 0, "end": False}
    asker.ask()
    assert asker.resume() == {"at": 3, "data": b"twothree", "given": 8, "end": False}


@pytest.mark.parametrize("how", ["begun", "too much"])
def test_connection_that_lacks_something_is_not_resumable_until_the_next_answer(how: str) -> None:
    asker = asked(bytes(100), most_kept=99 if how == "too much" else 100)
    if how == "begun":
        asker.write({"data": b"x", "end": False})
    with pytest.raises(NotResumable, match="a part of the response" if how == "begun" else "more than 99 bytes"):
        asker.resume()
    asker.answer({"mark": 100, "data": b"", "end": False})
    assert asker.resume()["data"] == b""


def test_answer_without_progress_leaves_what_was_begun() -> None:
    asker = asked(b"one")
    asker.write({"data": b"x", "end": False})
    asker.answer({"mark": 0, "data": b"", "end": False})
    with pytest.raises(NotResumable):
        asker.resume()


@pytest.mark.parametrize(
    "reply",
    [
        None,
        {"mark": 4, "data": b"", "end": False},
        {"mark": -1, "data": b"", "end": False},
        {"mark": True, "data": b"", "end": False},
        {"mark": 3, "data": "text", "end": False},
        {"mark": 3, "data": b"", "end": None},
        {"mark": 3, "data": bytes(MOST_WRITTEN + 1), "end": False},
    ],
)
def test_asker_refuses_an_answer_that_is_none(reply: Any) -> None:
    with pytest.raises(BadWord):
        asked(b"one").answer(reply)


def test_asker_refuses_what_comes_at_the_wrong_time() -> None:
    asker = asked(b"one")
    for at in (-1, 4, None):
        with pytest.raises(BadWord):
            asker.read({"at": at})
    asker.answer({"mark": 3, "data": b"", "end": True})
    with pytest.raises(BadWord, match="without a question"):
        asker.write({"data": b"x", "end": False})
    assert asker.write({"data": b"", "end": True}) == Part(b"", True)
    asker = asked(b"one")
    asker.write({"data": b"", "end": True})
    with pytest.raises(BadWord, match="after the end"):
        asker.answer({"mark": 3, "data": b"x", "end": False})


@pytest.mark.parametrize("piece", [None, {}, {"at": -1, "data": b"", "end": False}, {"at": 0, "data": b"", "end": 1}])
def test_answerer_refuses_what_is_no_piece(piece: Any) -> None:
    for take in (Answerer().on_ask, Answerer().on_read):
        with pytest.raises(BadWord):
            take(piece)
    with pytest.raises(BadWord):
        Answerer().on_resume(piece, redelivered=True)


def test_answerer_refuses_a_second_question() -> None:
    answerer = Answerer()
    answerer.on_ask({"at": 0, "data": b"a", "end": False})
    with pytest.raises(BadWord):
        answerer.on_ask({"at": 1, "data": b"a", "end": False})


# -- at every point ---------------------------------------------------------------------------------------------------

# A request is a line: its number and a letter. Of the response to S (small) the whole is in the answer, of that to L
# (long) a part is written before; P must not be carried out twice. The response is the number in angle brackets.
SMALL, LONG, ONCE = b"S", b"L", b"P"
PARTIAL = b"(part)"


class Server:
    """A server as HTTPD is one: it works on one request at a time, and only while a question is open."""

    def __init__(self, carried_out: list[int]) -> None:
        self.answerer = Answerer()
        self.buffer = b""
        self.inbox: deque[tuple[str, Any, bool]] = deque()  # what has come: kind, body, redelivered
        self.outbox: deque[dict[str, Any]] = deque()  # calls and answers on their way
        self.known = False
        self.waiting = ""  # the call whose reply is waited for
        self.part_written = False
        self._carried_out = carried_out
        self._redelivered = False

    @property
    def idle(self) -> bool:
        return not self.inbox and (bool(self.waiting) or not self.can_work)

    @property
    def can_work(self) -> bool:
        return self.answerer.asked and not self.waiting

    def step(self) -> None:
        """Take what has come, or else work on."""
        if self.inbox:
            kind, body, redelivered = self.inbox.popleft()
            if kind == "opened":
                self.known = True
            elif kind == ASK and not self.known:
                self.known, self._redelivered, self.waiting = True, redelivered, RESUME
                self.outbox.append({"type": RESUME})
            elif kind == ASK:
                self.buffer += self.answerer.on_ask(body)
            elif kind != self.waiting:
                raise AssertionError(f"{kind} while it waits for {self.waiting}")
            else:
                self.waiting = ""
                if kind == RESUME:
                    self.buffer = self.answerer.on_resume(body, redelivered=self._redelivered)
                elif kind == READ:
                    self.buffer += self.answerer.on_read(body)
        elif self.can_work:
            self._work()

    def _work(self) -> None:
        line, newline, rest = self.buffer.partition(b"\n")
        if newline:
            number, kind = int(line[:-1]), line[-1:]
            needed = self.answerer.position - len(rest)
            if kind == ONCE and self.answerer.may_be_begun(needed):
                self._answer(b"<%d?>" % number, rest)
            elif kind == LONG and not self.part_written:
                self.part_written, self.waiting = True, WRITE
                self.outbox.append({"type": WRITE, "data": b"<%d" % number + PARTIAL, "end": False})
            else:
                self._carried_out.append(number)
                self._answer(b">" if kind == LONG else b"<%d>" % number, rest)
        elif self.answerer.ended:
            self._answer(b"", b"", end=True)
        else:
            self.waiting = READ
            self.outbox.append(self.answerer.read())

    def _answer(self, data: bytes, rest: bytes, *, end: bool = False) -> None:
        self.buffer, self.part_written = rest, False
        self.outbox.append({"type": "answer", **self.answerer.answer(data, len(rest), end=end)})

    def give_back(self) -> None:
        """Leave what was not begun to a successor."""
        self.outbox.append({"type": "answer", **self.answerer.answer(b"", len(self.buffer), end=False)})


class Connection(RuleBasedStateMachine):
    """A client, TCPIP, and one server after the other. What is on its way to TCPIP when one dies may come or not."""

    def __init__(self) -> None:
        super().__init__()
        self.asker = Asker(most_kept=40)
        self.carried_out: list[int] = []
        self.server = Server(self.carried_out)
        self.server.inbox.append(("opened", None, False))
        self.requests: list[bytes] = []
        self.unsent = b""
        self.seen = b""
        self.pending: dict[str, Any] | None = None  # a tcp.read that TCPIP has not answered
        self.question: dict[str, Any] | None = None
        self.redelivered = False  # the question was given to a server that has died
        self.cut = False
        self.deaths = 0

    # -- the client

    @precondition(lambda self: not self.asker.ended)
    @rule(kind=st.sampled_from([SMALL, SMALL, LONG, ONCE]))
    def think_of_a_request(self, kind: bytes) -> None:
        self.requests.append(kind)
        self.unsent += b"%d%b\n" % (len(self.requests), kind)

    @precondition(lambda self: self.unsent and not self.asker.ended)
    @rule(data=st.data())
    def client_sends(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.unsent)))
        self.asker.take(self.unsent[:count])
        self.unsent = self.unsent[count:]
        self._go_on()

    @precondition(lambda self: not self.unsent and not self.asker.ended)
    @rule()
    def client_ends(self) -> None:
        self.asker.end()
        self._go_on()

    # -- TCPIP and its path

    def _go_on(self) -> None:
        """What TCPIP does by itself: it asks, and answers a tcp.read that waits."""
        if self.cut:
            return
        if self.asker.due:
            self.question, self.redelivered = self.asker.ask(), False
            self.server.inbox.append((ASK, self.question, False))
        if self.pending is not None and self.asker.asking and (piece := self.asker.read(self.pending)) is not None:
            self.pending = None
            self.server.inbox.append((READ, piece, False))

    def _write(self, part: Part) -> None:
        self.seen += part.data

    @precondition(lambda self: self.server.outbox)
    @rule()
    def something_arrives_at_tcpip(self) -> None:
        self._arrive()

    def _arrive(self) -> None:
        message = self.server.outbox.popleft()
        kind = message["type"]
        if kind == "answer":
            self.question = None
            self._write(self.asker.answer(message))
        elif kind == READ:
            self.pending = message
        elif kind == WRITE:
            self._write(self.asker.write(message))
            self.server.inbox.append((WRITE, None, False))
        else:
            try:
                self.server.inbox.append((RESUME, self.asker.resume(), False))
            except NotResumable:
                self.cut = True
        self._go_on()

    # -- the server

    @precondition(lambda self: not self.server.idle)
    @rule()
    def server_works(self) -> None:
        self.server.step()

    @precondition(lambda self: self.server.waiting == READ and not self.server.inbox)
    @rule()
    def server_gives_up_reading(self) -> None:
        """Whether or not the reply is on its way: it is dropped."""
        if self.pending is not None:
            self.pending = None
        elif any(message["type"] == READ for message in self.server.outbox):
            self.server.outbox = deque(message for message in self.server.outbox if message["type"] != READ)
        self.server.waiting = ""

    @rule(data=st.data())
    def server_dies(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(0, len(self.server.outbox)))):
            self._arrive()
        had_it = self.question is not None and all(body is not self.question for _, body, _ in self.server.inbox)
        # What was written and not read counts as delivered as well.
        self.redelivered = self.redelivered or had_it or data.draw(st.booleans())
        self._succeed()
        self.deaths += 1

    @precondition(lambda self: self.server.can_work and not self.server.part_written)
    @rule()
    def server_leaves(self) -> None:
        """It is replaced, and has read what came; its path is quiesced, so nothing follows what it gives back."""
        while self.server.inbox:
            self.server.step()
        if self.server.can_work and b"\n" not in self.server.buffer and not self.server.answerer.ended:
            self.server.give_back()
            self.question = None
            self._write(self.asker.answer(self.server.outbox.popleft()))
            self._succeed()
            self._go_on()

    def _succeed(self) -> None:
        self.server = Server(self.carried_out)
        self.pending = None
        if self.question is not None and not self.cut:
            self.server.inbox.append((ASK, self.question, self.redelivered))

    # -- what always holds

    @invariant()
    def client_sees_whole_answers_in_order(self) -> None:
        rest = self.seen
        for number, kind in enumerate(self.requests, 1):
            whole = [b"<%d%b>" % (number, PARTIAL)] if kind == LONG else [b"<%d>" % number]
            if kind == ONCE and self.deaths:
                whole.append(b"<%d?>" % number)
            found = next((each for each in whole if rest.startswith(each)), None)
            if found is None:
                assert any(each.startswith(rest) for each in whole), self.seen
                return
            rest = rest[len(found) :]
        assert rest == b""

    @invariant()
    def nothing_is_carried_out_twice_that_must_not(self) -> None:
        for number, kind in enumerate(self.requests, 1):
            if kind == ONCE:
                assert self.carried_out.count(number) <= 1

    @invariant()
    def without_a_death_all_is_carried_out_once(self) -> None:
        if not self.deaths:
            assert len(set(self.carried_out)) == len(self.carried_out)

    def teardown(self) -> None:
        """Left alone, it comes to its end: every request is answered, unless the connection had to be cut."""
        if not self.asker.ended:
            self.asker.take(self.unsent)
            self.asker.end()
        self._go_on()
        for _ in range(1000 + 20 * len(self.requests)):
            if self.cut or self.asker.over:
                break
            while self.server.outbox and not self.cut:
                self._arrive()
            self.server.step()
        self.client_sees_whole_answers_in_order()
        if self.cut:
            assert self.deaths
        else:
            assert self.asker.over, (self.seen, self.server.waiting, self.server.inbox)
            assert self.seen.count(b">") == len(self.requests)


TestConnection = Connection.TestCase
TestConnection.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
