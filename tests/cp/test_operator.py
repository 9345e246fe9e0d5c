"""What may be asked over a path to the control program, and what happens to it when the asker misbehaves."""

import pathlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.cp import directory, finding
from retinue.cp.declaration import Declaration
from retinue.cp.host.interface import Host
from retinue.cp.operator import ALL, LOOK, READ, OperatorPath
from retinue.cp.reception import RETURN_LIMIT, Reception
from retinue.cp.requests.following import MOST_FOLLOWERS
from retinue.cp.secrets import hand_over
from retinue.cp.system import ControlProgram
from retinue.pipes import (
    AccessDenied,
    Path,
    PathSevered,
    Rejected,
    SocketTransport,
    memory_pair,
    open_path,
    socket_pair,
)
from retinue.pipes.message import close_all

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
            declared = Declaration(directory.load(tmp_path / "test.toml"))
            cp = ControlProgram(declared, no_host, tmp_path, nursery)
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
        (["follow", {"count": 5}], "bad-arguments"),
        (["follow", {"severity": "bad"}], "bad-arguments"),
        (["follow", {"machine": ["DESK", "NOBODY"]}], "unknown-machine"),
        (["logs", {"sevrity": 4}], "bad-arguments"),
        (["down", {"force": 1}], "bad-arguments"),
        (["why", {}], "unknown-machine"),
        (["why", {"machine": "../DESK"}], "unknown-machine"),
        (["why", {"machine": "DESK", "count": "1"}], "bad-arguments"),
        (["explain", {"from": "DESK"}], "unknown-machine"),
        (["explain", {"from": "X" * 5000, "to": "DESK"}], "unknown-machine"),
        (["events", {"machine": "NOBODY"}], "unknown-machine"),
        (["events", {"follow": 1}], "bad-arguments"),
        (["start", {}], "unknown-machine"),
        (["restart", {"machine": "desk"}], "unknown-machine"),
        (["plan", {"path": "relative.toml"}], "bad-arguments"),
        (["plan", {"path": "/nowhere/it.toml"}], "bad-topology"),
        (["apply", {"path": ""}], "bad-arguments"),
        (["set", {"machine": "DESK", "settings": {}}], "bad-arguments"),
        (["set", {"machine": "DESK", "settings": {b"share": 2}}], "bad-arguments"),
        (["set", {"machine": "DESK", "settings": [1]}], "bad-arguments"),
        (["top", {"after": 1.5}], "bad-arguments"),
    ],
)
async def test_request_that_is_none_is_refused(bench: Bench, body: Any, code: str) -> None:
    """With the code of the reference, and the path goes on."""
    path = await bench.path()
    with pytest.raises(Rejected) as caught:
        await path.call(body)
    assert caught.value.code == code
    assert (await path.call(["ps", {}]))["system"] == "TEST"


@pytest.mark.parametrize(
    ("allowed", "verb"),
    [(LOOK, "logs"), (LOOK, "down"), (READ, "ps"), (READ, "detach"), (LOOK, "why"), (LOOK, "set"), (READ, "attend")],
)
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
    monkeypatch.setattr(finding, "ANSWER_ROOM", 100_000)
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


async def test_follower_gets_what_its_query_wants(bench: Bench) -> None:
    """Of what it missed, and of what comes; gaps of the machine as well, if it wants them."""
    log = bench.cp.syslog
    log.write(3, "missed", machine="DESK")
    log.write(6, "not so bad", machine="DESK")
    log.write(3, "of another", machine="CP")
    path = await bench.path(READ)
    query = {"machine": ["DESK"], "severity": 4, "text": "S", "fields": {}, "gaps": True}
    assert await path.call(["follow", {**query, "after": 0}]) == {"seq": 3}
    log.write(2, "is not missing", machine="DESK", fields={"a": 1})
    log.write(2, "this", machine="DESK")
    log.write(2, "of another again", machine="CP")
    log.write(5, "some are missing", machine="DESK", fields={"lost": 2})
    log.write(2, "last", machine="DESK")
    got = [(await path.receive()).body[1]["message"] for _ in range(5)]
    assert got == ["missed", "is not missing", "this", "some are missing", "last"]


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
    desk = bench.cp.topology.machine("DESK")
    good = bench.cp.misfit(desk, {"keys": ["a", 1], "text": "wrong"})
    assert str(good) == "test.toml:5: [machines.DESK] config.a.1: wrong"
    for forged in (None, 5, {}, {"keys": 5, "text": "x"}, {"keys": [], "text": 5}):
        assert "cannot be read" in bench.cp.misfit(desk, forged).text
    assert bench.cp.misfit(desk, {"keys": [[], None, 1.5, "a"], "text": ""}).keys == ("a",)


async def test_path_that_breaks_the_protocol_is_severed(bench: Bench) -> None:
    """And the next one is served."""
    path = await bench.path()
    path._transport.send(b"\xc1")
    with pytest.raises(PathSevered, match="violation"):
        await path.call(["ps", {}])
    assert (await (await bench.path()).call(["ps", {}]))["state"] == "STARTING"


async def test_looking_verbs_answer_a_machine_with_an_edge_to_cp(bench: Bench) -> None:
    """What goes on, who may reach whom and what happened; the log lines in a certificate are not for everybody."""
    path = await bench.path(LOOK)
    sample = await path.call(["top", {"after": 0}])
    (machine,) = sample["machines"]
    assert (machine["name"], machine["cpu_s"], machine["records"]) == ("DESK", None, 0)
    assert (sample["edges"], sample["seq"]) == ([], bench.cp.syslog.last)
    found = await path.call(["explain", {"from": "DESK", "to": "*LOG"}])
    assert (found["system"], found["allowed"], found["missing"]["text"]) == ("TEST", False, 'uses.log = "*LOG"')
    assert (await path.call(["events", {}]))["events"] == []


async def test_events_are_records_of_the_control_program(bench: Bench) -> None:
    """Those of a machine or of all; not what a machine writes, and not other remarks; each with its number."""
    cp = bench.cp
    cp.announce("DESK", 1, "STARTING", "DEFINED", None)
    cp.syslog.write(5, "a remark", fields={"event": "x"})
    cp.syslog.write(5, "forged", machine="DESK", fields={"event": "READY", "of": "DESK"})
    cp.announce("DESK", 1, "ABEND", "STARTING", "exit status 1: no such luck")
    cp.announce(None, None, "READY", "STARTING", None)
    path = await bench.path()
    events = (await path.call(["events", {}]))["events"]
    assert [(each["seq"], each["machine"], each["state"]) for each in events] == [
        (1, "DESK", "STARTING"),
        (4, "DESK", "ABEND"),
        (5, None, "READY"),
    ]
    assert events[1]["cause"] == "exit status 1: no such luck"
    assert events[0]["cause"] is None
    for arguments, seqs in (
        ({"machine": "DESK"}, [1, 4]),
        ({"count": 1}, [5]),
        ({"after": 4}, [5]),
        ({"count": 0}, []),
    ):
        assert [each["seq"] for each in (await path.call(["events", arguments]))["events"]] == seqs
    await path.call(["events", {"follow": True, "after": 1, "machine": "DESK"}])
    cp.announce("DESK", 2, "STARTING", "ABEND", None)
    got = [(await path.receive()).body for _ in range(2)]
    assert [(kind, event["seq"], event["state"]) for kind, event in got] == [
        ("event", 4, "ABEND"),
        ("event", 6, "STARTING"),
    ]


async def test_follower_is_told_what_is_not_in_memory_any_more(bench: Bench) -> None:
    """Exactly how many records, where they are missing; as when it comes back after a long time."""
    for number in range(1, 50):
        bench.cp.syslog.write(5, f"{number} " + "x" * 60_000)
    path = await bench.path()
    await path.call(["follow", {"after": 0}])
    lost, told = 0, 0
    while lost + told < 49:
        kind, content = (await path.receive()).body
        lost, told = (lost + content["count"], told) if kind == "lost" else (lost, told + 1)
    assert lost > 0
    assert content["seq"] == 49


async def test_certificates_are_told_by_their_newest(bench: Bench) -> None:
    path = await bench.path()
    assert (await path.call(["why", {"machine": "DESK"}]))["certificates"] == []
    for generation in (1, 2):
        bench.cp.certificates.issue(machine="DESK", generation=generation, cause="exit", text="exit status 1")
    bench.cp.certificates.issue(machine="GONE", generation=1, cause="asked", text="asked to stop")
    answer = await path.call(["why", {"machine": "DESK"}])
    assert [each["generation"] for each in answer["certificates"]] == [2]
    assert [each["state"] for each in answer["machines"]] == ["DEFINED"]
    answer = await path.call(["why", {"machine": "DESK", "count": 2**40}])
    assert [each["generation"] for each in answer["certificates"]] == [2, 1]
    # Of a machine that is no part of the system any more.
    assert len((await path.call(["why", {"machine": "GONE"}]))["certificates"]) == 1


async def test_what_was_ordered_is_carried_out_though_nobody_waits(bench: Bench) -> None:
    """Its result and its error go to who waits; what fails when nobody does is a record."""
    reception, go, done = bench.cp.reception, trio.Event(), []

    async def order() -> str:
        await go.wait()
        done.append(1)
        return "done"

    async def failing() -> None:
        await go.wait()
        raise Rejected("impossible", "it cannot be")

    with trio.move_on_after(0) as scope:
        await reception.carry_out(order)
    assert scope.cancelled_caught
    with trio.move_on_after(0):
        await reception.carry_out(failing)
    go.set()
    assert await reception.carry_out(order) == "done"
    with pytest.raises(Rejected, match="it cannot be"):
        await reception.carry_out(failing)
    assert len(done) == 2
    assert "what was ordered has failed" in bench.cp.syslog.recent(None, 1)[0]["message"]


class Console:
    """A control program that only notes that it was to stop; and its reception."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.attended: list[bool] = []
        self.stopped: list[str] = []
        self.reception = Reception(cast(ControlProgram, self), nursery, self.attended.append)

    def stop(self, how: str, text: str) -> None:
        self.stopped.append(how)


async def test_former_console_has_time_to_come_back(autojump_clock: trio.testing.MockClock) -> None:
    """It learns of it by the end of its path, and attends again by another; or else the system stops."""
    async with trio.open_nursery() as nursery:
        console = Console(nursery)
        ours, theirs = socket_pair()
        with theirs:
            await console.reception.expect_console(ours)
            assert theirs.recv(1) == b""
        assert (console.stopped, console.reception.attended) == (["console-lost"], False)
        again = Console(nursery)
        nursery.start_soon(again.reception.expect_console)
        await trio.sleep(RETURN_LIMIT - 1)
        path, _ = memory_pair()
        again.reception.attend(Path(path))
        await trio.sleep(RETURN_LIMIT)
        assert (again.stopped, again.attended, again.reception.attended) == ([], [True], True)


async def test_one_path_at_a_time_is_the_console(nursery: trio.Nursery) -> None:
    """Who attends takes the place of who did; only whoever is the console can detach."""
    console = Console(nursery)
    first, second = (Path(memory_pair()[0]) for _ in range(2))
    console.reception.attend(first)
    console.reception.attend(second)
    console.reception.detach(first)
    assert console.reception.attended
    console.reception.detach(second)
    assert console.attended == [True, True, False]


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_variables_of_an_apply_come_in_one_memfd(bench: Bench, count: int, tmp_path: pathlib.Path) -> None:
    """And are closed, whatever becomes of it."""
    ours, theirs = socket_pair()
    async with open_path(SocketTransport(ours)) as path, open_path(SocketTransport(theirs)) as other:
        bench.nursery.start_soon(OperatorPath(bench.cp, other, ALL, "the test").serve)
        await path.call(["ps", {}])
        before = descriptors()
        memfds = tuple(hand_over({"KEY": b"value"}) for _ in range(count))
        try:
            with pytest.raises(Rejected) as caught:
                await path.call(["apply", {"path": str(tmp_path / "nowhere.toml")}], descriptors=memfds)
        finally:
            close_all(memfds)
        assert caught.value.code == ("bad-arguments" if count == 2 else "bad-topology")
        await trio.testing.wait_all_tasks_blocked()
        assert_none_left(before)
