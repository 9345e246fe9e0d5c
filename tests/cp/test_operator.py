"""What may be asked over a path to the control program, and what happens to it when the asker misbehaves."""

import pathlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import trio
import trio.testing

from retinue.cp import directory, operator
from retinue.cp.host.interface import Host
from retinue.cp.operator import ALL, LOOK, MOST_FOLLOWERS, READ, OperatorPath
from retinue.cp.system import ControlProgram
from retinue.pipes import AccessDenied, Path, PathSevered, Rejected, memory_pair, open_path

TOPOLOGY = """
[system]
name = "TEST"

[machines.DESK]
program = "desk"
"""


class Bench:
    """A control program that runs nothing, and paths to it."""

    def __init__(self, cp: ControlProgram, nursery: trio.Nursery) -> None:
        self.cp = cp
        self.nursery = nursery

    async def path(self, allowed: frozenset[str] = ALL) -> Path:
        ours, theirs = memory_pair()

        async def serve() -> None:
            async with open_path(ours) as path:
                await OperatorPath(self.cp, path, allowed, "the test").serve()

        self.nursery.start_soon(serve)
        made = Path(theirs)
        await self.nursery.start(made.run)
        return made


@pytest.fixture
async def bench(tmp_path: pathlib.Path) -> AsyncIterator[Bench]:
    (tmp_path / "desk.py").write_text("async def main(vm):\n    pass\n")
    (tmp_path / "test.toml").write_text(TOPOLOGY)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            no_host = cast(Host, None)  # nothing is started, so nothing is asked of it
            cp = ControlProgram(directory.load(tmp_path / "test.toml"), no_host, tmp_path, nursery)
            nursery.start_soon(cp.switchboard.watch)
            await trio.testing.wait_all_tasks_blocked()
            yield Bench(cp, nursery)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (None, "bad-arguments"),
        ([], "bad-arguments"),
        (["ps"], "bad-arguments"),
        (["ps", []], "bad-arguments"),
        (["ps", {}, 1], "bad-arguments"),
        ([5, {}], "bad-arguments"),
        ([["ps"], {}], "bad-arguments"),
        (["nonsense", {}], "unknown-verb"),
        (["ps", {"x": 1}], "bad-arguments"),
        (["logs", {"count": "5"}], "bad-arguments"),
        (["logs", {"count": True}], "bad-arguments"),
        (["logs", {"machine": 5}], "bad-arguments"),
        (["logs", {"machine": "NOBODY"}], "unknown-machine"),
        (["follow", {"after": "1"}], "bad-arguments"),
        (["follow", {"machine": "x" * 5000}], "unknown-machine"),
        (["down", {"force": 1}], "bad-arguments"),
    ],
)
async def test_request_that_is_none_is_refused(bench: Bench, body: Any, code: str) -> None:
    """With the code of the reference, and the path goes on."""
    path = await bench.path()
    with pytest.raises(Rejected) as caught:
        await path.call(body)
    assert caught.value.code == code
    assert (await path.call(["ps", {}]))["system"] == "TEST"


@pytest.mark.parametrize(("allowed", "verb"), [(LOOK, "logs"), (LOOK, "down"), (READ, "ps"), (READ, "detach")])
async def test_verb_that_is_not_allowed(bench: Bench, allowed: frozenset[str], verb: str) -> None:
    """A machine may do with its edge what that edge is for."""
    path = await bench.path(allowed)
    with pytest.raises(AccessDenied, match=f"the test may not {verb}"):
        await path.call([verb, {}])


@pytest.mark.parametrize("count", [-5, 0, 3, 2**63])
async def test_logs_of_any_count(bench: Bench, count: int) -> None:
    """The newest so many that there are."""
    for number in range(5):
        bench.cp.syslog.write(5, str(number))
    path = await bench.path()
    answer = await path.call(["logs", {"count": count}])
    assert [each["message"] for each in answer["records"]] == list("01234")[max(0, 5 - max(0, count)) :]


async def test_logs_fit_one_message(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the records are: the newest of them."""
    monkeypatch.setattr(operator, "ANSWER_ROOM", 100_000)
    for number in range(20):
        bench.cp.syslog.write(5, f"{number} " + "x" * 30_000)
    path = await bench.path()
    records = (await path.call(["logs", {"count": 10_000}]))["records"]
    assert [each["message"].partition(" ")[0] for each in records] == ["17", "18", "19"]


async def test_follower_gets_what_it_missed_and_what_comes(bench: Bench) -> None:
    """Nothing twice, nothing left out; events when it wants them; an end when there is one."""
    bench.cp.syslog.write(5, "one")
    bench.cp.syslog.write(5, "two")
    path = await bench.path()
    assert await path.call(["follow", {"after": 1, "events": True}]) == {"seq": 2}
    bench.cp.announce("DESK", 1, "STARTING", "DEFINED", None)
    got = [(await path.receive()).body for _ in range(3)]
    assert [kind for kind, _ in got] == ["record", "event", "record"]
    assert got[0][1]["message"] == "two"
    assert got[1][1]["state"] == "STARTING"
    bench.nursery.start_soon(bench.cp.syslog.broadcast.finish)
    assert (await path.receive()).body == ["end", {}]


async def test_follower_that_goes_away_harms_nobody(bench: Bench) -> None:
    """At any moment: while it is told what it missed, while it is told what comes, and without ever reading."""
    other = await bench.path()
    for number in range(100):
        bench.cp.syslog.write(5, str(number))
    for reads in (0, 1, 5, 100, 101):
        path = await bench.path()
        await path.call(["follow", {"after": 0}])
        for _ in range(min(reads, 100)):
            await path.receive()
        if reads > 100:
            bench.cp.syslog.write(5, "more")
            await path.receive()
        path.sever()
        await trio.testing.wait_all_tasks_blocked()
        bench.cp.syslog.write(5, "still there")
        assert (await other.call(["ps", {}]))["system"] == "TEST"


async def test_follower_that_turns_its_path_to_a_stream_harms_nobody(bench: Bench) -> None:
    """It gets nothing any more."""
    path, other = await bench.path(), await bench.path()
    await path.call(["follow", {}])
    path.stream()
    bench.cp.syslog.write(5, "x")
    await trio.testing.wait_all_tasks_blocked()
    assert (await other.call(["ps", {}]))["system"] == "TEST"


async def test_one_path_has_a_limit_of_followers(bench: Bench) -> None:
    """Each costs a place in the stream; ending the path frees them."""
    path = await bench.path()
    for _ in range(MOST_FOLLOWERS):
        await path.call(["follow", {}])
    with pytest.raises(Rejected, match="open another path") as caught:
        await path.call(["follow", {}])
    assert caught.value.code == "exhausted"
    assert len(bench.cp.syslog.broadcast._followers) == MOST_FOLLOWERS
    path.sever()
    await trio.testing.wait_all_tasks_blocked()
    assert not bench.cp.syslog.broadcast._followers


async def test_bug_in_a_verb_is_a_record_and_not_the_end(bench: Bench) -> None:
    """Asking must not end a system. (This control program has no host, so status cannot be told.)"""
    path = await bench.path()
    with pytest.raises(Rejected) as caught:
        await path.call(["status", {}])
    assert caught.value.code == "failed"
    assert "a request of the test failed" in bench.cp.syslog.recent(None, 1)[0]["message"]
    assert (await path.call(["ps", {}]))["system"] == "TEST"


async def test_mistakes_that_a_program_tells_are_checked(bench: Bench) -> None:
    """They come from inside a machine."""
    good = bench.cp.misfit("DESK", {"keys": ["a", 1], "text": "wrong"})
    assert str(good) == "test.toml:5: [machines.DESK] config.a.1: wrong"
    for forged in (None, 5, {}, {"keys": 5, "text": "x"}, {"keys": [], "text": 5}):
        assert "cannot be read" in bench.cp.misfit("DESK", forged).text
    assert bench.cp.misfit("DESK", {"keys": [[], None, 1.5, "a"], "text": ""}).keys == ("a",)


async def test_path_that_breaks_the_protocol_is_severed(bench: Bench) -> None:
    """And the next one is served."""
    path = await bench.path()
    path._transport.send(b"\xc1")
    with pytest.raises(PathSevered, match="violation"):
        await path.call(["ps", {}])
    assert (await (await bench.path()).call(["ps", {}]))["state"] == "STARTING"
