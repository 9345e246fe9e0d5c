"""Comparing answers, and sending recorded requests again in their order."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from retinue.cp.cli.comparison import MOST, Answer, compare
from retinue.cp.cli.replay import Replayed, Report
from retinue.cp.redaction import REDACTED
from retinue.pipes import Message, Path, Rejected, memory_pair, open_path

Item = dict[str, Any]


@pytest.mark.parametrize(
    ("recorded", "now", "differences"),
    [
        (Answer({"a": [1, b"x"]}), Answer({"a": [1, b"x"]}), []),
        (Answer(float("nan")), Answer(float("nan")), []),
        (Answer(1), Answer(1.0), ["body: 1 -> 1.0"]),
        (Answer(1), Answer(True), ["body: 1 -> true"]),
        (Answer("x"), Answer(b"x"), ['body: "x" -> "x"']),
        (Answer({"a": [1, 2]}), Answer({"a": [1, 3], "b": 0}), ["body.a[1]: 2 -> 3", "body.b: nothing -> 0"]),
        (Answer([1, 2]), Answer([1]), ["body[1]: 2 -> nothing"]),
        (Answer({"a": None}), Answer({}), ["body.a: null -> nothing"]),
        (Answer([1]), Answer({"a": 1}), ['body: [1] -> {"a": 1}']),
        (Answer(1, descriptors=2), Answer(1), ["descriptors: 2 -> 0"]),
        (Answer(1), Answer(None, code="no", text="why"), ["a reply, 1 -> refused, no: why"]),
        (Answer(code="no", text="a"), Answer(code="no", text="b"), ["text: a -> b"]),
        (Answer([1], code="no"), Answer([2], code="no"), ["detail[0]: 1 -> 2"]),
        (Answer(list(range(9))), Answer([]), [*(f"body[{n}]: {n} -> nothing" for n in range(MOST)), "and 4 more"]),
        (Answer("x" * 200), Answer("\x1b"), [f'body: "{"x" * 58}… -> "\\u001b"']),
    ],
)
def test_differences_are_told_with_their_place(recorded: Answer, now: Answer, differences: list[str]) -> None:
    found = compare(recorded, now)
    assert (found.differences, found.skipped) == (differences, 0)


def test_redacted_values_are_never_equal_and_never_different() -> None:
    recorded = Answer({"a": REDACTED, "b": [REDACTED, 1]})
    assert compare(recorded, Answer({"a": REDACTED, "b": ["x", 1]}), redacted=True) == ([], 2)
    assert compare(recorded, Answer({"a": 1, "b": ["x", 2]}), redacted=True) == (["body.b[1]: 1 -> 2"], 2)
    # A machine may well say that word itself.
    assert compare(Answer(REDACTED), Answer(REDACTED)) == ([], 0)
    assert compare(Answer(REDACTED), Answer("x")).differences


def asked(ident: int, body: Any, kind: str = "call", **more: Any) -> Item:
    return {"time": 0.5, "path": 1, "direction": "->", "kind": kind, "id": ident, "body": body} | more


def answered(ident: int, body: Any, kind: str = "reply", **more: Any) -> Item:
    return {"time": 0.5, "path": 1, "direction": "<-", "kind": kind, "id": ident, "body": body} | more


class Bench:
    """A replayed path, and the machine at its other end."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self.report = Report(True)
        self.replayed = Replayed(path, self.report, nursery)
        self.got: list[Any] = []

    async def play(self, *items: Item) -> None:
        for item in items:
            await self.replayed.take(item)
        await self.replayed.finish()

    @property
    def sums(self) -> tuple[int, int, int]:
        return self.report.equal, len(self.report.different), len(self.report.not_compared)


@asynccontextmanager
async def replaying(answer: Callable[[Any], Any]) -> AsyncIterator[Bench]:
    """A machine that answers one request after the other, in the order of their arrival."""
    ours, theirs = memory_pair()
    with trio.fail_after(20):
        async with open_path(ours) as path, open_path(theirs) as machine, trio.open_nursery() as nursery:
            bench = Bench(path, nursery)

            async def serve() -> None:
                async for message in machine:
                    bench.got.append(message.body)
                    if message.wants_reply:
                        try:
                            await message.reply(answer(message.body))
                        except Rejected as exc:
                            await message.reject(exc.code, exc.text, exc.detail)

            nursery.start_soon(serve)
            yield bench
            nursery.cancel_scope.cancel()


async def test_requests_are_sent_in_order_and_answers_compared() -> None:
    async with replaying(lambda body: body * 2) as bench:
        await bench.play(
            asked(1, 1),
            asked(2, 5, "send"),
            answered(2, None, "ack", last=2),
            answered(1, 2),
            asked(3, 3),
            answered(3, 7),
        )
        assert bench.got == [1, 5, 3]
        assert bench.sums == (1, 1, 0)
        assert bench.report.different[0] == {
            "path": 1, "id": 3, "kind": "call", "request": 3, "differences": ["body: 7 -> 6"],
        }  # fmt: skip


async def test_what_overlapped_overlaps_again() -> None:
    """The first call is answered only when the second has come: sent one by one they would wait for ever."""
    second = trio.Event()

    async def both(message: Message) -> Any:
        if message.body == "second":
            second.set()
        await second.wait()
        return message.body

    ours, theirs = memory_pair()
    with trio.fail_after(20):
        async with open_path(ours) as path, open_path(theirs) as machine, trio.open_nursery() as nursery:
            nursery.start_soon(machine.serve, both)
            bench = Bench(path, nursery)
            await bench.play(
                asked(1, "first"), asked(2, "second"), answered(2, "second"), answered(1, "first"),
            )  # fmt: skip
            assert bench.sums == (2, 0, 0)
            nursery.cancel_scope.cancel()


async def test_many_that_overlap_keep_their_order() -> None:
    """As the machine's path has them; beyond what may be outstanding they wait in line."""
    async with replaying(lambda body: body) as bench:
        kinds = ("call", "send")
        await bench.play(
            *(asked(ident, ident, kinds[ident % 2]) for ident in range(1, 501)),
            *(answered(ident, ident) for ident in range(2, 501, 2)),
        )
        assert bench.got == list(range(1, 501))
        assert bench.sums == (250, 0, 0)


async def test_what_cannot_be_sent_or_compared_is_told_why() -> None:
    async with replaying(lambda body: {"token": "new", "user": body}) as bench:
        await bench.play(
            asked(1, {"password": REDACTED}, redacted=1),
            answered(1, "welcome"),
            asked(2, "x", descriptors=1),
            asked(3, "x") | {"omitted": "more than 9 bytes"},
            asked(4, "ali"),
            answered(4, {"token": REDACTED, "user": "ali"}, redacted=1),
            asked(5, "bob"),
            answered(5, None) | {"omitted": "more than 9 bytes"},
            asked(6, "eve"),
        )
        assert bench.got[:2] == ["ali", "bob"]  # the last was withdrawn again, perhaps before it was looked at
        assert [each["why"] for each in bench.report.not_compared] == [
            "not sent: 1 of its values is redacted",
            "not sent: it carried 1 descriptor, which no recording has",
            "not sent: it was not recorded (more than 9 bytes)",
            "1 value of its answer is redacted; the rest is equal",
            "its answer was not recorded: more than 9 bytes",
            "the recording ends before its answer",
        ]
        assert bench.sums == (0, 0, 6)


async def test_refusals_are_answers_too() -> None:
    def refuse(body: Any) -> Any:
        raise Rejected("sold-out", "no tea", body)

    async with replaying(refuse) as bench:
        await bench.play(
            asked(1, 5),
            answered(1, None, "reject", code="sold-out", text="no tea", detail=5),
            asked(2, 5),
            answered(2, None, "reject", code="sold-out", text="no coffee", detail=5),
            asked(3, 5),
            answered(3, 5),
        )
        assert bench.sums == (1, 2, 0)


async def test_a_redelivered_request_is_sent_once() -> None:
    async with replaying(lambda body: body) as bench:
        await bench.play(
            asked(1, 1), asked(2, 2), asked(1, 1, redelivered=True), asked(2, 2, redelivered=True), answered(1, 1)
        )
        assert bench.got == [1, 2]
        assert bench.sums == (1, 0, 1)


async def test_a_path_that_ends_makes_the_rest_different() -> None:
    ours, theirs = memory_pair()
    with trio.fail_after(20):
        async with open_path(ours) as path, open_path(theirs) as machine, trio.open_nursery() as nursery:
            machine.sever("gone", "the machine has enough")
            bench = Bench(path, nursery)
            await bench.play(asked(1, 1), answered(1, 1), asked(2, 2, "send"))
            assert bench.sums == (0, 2, 0)
            assert "the machine has enough" in bench.report.different[0]["differences"][0]


def test_the_sums_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(True)
    report.calls, report.equal, report.lost = 2, 1, 4
    report.differs(asked(1, b"\xff"), ["body: 1 -> 2"])
    report.finish("a.tap", "SHOP")
    assert json.loads(capsys.readouterr().out) == {
        "file": "a.tap",
        "machine": "SHOP",
        "calls": 2,
        "sends": 0,
        "equal": 1,
        "lost": 4,
        "different": [{"path": 1, "id": 1, "kind": "call", "request": "\\xff", "differences": ["body: 1 -> 2"]}],
        "not_compared": [],
    }


def test_the_sums_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(False)
    report.calls, report.sends, report.equal, report.lost = 2, 3, 1, 4
    report.differs(asked(1, ["x\x1b"]), ["body: 1 -> 2"])
    report.skips(asked(2, "y", "send"), "not sent: because")
    report.finish("a.tap", "SHOP")
    assert capsys.readouterr().out.splitlines() == [
        'different: call 1 of path 1  ["x\\u001b"]',
        "  body: 1 -> 2",
        'not compared: send 2 of path 1  "y"',
        "  not sent: because",
        "2 calls and 3 one-way sent: 1 equal, 1 different, 1 not compared; the recording lacks 4 messages",
    ]
