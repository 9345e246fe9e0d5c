"""Campaigns: what is done to a system, how it is counted, and the verdict."""

import json
import pathlib
import random
from collections import Counter

import pytest
import trio
from tests.systems import ASKER, SERVER, Bench

from retinue.cp.campaign.campaign import Report
from retinue.cp.campaign.census import Census
from retinue.cp.campaign.faults import FAULTS
from retinue.cp.campaign.load import Counts, Load

# -- the verdict ---------------------------------------------------------------------------------------------------


def test_a_campaign_without_a_loss_is_passed() -> None:
    report = Report(7, faults=Counter(kill=2), recoveries=[(0.1, "A killed"), (0.3, "B killed")])
    assert report.passed
    told = report.as_dict()
    assert told["recovery"]["longest"] == 0.3
    assert told["recovery"]["slowest"][0] == [0.3, "B killed"]
    json.dumps(told)


@pytest.mark.parametrize(
    "report",
    [
        Report(1, not_recovered=["not as declared after 30 s: A is WAITING"]),
        Report(1, left_over={"memfds": 1}),
        Report(1, load=Counts(answered=5, unanswered=3), excused=2),
    ],
)
def test_any_loss_is_a_defeat(report: Report) -> None:
    assert not report.passed


def test_requests_of_a_machine_that_was_hurt_are_excused() -> None:
    load = Load("http://127.0.0.1:1/", 8, 100)
    load.counts.unanswered = 8
    assert Report(1, load=load.counts, excused=8).passed


def test_a_census_tells_what_there_is_more_of() -> None:
    before = Census(Counter(A=1), Counter({"A socket": 3}), 4, 2, 0)
    after = Census(Counter(A=1, B=1), Counter({"A socket": 2, "B pipe": 1}), 5, 2, 0)
    assert after.more_than(before) == {"processes: B": 1, "descriptors: B pipe": 1, "memfds": 1}
    assert before.more_than(before) == {}


def test_a_seed_decides_the_order_of_faults() -> None:
    kinds, weights = list(FAULTS), [weight for _, weight in FAULTS.values()]
    orders = [random.Random(seed).choices(kinds, weights, k=50) for seed in (5, 5, 6)]
    assert orders[0] == orders[1] != orders[2]


# -- the load ------------------------------------------------------------------------------------------------------


async def serve(stream: trio.SocketStream, answers: list[bytes]) -> None:
    for answer in answers:
        while b"\r\n\r\n" not in await stream.receive_some(65536):
            pass
        await stream.send_all(answer)


async def test_a_load_counts_answers_refusals_and_connections_that_end() -> None:
    answer = b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok"
    answers = [answer % 200, answer % 503, answer % 404]
    load = Load("http://127.0.0.1:1/it?x=1", 1, 1000)

    async def handle(stream: trio.SocketStream) -> None:
        await serve(stream, answers)
        while b"\r\n\r\n" not in await stream.receive_some(65536):
            pass
        load.finish()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, handle, listeners)
            load._port = listeners[0].socket.getsockname()[1]
            await load.run()
            nursery.cancel_scope.cancel()
    counts = load.counts
    assert (counts.answered, counts.refused, counts.unanswered, counts.connections) == (2, 1, 1, 1)


def test_what_is_no_address_of_a_server_is_refused() -> None:
    for url in ("https://127.0.0.1/", "nonsense", "http:///"):
        with pytest.raises(ValueError, match="not the address"):
            Load(url, 1, 1)


# -- the whole -----------------------------------------------------------------------------------------------------


def test_a_short_campaign_against_a_real_system(bench: Bench) -> None:
    bench.write(server=SERVER, asker=ASKER)
    done = bench.run("campaign", str(bench.file), "--faults", "8", "--seed", "1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["passed"]
    assert report["faults"]["count"] == 8
    assert report["requests"] is None  # it listens nowhere
    assert report["left_over"] == {}


def test_an_unknown_kind_of_fault_is_told(bench: Bench, tmp_path: pathlib.Path) -> None:
    bench.write(server=SERVER)
    done = bench.run("campaign", str(bench.file), "--only", "kil")
    assert done.returncode == 2
    assert 'did you mean "kill"' in done.stderr or "kill" in done.stderr
